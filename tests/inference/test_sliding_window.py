"""Windows cover with the fewest; what goes in comes out; memory running out repeats nothing."""

import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from attunet3d.inference import stitching as module
from attunet3d.inference.sliding_window import (
    FLOOR,
    Slab,
    Stitching,
    axis_weights,
    inverse_sum,
    pad,
    sliding_window_slabs,
    whole_volume,
    window_starts,
)


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def joined(slabs: Iterator[Any]) -> torch.Tensor:
    """The volume (K, X, Y, Z) from slabs that must come in order, without gap or repeat."""
    parts, end = [], 0
    for slab in slabs:
        assert isinstance(slab, Slab)
        assert slab.start == end
        parts.append(slab.logits)
        end += slab.logits.shape[-1]
    return torch.cat(parts, -1)


def noise(*shape: Any, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- where windows lie -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 600), window=st.integers(1, 200), overlap=st.floats(0, 0.9))
def test_windows_cover_with_the_overlap_and_one_fewer_could_not(
    size: int, window: int, overlap: float
) -> None:
    starts = window_starts(size, window, overlap)
    if size <= window:
        assert starts == [0]
        return
    steps = [b - a for a, b in pairwise(starts)]
    largest = max(1, window - math.ceil(window * overlap - 1e-9))
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert 1 <= min(steps) <= max(steps) <= largest
    assert max(steps) - min(steps) <= 1  # spread evenly
    assert (len(starts) - 2) * largest < size - window  # so one window fewer leaves a hole


@pytest.mark.parametrize(
    ("shape", "window", "count"),
    [  # issue: 2 mm and 1.5 mm abdomens of 384 x 384 x 250 mm at overlap 0.5
        ((192, 192, 125), (160, 160, 96), 8),
        ((192, 192, 125), (96, 96, 96), 18),
        ((256, 256, 167), (160, 160, 96), 27),
        ((256, 256, 167), (96, 96, 96), 75),
    ],
)
def test_number_of_windows_of_an_abdomen(
    shape: tuple[int, int, int], window: tuple[int, int, int], count: int
) -> None:
    numbers = [len(window_starts(s, w, 0.5)) for s, w in zip(shape, window, strict=True)]
    assert math.prod(numbers) == count


def test_weights_are_a_clamped_gaussian() -> None:
    weights = axis_weights(96)
    assert torch.equal(weights, weights.flip(0))
    assert float(weights.min()) == pytest.approx(FLOOR)
    assert float(weights[48 + 12 - 1]) == pytest.approx(math.exp(-0.5 * (11.5 / 12) ** 2))


def outer(factors: list[torch.Tensor]) -> torch.Tensor:
    return torch.einsum("x,y,z->xyz", *factors)


def test_normaliser_of_a_volume_is_an_outer_product() -> None:
    shape, window = (11, 9, 13), (5, 4, 6)
    starts = [window_starts(n, w, 0.5) for n, w in zip(shape, window, strict=True)]
    factors = [axis_weights(w) for w in window]
    total = torch.zeros(shape, dtype=torch.float64)
    for x in starts[0]:
        for y in starts[1]:
            for z in starts[2]:
                total[x : x + 5, y : y + 4, z : z + 6] += outer(factors)
    parts = [inverse_sum(n, s, f) for n, s, f in zip(shape, starts, factors, strict=True)]
    torch.testing.assert_close(outer(parts) * total, torch.ones_like(total), rtol=1e-6, atol=0)


def test_padding_is_the_minimum_and_lies_on_both_sides() -> None:
    padded, before = pad(noise(1, 3, 4, 5), (6, 4, 8))
    assert before == (1, 0, 1)
    assert float(padded[0, 0, 0, 0]) == float(padded.min()) == float(noise(1, 3, 4, 5).min())
    assert torch.equal(padded[:, 1:4, :, 1:6], noise(1, 3, 4, 5))


# --- what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((23, 19, 31), (8, 7, 9), 0.5),
        ((23, 19, 31), (8, 7, 9), 0.0),
        ((16, 16, 16), (8, 8, 8), 0.875),
        ((5, 30, 4), (8, 8, 8), 0.3),
        ((1, 1, 1), (4, 4, 4), 0.5),
        ((8, 8, 8), (8, 8, 8), 0.5),
    ],
)
def test_identity_gives_the_image_back(
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: float,
    batch: int,
    weights: Literal["gaussian", "constant"],
) -> None:
    image = noise(3, *shape)
    options = Stitching(weights=weights)
    slabs = sliding_window_slabs(
        image, identity, window=window, overlap=overlap, window_batch=batch, stitching=options
    )
    torch.testing.assert_close(joined(slabs), image, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, noise(3, *shape))  # although `forward` returned a view of it


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_any_memory_order_of_the_image_will_do(order: tuple[int, int, int]) -> None:
    stored = noise(1, *(sorted((12, 17, 14))[axis] for axis in order))
    back = [1 + order.index(axis) for axis in range(3)]
    image = stored.permute(0, *back)
    slabs = sliding_window_slabs(image, lambda x: 2 * x, window=(6, 6, 6))
    torch.testing.assert_close(joined(slabs), 2 * image)


