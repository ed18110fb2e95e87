"""Predictor: the answer of a known network, on the scan's grid, whatever the way taken."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from attunet3d.core import DeviceError, ModelError, SettingsError, machine
from attunet3d.core.model_config import InferenceConfig, NetworkConfig
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume
from attunet3d.inference import memory
from attunet3d.inference.forward_pass import average, make_forward_pass, mirrored
from attunet3d.inference.inferer import Inferer, Member
from attunet3d.inference.memory import pass_bytes, why_not_whole
from attunet3d.inference.predictor import Predictor
from attunet3d.models import Checkpoint
from attunet3d.models.attention_unet import AttentionUNet3D
from tests.known_network import (
    NESTED,
    REGIONS,
    SHAPE,
    NestedNetwork,
    ThresholdNetwork,
    ball,
    ball_volume,
    checkpoint,
    dice,
    nested,
)


def predictor(
    *settings: str, network: Any = None, memory: int | None = None, **changes: Any
) -> Predictor:
    return Predictor([checkpoint(network, **changes)], "cpu", settings, memory=memory)


class Broken(ThresholdNetwork):
    """Gives a value that is not finite."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        logits[:, 1, 0, 0, 0] = self.value
        return logits


class Hungry(ThresholdNetwork):
    """Runs out of CUDA memory on more than a window."""

    def forward(self, x: torch.Tensor) -> Any:
        if x.numel() > 16**3:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return super().forward(x)


# --- the answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["window", "whole"])
@pytest.mark.parametrize("batch", [1, 4])
def test_equal_spacing_gives_the_ball_voxel_by_voxel(mode: str, batch: int) -> None:
    volume = ball_volume()
    here = predictor(f"inference.mode={mode}", f"inference.window_batch={batch}")
    segmentation = here.predict(volume)
    assert np.array_equal(segmentation.array == 5, volume.array == 300)
    assert segmentation.array.dtype == np.uint8
    assert segmentation.array.flags.f_contiguous
    assert np.array_equal(segmentation.grid.affine, volume.grid.affine)
    assert segmentation.labels == {0: "background", 5: "ball"}


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_any_orientation_and_spacing(
    axes: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * (0.9, 1.1, 3.0)[axis]
    i, j, k = ((60, 56, 20)[axis] for axis in axes)
    volume = ball_volume((i, j, k), affine, radius_mm=20)
    found = predictor().predict(volume).array == 5
    assert dice(found, volume.array == 300) > 0.95


def test_scans_of_other_libraries_are_answered_in_kind() -> None:
    here, volume = predictor(), ball_volume()
    expected = here.predict(volume).array
    image = nibabel.Nifti1Image(volume.array, volume.grid.affine)
    assert np.array_equal(here.predict((volume.array, volume.grid.affine)), expected)
    found = here.predict(image)
    assert isinstance(found, nibabel.Nifti1Image)
    assert np.array_equal(np.asanyarray(found.dataobj), expected)


def test_scan_smaller_than_the_window() -> None:
    volume = ball_volume((7, 6, 5), np.diag([2.0, 2, 2, 1]), radius_mm=3)
    assert np.array_equal(predictor().predict(volume).array == 5, volume.array == 300)


def test_models_are_averaged_in_their_logits() -> None:
    # 150 HU lies above the mean threshold of 0.5 and 2.3, and below the second alone.
    volume = ball_volume(value=150)
    both = Predictor(
        [checkpoint(ThresholdNetwork(0.5)), checkpoint(ThresholdNetwork(2.3))], device="cpu"
    )
    assert np.array_equal(both.predict(volume).array == 5, volume.array == 150)
    assert not predictor(network=ThresholdNetwork(2.3)).predict(volume).array.any()


def test_record_tells_what_was_done() -> None:
    record = predictor("inference.overlap=0.25").segment(ball_volume()).record
    assert record.model == "f" * 64
    assert record.settings["overlap"] == 0.25
    assert record.settings["window"] == [16, 16, 16]  # the training patch
    assert (record.mode, record.precision, record.device) == ("window", "float32", "cpu")
    assert record.fallbacks == []
    assert set(record.seconds) == {"preprocessing", "network", "decision", "doubt", "maps"}
    assert all(seconds >= 0 for seconds in record.seconds.values())


def test_settings_that_change_no_label_map_do_not_count() -> None:
    assert predictor("inference.window_batch=4").settings == predictor().settings
    assert predictor("inference.overlap=0.25").settings != predictor().settings


def test_warnings_of_the_scan_are_passed_on() -> None:
    scan = ball_volume()
    volume = Volume(scan.array, scan.grid, warnings=("odd header",), name="odd.nii.gz")
    assert "odd header" in predictor().segment(volume).record.warnings


def test_several_threads_may_call() -> None:
    here, volumes = predictor(), [ball_volume(radius_mm=r) for r in (5, 8, 11, 14)]
    with ThreadPoolExecutor(4) as pool:
        for volume, found in zip(volumes, pool.map(here.predict, volumes), strict=True):
            assert np.array_equal(found.array == 5, volume.array == 300)


def test_network_that_gives_no_number_is_refused_by_the_cases_name() -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ModelError, match=r"ball\.nii\.gz: the network gave NaN or infin"):
            predictor(network=Broken(value)).predict(ball_volume())


