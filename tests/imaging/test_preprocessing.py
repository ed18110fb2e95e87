"""The body box of known bodies, the network's grid of known scans, labels brought to it."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from attunet3d.core import Array, DataError, LabelMap
from attunet3d.core.model_config import PreprocessingConfig
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.preprocessing import (
    body_box,
    label_to_network_grid,
    normalise_,
    to_network_grid,
)
from attunet3d.imaging.volume import Volume

CONFIG = PreprocessingConfig(
    spacing_mm=(2.0, 2.0, 2.0), hu_window=(-160.0, 240.0), mean_hu=40.0, std_hu=50.0
)


def scan(
    array: Array,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    signs: tuple[int, int, int] = (1, 1, 1),
) -> Volume:
    affine = np.diag([*np.multiply(spacing, signs), 1.0])
    affine[:3, 3] = (-100.0, 20.0, 5.0)
    return Volume(np.asfortranarray(array), Grid(array.shape, affine))


def ellipse(
    shape: tuple[int, int, int] = (160, 140, 40),
    centre: tuple[int, int, int] = (80, 60, 20),
    radii: tuple[int, int] = (50, 35),
) -> Array:
    """A cylinder of soft tissue with lungs in it, in air: body from centre − radius to + radius."""
    x, y, _ = np.ogrid[: shape[0], : shape[1], : shape[2]]
    rings = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
    array = np.full(shape, -1000, np.int16)
    array[np.broadcast_to(rings <= 1, shape)] = 40
    array[np.broadcast_to(rings <= 0.3, shape)] = -850
    return array


def assert_around(part: slice, low: int, high: int, slack: int = 14) -> None:
    assert low - slack <= part.start <= low
    assert high <= part.stop <= high + slack


def test_body_box_of_an_ellipse() -> None:
    box = body_box(scan(ellipse()))
    assert_around(box[0], 30, 131)
    assert_around(box[1], 25, 96)
    assert box[2] == slice(0, 40)


def test_the_body_box_leaves_eight_millimetres_and_what_was_not_examined() -> None:
    array = np.full((80, 80, 80), -1000, np.int16)
    array[20:61, 24:57, 28:53] = 40  # every fourth voxel is examined: to 60, 56, 52
    margin = 4 + 8 - 1
    limits = ((20, 60), (24, 56), (28, 52))
    wanted = tuple(slice(low - margin, high + margin + 1) for low, high in limits)
    assert body_box(scan(array)) == wanted


def test_table_and_noise_are_left_out() -> None:
    array = ellipse()
    array[20:140, 120:123] = 150  # a table, three millimetres thick, 25 mm under the body
    array[70:90, 94:121, 5] = -300  # a strap that joins them
    noise = np.random.default_rng(3).normal(0, 60, array.shape)
    box = body_box(scan((array + noise).astype(np.int16)))
    assert_around(box[0], 30, 131)
    assert_around(box[1], 25, 96)


def test_both_legs_are_body() -> None:
    x, y = np.ogrid[:160, :140]
    legs = np.minimum(np.hypot(x - 40, y - 60) - 20, np.hypot(x - 120, y - 60) - 14)
    array = np.repeat(np.where(legs <= 0, 40, -1000)[..., None], 40, 2).astype(np.int16)
    box = body_box(scan(array))
    assert_around(box[0], 20, 135)


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3))[::3])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_body_box_follows_the_axes(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    flips = tuple(slice(None, None, sign) for sign in signs)
    turned = body_box(scan(ellipse()[flips].transpose(order)))
    plain = body_box(scan(ellipse()))
    for axis, part in zip(order, turned, strict=True):
        assert abs((part.stop - part.start) - (plain[axis].stop - plain[axis].start)) <= 8


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.full((30, 20, 10), -1000, np.int16), "all air"),
        (np.zeros((30, 20, 10), np.int16), "constant"),
        (np.full((7, 6, 5), 40, np.int16), "tiny"),
        (np.full((1, 1, 1), 40, np.int16), "one voxel"),
        (np.linspace(0, 255, 6000).reshape(30, 20, 10).astype(np.float32), "not HU"),
        (np.full((30, 20, 10), np.nan, np.float32), "no number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_air_or_body_the_box_is_the_scan(array: Array, why: str) -> None:
    assert body_box(scan(array)) == tuple(slice(0, size) for size in array.shape), why


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_has_a_body(axis: int) -> None:
    array = np.moveaxis(ellipse()[:, :, :1], 2, axis)
    box = body_box(scan(array))
    assert box[axis] == slice(0, 1)
    assert sum(part.stop - part.start for part in box) < 160 + 140


def test_network_grid_is_ras_at_the_spacing_and_values_are_normalised() -> None:
    volume = scan(ellipse(), spacing=(1.0, 1.0, 4.0), signs=(-1, -1, 1))
    before = volume.array.copy()
    image = to_network_grid(volume, CONFIG)
    assert image.grid.axis_codes == "RAS"
    np.testing.assert_allclose(image.grid.spacing_mm, 2.0, atol=0.03)
    assert image.tensor.shape == (1, *image.grid.shape)
    assert image.tensor.dtype == torch.float32
    assert float(image.tensor.min()) == pytest.approx((-160 - 40) / 50)
    # The soft tissue in front of the lungs, found by its world position.
    at = volume.grid.to_world((80, 60 + 30, 20))
    x, y, z = np.rint(image.grid.to_index(at)).astype(int)
    assert float(image.tensor[0, x, y, z]) == pytest.approx(0.0, abs=1e-5)
    assert np.array_equal(volume.array, before)


def test_uncropped_grid_covers_the_scan() -> None:
    volume = scan(ellipse(), spacing=(1.0, 1.0, 4.0))
    image = to_network_grid(volume, CONFIG.__class__(**{**vars(CONFIG), "crop_to_body": False}))
    assert image.grid.shape == (80, 70, 80)


def test_read_only_memory_and_any_dtype_are_taken() -> None:
    array = ellipse()
    wanted = to_network_grid(scan(array), CONFIG).tensor
    array.flags.writeable = False
    for same in (array, array.astype(np.float32), np.ascontiguousarray(array)):
        volume = Volume(same, scan(ellipse()).grid)
        found = to_network_grid(volume, CONFIG).tensor
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_each_scans_own_statistics() -> None:
    config = PreprocessingConfig(spacing_mm=(2.0, 2.0, 2.0), normalisation="volume")
    tensor = to_network_grid(scan(ellipse()), config).tensor
    assert float(tensor.mean()) == pytest.approx(0, abs=1e-3)
    assert float(tensor.std()) == pytest.approx(1, abs=1e-3)
    constant = to_network_grid(scan(np.full((9, 8, 7), 40, np.int16)), config).tensor
    assert not constant.any()
    faint = torch.tensor([0.0, 0.5])  # a deviation of 0.25, below one HU
    torch.testing.assert_close(normalise_(faint, config), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("name", ["spacing_mm", "mean_hu", "std_hu"])
def test_what_the_plan_left_open_is_named(name: str) -> None:
    config = PreprocessingConfig(**{**vars(CONFIG), name: None})
    with pytest.raises(DataError, match=f"preprocessing.{name} is not set"):
        to_network_grid(scan(ellipse()), config)


def labels(shape: tuple[int, int, int] = (24, 22, 20)) -> LabelMap:
    """Two touching organs (values 2 and 5) and an unlisted one (9)."""
    array = np.zeros(shape, np.uint8, order="F")
    array[4:12, 4:14, 4:16] = 2
    array[12:20, 4:14, 4:16] = 5
    array[4:8, 16:20, 4:8] = 9
    return array


def test_labels_become_classes_without_a_third_one_between() -> None:
    label = scan(labels())
    grid = label.grid.oriented("LPI").with_spacing((0.7, 0.7, 0.7))
    classes = label_to_network_grid(label, grid, [0, 2, 5])
    assert classes.dtype == torch.uint8
    assert tuple(classes.shape) == grid.shape
    assert set(classes.unique().tolist()) == {0, 1, 2}
    shares = [float((classes == c).sum()) * grid.voxel_volume_ml for c in (1, 2)]
    np.testing.assert_allclose(shares, 8 * 10 * 12 / 1000, rtol=0.1)  # corners are rounded


def test_label_rule_is_linear_per_class_then_the_strongest() -> None:
    label = scan(np.random.default_rng(5).integers(0, 4, (13, 11, 9)).astype(np.uint8))
    grid = label.grid.oriented("LAS").with_spacing((1.3, 0.8, 2.6))
    classes = label_to_network_grid(label, grid, [0, 1, 2, 3])
    from attunet3d.imaging.resampling import resample  # tested against float64 on its own

    masks = torch.stack([torch.from_numpy(label.array == value) for value in range(4)])
    shares = resample(masks.to(torch.uint8), label.grid, grid)
    first, second = shares.topk(2, dim=0).values
    clear = first - second > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(classes[clear].long(), shares.argmax(0)[clear])


def test_ties_go_to_the_structure_so_that_thin_ones_stay() -> None:
    array = np.zeros((12, 12, 12), np.uint8, order="F")
    array[:, :, 5] = 1  # one voxel thick, half a network voxel
    label = scan(array)
    classes = label_to_network_grid(label, label.grid.resized((6, 6, 6)), [0, 1])
    assert classes[:, :, 2].all()
    assert int(classes.sum()) == 36


def test_ignored_voxels_stay_marked() -> None:
    array = labels()
    array[:, :, 18:] = 255
    label = scan(array)
    grid = label.grid.resized((12, 11, 10))
    classes = label_to_network_grid(label, grid, [0, 2, 5], ignore_value=255)
    assert (classes[:, :, 9] == 255).all()
    assert (classes[:, :, :9] < 3).all()


def test_a_label_without_the_ignored_value_is_as_without_the_rule() -> None:
    label = scan(labels())
    grid = label.grid.resized((12, 11, 10))
    plain, ruled = (
        label_to_network_grid(label, grid, [0, 2, 5], **k) for k in ({}, {"ignore_value": 255})
    )
    assert torch.equal(plain, ruled)


def test_labels_of_the_same_grid_are_looked_up() -> None:
    label = scan(labels())
    before = label.array.copy()
    classes = label_to_network_grid(label, label.grid, [0, 2, 5, 9]).numpy()
    assert np.array_equal(np.array([0, 2, 5, 9])[classes], before)
    assert np.array_equal(label.array, before)


def test_an_empty_label_is_background() -> None:
    label = scan(np.zeros((5, 6, 7), np.uint8))
    grid = label.grid.resized((3, 3, 3))
    assert not label_to_network_grid(label, grid, [0, 1, 2]).any()