def test_constant_in_constant_out() -> None:
    image = torch.full((1, 20, 21, 22), 3.25)
    result = joined(
        sliding_window_slabs(image, lambda x: x.repeat(1, 5, 1, 1, 1), window=(9, 9, 9))
    )
    torch.testing.assert_close(result, torch.full((5, 20, 21, 22), 3.25), rtol=1e-6, atol=0)


def test_two_classes_come_as_their_margin_unless_both_are_wanted() -> None:
    image = noise(1, 9, 9, 9)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, 3 * x], 1)

    margin = joined(sliding_window_slabs(image, network, window=(4, 4, 4)))
    both = Stitching(all_channels=True)
    logits = joined(sliding_window_slabs(image, network, window=(4, 4, 4), stitching=both))
    torch.testing.assert_close(margin, 2 * image)
    torch.testing.assert_close(logits, torch.cat([image, 3 * image]))


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
def test_agrees_with_monai_on_the_same_windows(weights: Literal["gaussian", "constant"]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).eval()  # sees the window's border
    image = noise(1, 24, 32, 40)  # 16 and a step of 8 divide these: both place windows alike
    options = Stitching(weights=weights)
    ours = joined(
        sliding_window_slabs(image, network, window=(16, 16, 16), overlap=0.5, stitching=options)
    )
    window_weights = outer([axis_weights(16, weights)] * 3)
    with torch.no_grad():
        theirs = sliding_window_inference(
            image[None], (16, 16, 16), 1, network, overlap=0.5, roi_weight_map=window_weights
        )
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)


def test_the_networks_output_is_only_read() -> None:
    kept = []

    def network(x: torch.Tensor) -> Any:
        kept.append((x.clone(), x))
        return x

    list(sliding_window_slabs(noise(1, 12, 12, 12), network, window=(8, 8, 8)))
    assert all(torch.equal(copy, given) for copy, given in kept)
    assert len(kept) == 8


def test_sums_of_many_classes_are_float16_and_label_as_float32_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 14, 7, padding=3)  # sees the windows' borders
    notes: list[str]
    image, notes = noise(1, 60, 52, 44), []
    options = Stitching(note=notes.append)
    exact = joined(sliding_window_slabs(image, network, window=(24, 24, 16), stitching=options))
    assert notes == []
    monkeypatch.setattr(module, "MOST_BYTES", 1_000_000)
    half = joined(sliding_window_slabs(image, network, window=(24, 24, 16), stitching=options))
    assert notes == ["sums of 14 classes need 0.0 GB in float32: float16"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half - half[:1], exact - exact[:1], rtol=0, atol=1e-2)
    same = (half.argmax(0) == exact.argmax(0)).float().mean()
    assert float(same) >= 0.9999  # noise: a hard case, with every class beside every other