def test_largest_component_only() -> None:
    array = ball(radius_mm=8)
    array[0, 0, 0] = 300
    volume = Volume(array, Grid(SHAPE, np.diag([2.0, 2, 2, 1])), name="two.nii.gz")
    assert predictor().predict(volume).array[0, 0, 0] == 5
    cleaned = predictor("inference.keep_largest=[ball]").predict(volume).array
    assert cleaned[0, 0, 0] == 0
    assert np.count_nonzero(cleaned) == np.count_nonzero(array) - 1


def test_a_region_that_another_cuts_in_two_stays_whole() -> None:
    array = nested()
    volume = Volume(array, Grid(SHAPE, np.diag([2.0, 2, 2, 1])), name="nested.nii.gz")
    model = checkpoint(NestedNetwork(), *REGIONS, labels=NESTED)
    found = Predictor([model], "cpu", ["inference.keep_largest=[whole]"]).segment(volume)
    assert found.segmentation.regions == {1: (1, 2), 2: (2,)}
    wanted = array > 0
    wanted[24:26] = False
    assert np.array_equal(found.segmentation.mask_of(1), wanted)
    assert np.array_equal(found.segmentation.mask_of(2), array == 800)
    p = 1 / (1 + np.exp(1 - array / 100.0))
    inside = p[array > 0]
    wanted_dice = 2 * inside.sum() / (p.sum() + inside.size + 1)
    assert found.record.expected_dice["whole"] == pytest.approx(wanted_dice, rel=1e-3)


def test_models_of_other_regions_are_refused() -> None:
    other = ["training.regions=[[1, 2, 3], [2]]", REGIONS[1]]
    members = [checkpoint(NestedNetwork(), *own, labels=NESTED) for own in (REGIONS, other)]
    with pytest.raises(
        ModelError, match=r"its regions differs from the first model's: 1 \(1, 2, 3"
    ):
        Predictor(members, "cpu")


# --- maps ------------------------------------------------------------------------------------


def test_probabilities_belong_to_the_label_map() -> None:
    volume = ball_volume()
    prediction = predictor().segment(volume, probabilities=True)
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (*SHAPE, 1)
    assert prediction.attention is None
    sigmoid = 1 / (1 + np.exp(1 - volume.array / 100.0))
    assert prediction.probabilities is not None
    assert np.allclose(prediction.probabilities[..., 0], sigmoid, atol=1e-5)
    assert np.array_equal(prediction.segmentation.array == 5, sigmoid > 0.5)


