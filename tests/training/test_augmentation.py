"""What a training patch goes through: the same for a seed, geometry shared, labels left whole."""

import dataclasses
import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.core import Size
from attunet3d.core.training_config import AugmentationConfig
from attunet3d.training.augmentation import Augmentation, lower_resolution

SIZE, SPACING = (25, 20, 15), (1.0, 1.5, 3.0)
PROBABILITIES = [
    field.name
    for field in dataclasses.fields(AugmentationConfig)
    if field.name.endswith("_probability")
]
Item = dict[str, Tensor]
Seed = int | list[int]
SPATIAL = {"affine_probability", "elastic_probability"}
INTENSITY = [name for name in PROBABILITIES if name not in SPATIAL]


def build(flip_axes: tuple[int, ...] = (), size: Size = SIZE, **probabilities: Any) -> Augmentation:
    """Only what is named happens, with the probability given."""
    values: dict[str, Any] = dict.fromkeys(PROBABILITIES, 0.0) | probabilities
    return Augmentation(AugmentationConfig(flip_axes=flip_axes, **values), size, SPACING)


def only(name: str, probability: float = 1.0) -> dict[str, Any]:
    return {name: probability}


def everything(size: Size = SIZE) -> Augmentation:
    always: dict[str, Any] = dict.fromkeys(PROBABILITIES, 1.0)
    return build((0, 1, 2), size, **always)


class Least:
    """Draws that are the least that can come."""

    def uniform(self, low: float, high: float) -> float:
        return low


def source_size(augmentation: Augmentation, seed: Seed) -> Size:
    """Voxels of the region that the patch of a seed is read from."""
    return augmentation.draw_placement(np.random.default_rng(seed)).source_size


def augmented(augmentation: Augmentation, item: Item, seed: Seed) -> Item:
    """The patch of a seed: as in training, placement and the rest from one generator."""
    generator = np.random.default_rng(seed)
    drawn = augmentation.draw_placement(generator)
    image, label = augmentation(item["image"], item["label"], drawn, generator)
    return {"image": image, "label": label}