def test_float16_tells_classes_apart_that_are_both_far_above_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = noise(1, 30, 30, 30)

    def network(
        x: torch.Tensor,
    ) -> torch.Tensor:  # the second and third logit lie 1000 above the first, and near each other
        return torch.cat([0 * x - 500, 500 + x, 500 - x], 1)

    monkeypatch.setattr(module, "MOST_BYTES", 0)
    half = joined(sliding_window_slabs(image, network, window=(12, 12, 12)))
    assert torch.equal(half.argmax(0), 2 - (image[0] > 0).long())


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
def test_float16_sums_neither_overflow_nor_vanish(
    monkeypatch: pytest.MonkeyPatch, weights: Literal["gaussian", "constant"]
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    image = torch.full((1, 20, 20, 20), 1e4)
    scales = torch.tensor([0.0, -2.0, -6.0, -1e-6]).reshape(-1, 1, 1, 1)
    options = Stitching(weights=weights)
    slabs = sliding_window_slabs(
        image, lambda x: x * scales, window=(8, 8, 8), overlap=0.75, stitching=options
    )
    torch.testing.assert_close(joined(slabs), image * scales, rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize("most", [0, 2**29])
def test_two_classes_of_a_wide_volume_stay_a_margin_in_float32(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", most)
    notes: list[str]
    both, notes = noise(2, 10, 9, 12), []
    options = Stitching(note=notes.append)
    margin = joined(sliding_window_slabs(both, identity, window=(6, 6, 6), stitching=options))
    torch.testing.assert_close(margin, both[1:] - both[:1])
    assert notes == []


def test_channels_that_are_all_wanted_are_summed_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    image = 20 * noise(4, 20, 20, 20)
    every = Stitching(all_channels=True)
    result = joined(sliding_window_slabs(image, identity, window=(8, 8, 8), stitching=every))
    torch.testing.assert_close(result, image, rtol=1e-5, atol=1e-5)


def test_no_graph_is_kept_and_callers_grad_mode_is_left_alone() -> None:
    network = torch.nn.Conv3d(1, 1, 1)
    for slab in sliding_window_slabs(noise(1, 8, 8, 8), network, window=(4, 4, 4)):
        assert not slab.logits.requires_grad
        assert torch.is_grad_enabled()


def test_memory_is_that_of_one_row_of_windows() -> None:
    code = """
import resource, torch
from attunet3d.inference.sliding_window import sliding_window_slabs
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
image = torch.ones(1, 256, 256, 700)
list(sliding_window_slabs(image[..., :40], lambda x: x, window=(64, 64, 32)))
before = peak_mb()
for slab in sliding_window_slabs(image, lambda x: x, window=(64, 64, 32)): pass
print(peak_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40  # MB; the volume has 183, one row of windows 8


# --- one pass over the whole -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(17, 16, 33), (16, 32, 16), (3, 5, 2)])
def test_whole_volume_is_padded_to_the_divisor_and_cut_again(shape: tuple[int, int, int]) -> None:
    image = noise(1, *shape)
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return torch.cat([x, 3 * x], 1)

    result = joined(whole_volume(image, network, divisor=(16, 16, 8)))
    torch.testing.assert_close(result, 2 * image)
    assert len(seen) == 1
    assert all(n % d == 0 for n, d in zip(seen[0][2:], (16, 16, 8), strict=True))


def test_whole_volume_and_windows_agree_where_the_field_of_view_is_one_voxel() -> None:
    image = noise(1, 40, 24, 56)
    torch.manual_seed(1)
    network = torch.nn.Conv3d(1, 4, 1).eval()
    windows = joined(sliding_window_slabs(image, network, window=(16, 16, 16)))
    whole = joined(whole_volume(image, network, divisor=(8, 8, 8)))
    torch.testing.assert_close(windows, whole, rtol=1e-5, atol=1e-5)


# --- memory running out ----------------------------------------------------------------------


class Failing:
    """A network that runs out of memory at given calls."""

    def __init__(self, calls: Any) -> None:
        self.calls = set(calls)
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory (simulated)")
        self.count = 0
        self.batches: list[Any] = []

    def __call__(self, x: torch.Tensor) -> Any:
        self.count += 1
        if self.count in self.calls:
            raise self.error
        self.batches.append(len(x))
        return 2 * x


def test_out_of_memory_goes_on_with_single_windows_and_repeats_none() -> None:
    notes: list[str]
    image, notes, network = noise(1, 16, 16, 16), [], Failing({2})
    slabs = sliding_window_slabs(
        image,
        network,
        window=(8, 8, 8),
        window_batch=4,
        stitching=Stitching(note=notes.append),
    )
    torch.testing.assert_close(joined(slabs), 2 * image, rtol=1e-5, atol=1e-5)
    assert network.batches == [4] + [1] * 23  # 27 windows, each once
    assert notes == ["CPU memory ran out: windows one at a time"]


def test_out_of_memory_with_nothing_left_to_give_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(sliding_window_slabs(noise(1, 8, 8, 8), Failing({3}), window=(4, 4, 4)))


def test_memory_running_out_inside_cudnn_is_taken_for_what_it_is() -> None:
    network = Failing({1})
    network.error = RuntimeError("GET was unable to find an engine to execute this computation")
    image = noise(1, 8, 8, 8)
    slabs = sliding_window_slabs(image, network, window=(4, 4, 4), window_batch=2)
    torch.testing.assert_close(joined(slabs), 2 * image, rtol=1e-5, atol=1e-5)
    assert set(network.batches) == {1}


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(sliding_window_slabs(noise(1, 8, 8, 8), broken, window=(4, 4, 4), window_batch=2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_out_of_memory_on_cuda_ends_in_the_cpus_memory() -> None:
    notes: list[str]
    image, notes, network = noise(1, 16, 16, 16).cuda(), [], Failing({2, 5})
    slabs = sliding_window_slabs(
        image, network, window=(8, 8, 8), window_batch=4, stitching=Stitching(note=notes.append)
    )
    result = joined(slabs)
    torch.testing.assert_close(result, 2 * image, rtol=1e-5, atol=1e-5)
    assert result.is_cuda
    assert len(network.batches) == 1 + 23
    assert [note.rsplit(": ")[1] for note in notes] == [
        "windows one at a time",
        "windows stitched in the CPU's memory",
    ]


@pytest.mark.parametrize(
    ("plane_values", "planes"), [(2**10, 1024), (2**19, 4), (2**21, 2), (2**23, 1)]
)
def test_slabs_of_many_classes_have_few_planes(plane_values: Any, planes: Any) -> None:
    assert module.slab_planes(plane_values, torch.device("cpu")) == planes