def test_attention_maps_are_those_of_the_network() -> None:
    volume = ball_volume()
    prediction = predictor("inference.mode=whole").segment(volume, attention=True)
    assert prediction.probabilities is None
    assert prediction.attention is not None
    assert prediction.attention.shape == (*SHAPE, 2)
    middle = tuple(n // 2 for n in SHAPE)
    assert prediction.attention[middle] == pytest.approx([0.952574, 0.047426], abs=1e-4)
    assert prediction.attention[0, 0, 0] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert np.array_equal(prediction.segmentation.array == 5, volume.array == 300)


@pytest.mark.parametrize("gate", ["none", "double"])  # two levels: only the ungated finest skip
def test_attention_of_a_network_without_gates_is_refused_before_it_runs(gate: str) -> None:
    network = AttentionUNet3D(channels=(2, 4), gate=gate).eval()
    member = checkpoint(network, "network.channels=[2, 4]", f"network.gate={gate}")
    plain = Predictor([member], "cpu")
    plain.inferer.slabs = None  # type: ignore[assignment, method-assign]  # never called
    with pytest.raises(ModelError, match="no attention gates; leave attention maps out"):
        plain.segment(ball_volume(), attention=True)
    predictor().require_attention()


def test_maps_are_handed_on_while_they_are_computed_and_cover_the_scan_once() -> None:
    shares: list[Any] = []
    volume, seen = ball_volume(), np.zeros(SHAPE)
    wanted: Any = predictor().segment(volume, probabilities=True).probabilities

    class Kept:
        def write(self, box: Any, values: Any) -> None:
            seen[box] += 1
            np.testing.assert_array_equal(values[0], wanted[box][..., 0])

    predictor().segment_into(volume, ["probabilities"], lambda kind, count: Kept(), shares.append)
    assert (seen == 1).all()
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_sigmoid_per_class_gives_sigmoid_probabilities_and_labels_above_one_half() -> None:
    # Logits (5, x - 1): the background's own sigmoid decides nothing.
    class Independent(ThresholdNetwork):
        def forward(self, x: torch.Tensor) -> Any:
            logits = super().forward(x)
            logits[:, 0] = 5.0
            return logits

    member = checkpoint(Independent(), "training.loss=bce")
    here, volume = Predictor([member], "cpu"), ball_volume()
    prediction = here.segment(volume, probabilities=True)
    sigmoid = 1 / (1 + np.exp(1 - volume.array / 100.0))
    assert prediction.probabilities is not None
    assert np.allclose(prediction.probabilities[..., 0], sigmoid, atol=1e-5)
    assert np.array_equal(prediction.segmentation.array == 5, sigmoid > 0.5)
    assert np.array_equal(here.predict(volume).array == 5, sigmoid > 0.5)  # through the margin
    assert prediction.record.activation == "sigmoid"


# --- the way taken ---------------------------------------------------------------------------


def attention_unet(
    *settings: str, norm: str = "batch", memory: int | None = 24 * 10**9
) -> Predictor:
    torch.manual_seed(0)
    network = AttentionUNet3D(channels=(2, 4), norm=norm).eval()
    own = ["network.channels=[2, 4]", f"network.norm={norm}"]
    return Predictor([checkpoint(network, *own)], "cpu", settings, memory=memory)


def mode(here: Predictor) -> str:
    return here.segment(ball_volume()).record.mode


def test_one_pass_is_the_default_where_the_budget_allows_it_and_windows_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = attention_unet().inferer.pass_bytes(ball().size)
    assert mode(attention_unet()) == "whole"
    assert mode(attention_unet(memory=round(need / 0.5 + 1))) == "whole"
    assert mode(attention_unet(memory=round(need / 0.5 - 1))) == "window"
    assert mode(attention_unet("inference.mode=window")) == "window"
    monkeypatch.setattr(memory, "available_bytes", lambda device: need + 1)
    assert mode(attention_unet()) == "whole"  # whatever is free


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_networks_that_normalise_over_their_input_see_windows_unless_told_otherwise(
    norm: str,
) -> None:
    assert mode(attention_unet(norm=norm)) == "window"
    assert mode(attention_unet("inference.mode=whole", norm=norm)) == "whole"


def test_networks_of_which_nothing_is_known_see_windows_unless_told_otherwise() -> None:
    assert mode(predictor()) == "window"
    assert mode(predictor("inference.mode=whole")) == "whole"


def test_the_default_budget_is_the_class_of_the_machine_and_the_record_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 25_438_126_080)
    assert attention_unet(memory=None).segment(ball_volume()).record.memory_budget_gb == 24


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("mps", 0.5), ("cuda", 0.8)])
def test_one_pass_takes_its_share_of_the_budget(device: str, share: float) -> None:
    budget, here = 10**9, torch.device(device)
    assert why_not_whole(int(share * budget), 1, here, budget) is None
    reason = why_not_whole(int(share * budget) + 1, 1, here, budget)
    assert reason is not None
    assert "too much for a budget of 1 GB" in reason


def test_whole_that_does_not_fit_the_budget_is_done_in_windows_and_told() -> None:
    volume = ball_volume()
    prediction = predictor("inference.mode=whole", memory=10**6).segment(volume)
    assert prediction.record.mode == "window"
    assert "too much for a budget of 0.001 GB" in prediction.record.fallbacks[0]
    assert np.array_equal(prediction.segmentation.array == 5, volume.array == 300)


@pytest.mark.parametrize("setting", ["inference.mode=whole", "inference.mode=window"])
def test_what_does_not_fit_the_free_memory_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    network = ThresholdNetwork()
    with pytest.raises(DeviceError, match=r"needs about .* of which 0\.0 GB are free; "):
        predictor(setting, network=network).segment(ball_volume())
    assert network.calls == 0


def test_memory_running_out_in_one_pass_is_an_error_and_never_another_label_map() -> None:
    with pytest.raises(DeviceError, match=r"memory ran out in one pass .*; .*--memory"):
        predictor("inference.mode=whole", network=Hungry()).segment(ball_volume())