def patch(size: Size = SIZE, seed: int = 0) -> Item:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *size, generator=generator)
    label = torch.randint(0, 4, (1, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": label}


def equal(a: Item, b: Item) -> bool:
    return torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, second = everything(), everything()
    seeds: tuple[Seed, ...] = (0, 7, 2**63 - 1, [3, 4, 5])
    for seed in seeds:
        item = patch(source_size(first, seed))
        once = augmented(first, item, seed)
        augmented(first, patch(), 99)  # what was drawn before leaves no trace
        assert equal(once, augmented(first, item, seed))
        assert equal(once, augmented(second, item, seed))
    item = patch()
    assert not equal(augmented(first, item, 1), augmented(first, item, 2))


@pytest.mark.parametrize("name", PROBABILITIES)
def test_bits_do_not_depend_on_the_number_of_threads(name: str) -> None:
    size = (53, 48, 61)  # large enough to be split among threads, at odd places
    augmentation = build(size=size, **only(name))
    item = patch(source_size(augmentation, 5))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(augmented(augmentation, item, 5))
    finally:
        torch.set_num_threads(before)
    assert all(equal(results[0], other) for other in results[1:])


def test_probability_zero_is_the_identity() -> None:
    item = patch()
    for seed in range(5):
        assert equal(augmented(build(), item, seed), item)
        assert source_size(build(), seed) == SIZE


def test_everything_gives_plain_tensors_of_the_patch_and_leaves_the_input_alone() -> None:
    augmentation = everything()
    for seed in range(5):
        item = patch(source_size(augmentation, seed))
        kept = {key: tensor.clone() for key, tensor in item.items()}
        result = augmented(augmentation, item, seed)
        assert equal(item, kept)
        assert type(result["image"]) is type(result["label"]) is torch.Tensor
        assert result["image"].shape == result["label"].shape == (1, *SIZE)
        assert (result["image"].dtype, result["label"].dtype) == (torch.float32, torch.uint8)
        assert bool(result["image"].isfinite().all())
        assert set(result["label"].unique().tolist()) <= {0, 1, 2, 3}


def test_mirrorings_are_exact_and_all_eight_come() -> None:
    augmentation, item = build((0, 1, 2)), patch()
    seen = set()
    for seed in range(80):
        result = augmented(augmentation, item, seed)
        for axes in itertools.chain.from_iterable(
            itertools.combinations((1, 2, 3), n) for n in range(4)
        ):
            if torch.equal(result["image"], item["image"].flip(axes)):
                assert torch.equal(result["label"], item["label"].flip(axes))
                seen.add(axes)
    assert len(seen) == 8


def test_only_the_named_axes_are_mirrored() -> None:
    augmentation, item = build((1,)), patch()
    results = [augmented(augmentation, item, seed)["image"] for seed in range(20)]
    mirrored = item["image"].flip(2)
    assert all(torch.equal(r, item["image"]) or torch.equal(r, mirrored) for r in results)
    assert 3 <= sum(torch.equal(r, mirrored) for r in results) <= 17


@pytest.mark.parametrize("seed", range(8))
def test_image_and_label_move_together_through_all_of_the_geometry(seed: int) -> None:
    augmentation = build((0, 1, 2), affine_probability=1.0, elastic_probability=1.0)
    size = source_size(augmentation, seed)
    label = torch.arange(size[0], dtype=torch.uint8).view(1, -1, 1, 1).expand(1, *size)
    result = augmented(augmentation, {"image": label.float(), "label": label}, seed)
    assert float((result["image"] - result["label"]).abs().max()) <= 0.501


@pytest.mark.parametrize("name", INTENSITY)
def test_intensities_change_and_labels_do_not(name: str) -> None:
    augmentation, item = build(**only(name)), patch()
    for seed in range(5):
        result = augmented(augmentation, item, seed)
        assert not torch.equal(result["image"], item["image"])
        assert torch.equal(result["label"], item["label"])


@pytest.mark.parametrize("name", INTENSITY)
def test_each_comes_as_often_as_asked(name: str) -> None:
    augmentation, item = build(size=(4, 4, 4), **only(name, 0.3)), patch((4, 4, 4))
    changed = sum(not equal(augmented(augmentation, item, seed), item) for seed in range(400))
    assert 0.3 * 400 - 40 < changed < 0.3 * 400 + 40  # 4 standard deviations


def test_noise_is_white_and_no_stronger_than_told() -> None:
    item = {"image": torch.zeros(1, 40, 40, 40), "label": torch.zeros(1, 40, 40, 40).byte()}
    augmentation = build(size=(40, 40, 40), noise_probability=1.0)
    deviations = []
    for seed in range(30):
        noise = augmented(augmentation, item, seed)["image"]
        deviations.append(float(noise.std()))
        assert abs(float(noise.mean())) < 0.01
    assert max(deviations) < 0.303
    assert max(deviations) > 0.2 > 0.1 > min(deviations)


def test_blur_keeps_a_constant_and_the_sum_of_a_point() -> None:
    augmentation = build(size=(21, 21, 21), blur_probability=1.0)
    label = torch.zeros(1, 21, 21, 21).byte()
    for seed in range(5):
        constant = augmented(
            augmentation, {"image": torch.full((1, 21, 21, 21), 2.0), "label": label}, seed
        )
        assert torch.allclose(constant["image"], torch.tensor(2.0), atol=1e-5)
        point = torch.zeros(1, 21, 21, 21)
        point[0, 10, 10, 10] = 1
        spread = augmented(augmentation, {"image": point, "label": label}, seed)["image"][0]
        assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
        steps = (torch.arange(21) - 10.0) ** 2
        for axis in range(3):  # variance of a Gaussian sampled at voxels, between its two widths
            profile = spread.sum(dim=[other for other in range(3) if other != axis])
            assert 0.2 < float((profile * steps).sum()) < 1.25**2 * 1.05


def test_brightness_multiplies_and_contrast_stretches_about_the_mean() -> None:
    item = patch()
    image = item["image"]
    for seed in range(10):
        brighter = augmented(build(brightness_probability=1.0), item, seed)["image"]
        factor = float(brighter.sum() / image.sum())
        assert 0.75 <= factor <= 1.25
        assert torch.allclose(brighter, image * factor, atol=1e-4)
        stretched = augmented(build(contrast_probability=1.0), item, seed)["image"]
        assert float(stretched.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
        factor = float(stretched.std() / image.std())
        assert 0.75 <= factor <= 1.25
        assert torch.allclose(stretched - image.mean(), (image - image.mean()) * factor, atol=1e-4)


def test_gamma_keeps_the_range_and_the_order_of_values() -> None:
    image = torch.linspace(-2, 3, 7500).view(1, *SIZE)
    item = {"image": image, "label": torch.zeros(1, *SIZE).byte()}
    for seed in range(10):
        bent = augmented(build(gamma_probability=1.0), item, seed)["image"].flatten()
        assert float(bent[0]) == pytest.approx(-2)
        assert float(bent[-1]) == pytest.approx(3)
        assert float(bent.diff().min()) > 0
        middle = (float(bent[3750]) + 2) / 5  # 0.5 ** gamma
        assert 0.5**1.5 - 1e-3 <= middle <= 0.5**0.7 + 1e-3
    constant = {**item, "image": torch.full((1, *SIZE), -1.5)}
    assert equal(augmented(build(gamma_probability=1.0), constant, 0), constant)


def test_low_resolution_loses_detail_and_no_range() -> None:
    item = patch()
    for seed in range(5):
        coarse = augmented(build(low_resolution_probability=1.0), item, seed)["image"]
        assert coarse.min() >= item["image"].min()
        assert coarse.max() <= item["image"].max()
        assert float(coarse.diff(dim=1).abs().mean()) < float(
            item["image"].diff(dim=1).abs().mean()
        )


@pytest.mark.parametrize("seed", range(4))
def test_low_resolution_is_nearest_down_and_linear_up(seed: int) -> None:
    image, label = patch().values()
    zoom = np.random.default_rng(seed).uniform(0.5, 1.0)
    coarse = [round(size * zoom) for size in SIZE]
    down = torch.nn.functional.interpolate(image[None], coarse, mode="nearest-exact")
    expected = torch.nn.functional.interpolate(down, SIZE, mode="trilinear")[0]
    found, same = lower_resolution(image, label, np.random.default_rng(seed))
    assert torch.allclose(found, expected, atol=1e-5)
    assert same is label


def test_low_resolution_of_two_to_one_with_numbers() -> None:
    line = torch.tensor([0.0, 10.0, 0.0, 30.0]).view(1, 4, 1, 1)
    found, _ = lower_resolution(line, line.byte(), cast(np.random.Generator, Least()))
    assert found.flatten().tolist() == [10.0, 15.0, 25.0, 30.0]  # voxels 1 and 3 are kept


def test_a_turned_region_may_come_in_half_precision() -> None:
    augmentation = build(affine_probability=1.0)
    item = patch(source_size(augmentation, 3))
    half = {**item, "image": item["image"].half()}
    whole = {**item, "image": half["image"].float()}
    assert equal(augmented(augmentation, half, 3), augmented(augmentation, whole, 3))


def test_a_larger_region_without_a_turn_is_cut_at_its_centre() -> None:
    item = patch((29, 22, 15))
    result = augmented(build(), item, 0)
    assert torch.equal(result["image"], item["image"][:, 2:27, 1:21])
    assert torch.equal(result["label"], item["label"][:, 2:27, 1:21])


def test_half_precision_comes_in_and_float32_goes_out() -> None:
    item = patch()
    half = {**item, "image": item["image"].half()}
    assert torch.equal(augmented(build(), half, 0)["image"], item["image"].half().float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_geometry_is_that_of_the_cpu() -> None:
    augmentation = build((0, 1, 2), affine_probability=1.0, elastic_probability=1.0)
    item = patch(source_size(augmentation, 4))
    on_gpu = augmented(augmentation, {key: tensor.cuda() for key, tensor in item.items()}, 4)
    assert on_gpu["image"].is_cuda
    on_cpu = augmented(augmentation, item, 4)
    assert torch.allclose(on_gpu["image"].cpu(), on_cpu["image"], atol=1e-3)
    assert (on_gpu["label"].cpu() == on_cpu["label"]).float().mean() > 0.999
    assert augmented(everything(), {key: tensor.cuda() for key, tensor in item.items()}, 4)[
        "image"
    ].is_cuda