def test_an_ensemble_needs_what_its_largest_member_needs() -> None:
    small, large = (
        Member(cast(Any, ThresholdNetwork()), NetworkConfig(channels=channels))
        for channels in ((2, 4), (16, 32))
    )
    config, cpu = InferenceConfig(window=(16, 16, 16)), torch.device("cpu")
    need = [
        Inferer(members, config, 2, cpu, budget=1).pass_bytes(1000)
        for members in ([small, large], [large, small], [large])
    ]
    assert need[0] == need[1] == need[2]


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_by_choice_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: native)
    prediction = predictor("inference.precision=bfloat16").segment(ball_volume())
    assert prediction.record.precision == ("bfloat16" if native else "float32")
    assert bool(prediction.record.fallbacks) == (not native)
    assert np.array_equal(prediction.segmentation.array == 5, ball() == 300)


def test_mirroring_runs_eight_times_and_keeps_a_symmetric_answer() -> None:
    network = ThresholdNetwork()
    plain = predictor(network=network).predict(ball_volume())
    calls = network.calls
    mirror = predictor("inference.mirror=true", network=network).predict(ball_volume())
    assert network.calls == 9 * calls
    assert np.array_equal(plain.array, mirror.array)


@pytest.mark.parametrize(
    ("flip_axes", "label", "calls"),
    [
        ("[0, 1, 2]", "ball", 8),
        ("[1]", "ball", 2),
        ("[]", "ball", 1),
        ("[0, 1]", "left ball", 2),  # left and right stay
        ("[0]", "ball_r", 1),
    ],
)
def test_mirroring_takes_the_axes_of_training_but_not_left_and_right(
    flip_axes: str, label: str, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = ThresholdNetwork()
    setting = f"augmentation.flip_axes={flip_axes}"
    member = checkpoint(network, setting, labels={0: "background", 5: label})
    settings = ["inference.mirror=true", "inference.mode=whole"]
    Predictor([member], "cpu", settings).predict(ball_volume())
    assert network.calls == calls
    assert ("inference.mirror changes nothing" in caplog.text) == (calls == 1)


def test_mirrored_takes_the_mean_over_every_flip() -> None:
    x = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(60.0).reshape(1, 1, 3, 4, 5)
    # A network that adds a ramp adds its mean over the eight flips: the ramp's middle, 29.5.
    torch.testing.assert_close(mirrored(lambda part: part + ramp, (0, 1, 2))(x), x + 29.5)
    middle = (ramp + ramp.flip(4)) / 2
    torch.testing.assert_close(mirrored(lambda part: part + ramp, (2,))(x), x + middle)


def test_average_leaves_what_it_averages_alone() -> None:
    outputs = [torch.ones(2), torch.full((2,), 4.0)]
    assert average([lambda x: outputs[0], lambda x: outputs[1]])(torch.zeros(1)).tolist() == [
        2.5,
        2.5,
    ]
    assert outputs[0].tolist() == [1, 1]


def test_networks_are_prepared_once() -> None:
    inferer = predictor().inferer
    assert inferer.forward_pass(torch.float32) is inferer.forward_pass(torch.float32)
    assert inferer.forward_pass(torch.float32) is not inferer.forward_pass(
        torch.float32, attention=True
    )


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_prepared_network_computes_what_the_network_does(norm: str) -> None:
    torch.manual_seed(0)
    network = AttentionUNet3D(channels=(4, 8, 16), norm=norm).eval()
    x = torch.randn(1, 1, 20, 16, 12)
    with torch.no_grad():
        wanted, maps = network.forward_with_attention(x)
    cpu = torch.device("cpu")
    torch.testing.assert_close(
        make_forward_pass(network, cpu, torch.float32)(x), wanted, rtol=0, atol=1e-5
    )
    fast = make_forward_pass(network, cpu, torch.bfloat16)(x)
    assert fast.dtype == torch.float32
    assert float((fast - wanted).abs().max() / wanted.abs().max()) < 0.1
    both = make_forward_pass(network, cpu, torch.float32, attention=True)(x)
    assert both.shape == (1, 2 + sum(part.shape[1] for part in maps), 20, 16, 12)
    torch.testing.assert_close(both[:, :2], wanted, rtol=0, atol=1e-5)
    assert 0 <= float(both[:, 2:].min()) <= float(both[:, 2:].max()) <= 1


@pytest.mark.parametrize("split", [False, True])
def test_estimate_is_above_the_tensors_of_the_last_block_and_linear_in_voxels(split: bool) -> None:
    config = NetworkConfig(strides=((2, 2, 2),) * 4)
    voxel = pass_bytes(config, 2, 1, torch.float32, split=split)
    if split:
        assert voxel >= 4 * (16 + 16 + 32 / 2 + 16 / 2 + 32 / 8)  # skip, sum, parts, from below
    else:
        assert voxel >= 4 * (48 + 48 + 16)  # skip + upsampled, their concatenation, one output
    assert pass_bytes(config, 2, 10**6, torch.float32, split=split) == voxel * 10**6
    assert pass_bytes(config, 2, 1, torch.bfloat16, split=split) * 2 == voxel


def test_estimate_grows_with_logits_and_where_the_decoder_cannot_be_split() -> None:
    config = NetworkConfig(strides=((2, 2, 2),) * 4)
    many = pass_bytes(config, 118, 1, torch.float32, split=True)
    assert many >= 1650  # bytes, as measured
    assert pass_bytes(replace(config, deep_supervision="none"), 118, 1, torch.float32) < many
    split = pass_bytes(config, 2, 1, torch.float32, split=True)
    for other in ({"norm": "instance"}, {"strides": ((1, 2, 2),) * 4}, {"norm": "group"}):
        assert pass_bytes(replace(config, **other), 2, 1, torch.float32, split=True) > split


# --- what is refused -------------------------------------------------------------------------


def test_settings_that_are_the_models_own_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"only inference\.\*"):
        predictor("preprocessing.spacing_mm=[1,1,1]")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("labels", checkpoint(labels={0: "background", 5: "liver"})),
        ("preprocessing", checkpoint(None, "preprocessing.std_hu=50")),
        ("window", checkpoint(None, "training.patch_size=[8,16,16]")),
        ("activation", checkpoint(None, "training.loss=bce")),
    ],
)
def test_models_of_an_ensemble_must_agree(name: str, other: Checkpoint) -> None:
    with pytest.raises(ModelError, match=f"its {name} .* must agree"):
        Predictor([checkpoint(), other], "cpu")


def test_settings_that_differ_in_an_ensemble_are_named_one_by_one() -> None:
    other = checkpoint(None, "preprocessing.std_hu=50", "preprocessing.crop_to_body=true")
    with pytest.raises(ModelError) as caught:
        Predictor([checkpoint(), other], "cpu")
    assert str(caught.value) == (
        "known.safetensors: its preprocessing differs from the first model's: std_hu 50.0 instead"
        " of 100.0, crop_to_body True instead of False; models used together must agree"
    )


def test_a_window_given_by_hand_makes_other_patches_agree() -> None:
    other = checkpoint(None, "training.patch_size=[8,16,16]")
    both = Predictor([checkpoint(), other], "cpu", ["inference.window=[16,8,8]"])
    assert both.settings["window"] == [16, 8, 8]


def test_no_window_and_no_model_are_refused() -> None:
    bare = checkpoint(None, "training.patch_size=")
    with pytest.raises(ModelError, match="holds no window"):
        Predictor([bare], "cpu")
    with pytest.raises(ModelError, match="no model was given"):
        Predictor.load([])


def test_fingerprint_of_an_ensemble_does_not_depend_on_its_order() -> None:
    a, b = checkpoint(checksum="a" * 64), checkpoint(checksum="b" * 64)
    assert Predictor([a, b], "cpu").checksum == Predictor([b, a], "cpu").checksum
    assert Predictor([a, b], "cpu").checksum != Predictor([a], "cpu").checksum
    assert Predictor([a], "cpu").checksum == "a" * 64


# --- CUDA ------------------------------------------------------------------------------------


class HalfBroken(nn.Module):
    """Right in float32, wrong in bfloat16: what a broken kernel looks like."""

    divisor = (4, 4, 4)

    def __init__(self, broken: Any) -> None:
        super().__init__()
        self.network = ThresholdNetwork()
        self.broken = broken

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.network(x)
        wrong = self.broken and torch.is_autocast_enabled("cuda")
        return -logits if wrong else logits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["window", "whole"])
def test_bfloat16_on_cuda_is_held_to_float32(mode: str) -> None:
    for broken, precision in ((True, "float32"), (False, "bfloat16")):
        member = checkpoint(HalfBroken(broken))
        prediction = Predictor([member], "cuda", [f"inference.mode={mode}"]).segment(ball_volume())
        assert prediction.record.precision == precision
        assert bool(prediction.record.fallbacks) == broken
        assert np.array_equal(prediction.segmentation.array == 5, ball() == 300)
