"""Resampling along voxel axes, against a float64 reference that knows nothing of axes or taps."""

from itertools import permutations, product
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from scipy import ndimage

from attunet3d.core import Array, DataError, Floats
from attunet3d.imaging.geometry import Grid, axis_map
from attunet3d.imaging.resampling import Sampler, resample
from attunet3d.imaging.taps import axis_taps

OBLIQUE = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.15], [-0.1, -0.2, 1.0]]))[0]
OBLIQUE = OBLIQUE * np.sign(np.diag(OBLIQUE))  # a rotation by some 15 degrees
SHEARED = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])  # a tilted gantry
STRAIGHT = np.eye(3)
TURNS = {"straight": STRAIGHT, "oblique": OBLIQUE, "sheared": SHEARED}
ORDERS = [
    np.eye(3)[:, order] * signs
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def make_grid(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    turn: Floats = STRAIGHT,
    order: Floats = STRAIGHT,
) -> Grid:
    """A grid of voxels of `spacing` (in its own axes' order) somewhere in the patient."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ order @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 400.0)
    return Grid(shape, affine)


def reference(array: Array, source: Grid, target: Grid) -> Floats:
    """Our rule in float64: the mean of m linear samples an axis, by full affines and scipy."""
    relation = np.abs(np.linalg.inv(source.affine) @ target.affine)[:3, :3]
    samples = np.maximum(1, (relation.max(0) + 1e-6).astype(int))
    fine = target.resized(tuple(samples * target.shape))
    index = np.stack(np.meshgrid(*map(np.arange, fine.shape), indexing="ij"), -1)
    where = np.moveaxis(source.to_index(fine.to_world(index)), -1, 0)
    values = ndimage.map_coordinates(array.astype(np.float64), where, order=1, mode="nearest")
    split = [size for pair in zip(target.shape, samples, strict=True) for size in pair]
    found: Floats = values.reshape(split).mean((1, 3, 5))
    return found


def noise(
    shape: tuple[int, int, int], dtype: type[Any] = np.int16, order: Literal["C", "F"] = "F"
) -> Array:
    values = np.random.default_rng(7).integers(-1000, 1000, shape)
    found: Array = np.array(values, dtype=dtype, order=order)
    return found


def resampled(array: Array, source: Grid, target: Grid, **settings: Any) -> Array:
    return resample(torch.from_numpy(array)[None], source, target, **settings)[0].numpy()


def test_same_grid_is_identity() -> None:
    array, grid = noise((6, 5, 4)), make_grid((6, 5, 4), (0.7, 0.8, 3.1), OBLIQUE)
    out = resampled(array, grid, Grid(grid.shape, grid.affine.copy()))
    assert out.dtype == np.float32
    assert np.array_equal(out, array)
    assert not np.shares_memory(out, array)


def test_reorienting_moves_voxels_exactly() -> None:
    array, grid = noise((6, 5, 4)), make_grid((6, 5, 4), (1.0, 2.0, 3.0), OBLIQUE, ORDERS[21])
    target = grid.oriented("RAS")
    out = resampled(array, grid, target)
    for index in np.ndindex(*target.shape):
        i, j, k = np.rint(grid.to_index(target.to_world(index))).astype(int)
        assert out[index] == array[i, j, k]


def ramp(grid: Grid) -> Floats:
    """Values that grow evenly along a slanted direction of the patient, 0 where all grids start."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return (grid.to_world(index) - (-31.0, 12.5, 400.0)) @ (3.0, -5.0, 7.0)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.9, 2.0, 4.0)])
def test_a_ramp_in_world_millimetres_survives_on_every_axis_order(
    turn: Floats, spacing: tuple[float, float, float]
) -> None:
    for order in ORDERS:
        source = make_grid((17, 15, 12), (1.0, 1.3, 1.7), turn, order)
        target = source.oriented("RAS").with_spacing(spacing)
        out = resampled(np.asfortranarray(ramp(source)), source, target)
        error = np.abs(out - ramp(target))
        assert error[1:-1, 1:-1, 1:-1].max() < 1e-3  # of values up to ±300
        assert error.max() < 20  # the border value is repeated over at most half a voxel


@pytest.mark.parametrize("memory", ["F", "C"])
@pytest.mark.parametrize(
    "spacing",
    [(0.5, 0.6, 0.7), (1.0, 1.5, 1.9), (2.0, 2.0, 2.0), (2.1, 3.0, 5.5), (0.4, 2.5, 1.0)],
)
def test_agrees_with_float64(
    spacing: tuple[float, float, float], memory: Literal["C", "F"]
) -> None:
    array = noise((19, 23, 17), order=memory)
    for order in ORDERS[::5]:
        source = make_grid(array.shape, (1.0, 1.0, 1.0), OBLIQUE, order)
        target = source.oriented("RAS").with_spacing(spacing)
        out = resampled(array, source, target)
        assert out.shape == target.shape
        np.testing.assert_allclose(out, reference(array, source, target), atol=0.02)


@pytest.mark.parametrize("memory", ["F", "C"])
def test_grids_whose_faces_do_not_meet(memory: Literal["C", "F"]) -> None:
    array, source = noise((12, 11, 10), order=memory), make_grid((12, 11, 10), (1.0, 1.2, 1.4))
    for order in ORDERS[::7]:
        affine = source.affine @ np.block([[order, np.zeros((3, 1))], [np.zeros((1, 3)), 1.0]])
        affine[:3, :3] = affine[:3, :3] * (0.8, 1.1, 2.3)
        centre = source.to_world(np.array([5.2, 4.9, 6.1]))
        affine[:3, 3] = centre - affine[:3, :3] @ (4.0, 4.0, 3.0)
        target = Grid((9, 8, 13), affine)  # partly outside the source
        out = resampled(array, source, target)
        np.testing.assert_allclose(out, reference(array, source, target), atol=0.02)


def test_agrees_with_monai_on_monais_grid() -> None:
    array = noise((20, 18, 16), np.float32)
    source = make_grid(array.shape, (0.8, 0.9, 2.0), OBLIQUE)
    target = source.with_spacing((1.1, 1.1, 1.1))
    theirs = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)(
        MetaTensor(torch.from_numpy(array)[None], affine=torch.tensor(source.affine)),
        dst_affine=torch.tensor(target.affine),
        spatial_size=target.shape,
    )
    np.testing.assert_allclose(resampled(array, source, target), theirs[0].numpy(), atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float16, np.float64])
def test_takes_any_dtype_and_several_channels_and_only_reads(dtype: type[Any]) -> None:
    source = make_grid((8, 9, 7), (1.0, 1.0, 2.0))
    target = source.with_spacing((1.5, 1.5, 1.5))
    arrays = np.abs(np.stack([noise((8, 9, 7)) % 100, noise((8, 9, 7)) % 37])).astype(dtype)
    before = arrays.copy()
    out = resample(torch.from_numpy(arrays), source, target)
    assert out.dtype == torch.float32
    for channel, array in zip(out.numpy(), before, strict=True):
        np.testing.assert_allclose(channel, reference(array, source, target), atol=0.01)
    assert np.array_equal(arrays, before)


def test_keeps_the_memory_order_of_the_scan() -> None:
    source = make_grid((8, 9, 7), (1.0, 1.0, 1.0), order=ORDERS[13])
    target = source.oriented("RAS")
    out = resample(torch.from_numpy(noise((8, 9, 7)))[None], source, target)[0]
    along = axis_map(source, target).order  # target axis -> source axis, of which 0 is the fastest
    assert [out.stride(along.index(axis)) for axis in range(3)] == [1, 8, 72]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 5), (5, 6, 1)])
def test_one_voxel_along_an_axis(shape: tuple[int, int, int]) -> None:
    array, source = noise(shape), make_grid(shape, (1.0, 1.0, 6.0))
    target = source.with_spacing((0.5, 2.0, 1.5))
    np.testing.assert_allclose(
        resampled(array, source, target), reference(array, source, target), atol=0.01
    )


def test_nearest_keeps_values_and_dtype() -> None:
    array, source = noise((6, 5, 4), np.uint8), make_grid((6, 5, 4), (1.0, 1.0, 3.0))
    target = source.oriented("LPI").resized((12, 10, 12))
    out = resampled(array, source, target, mode="nearest")
    assert out.dtype == np.uint8
    wanted = array[::-1, ::-1, ::-1].repeat(2, 0).repeat(2, 1).repeat(3, 2)
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_coarser_voxels_average_noise(ratio: int) -> None:
    shape = (12 * ratio,) * 3
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    source = make_grid(shape, (1.0, 1.0, 1.0))
    out = resampled(array, source, source.resized((12, 12, 12)))
    whole_blocks = array.reshape(12, ratio, 12, ratio, 12, ratio).mean((1, 3, 5))
    np.testing.assert_allclose(out, whole_blocks, atol=1e-5)


def test_grids_that_are_not_parallel_are_refused() -> None:
    source = make_grid((4, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="not parallel"):
        resample(torch.zeros(1, 4, 4, 4), source, make_grid((4, 4, 4), (1, 1, 1), OBLIQUE))


@pytest.mark.parametrize("voxels", [1, 100, 700, 10**6])
def test_blocks_and_parts_make_the_whole(voxels: int) -> None:
    source = make_grid((14, 12, 10), (1.0, 1.0, 2.0))
    sampler = Sampler.between(source, source.resized((9, 25, 17)), (2, 1, 0), mean=True)
    table = torch.from_numpy(noise((14, 12, 10)).T)
    whole = sampler(table)
    blocks = list(sampler.blocks(voxels))
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == 17
    for start, stop in blocks:
        part = sampler.part((start, stop), (3, 20), (2, 7))(table)
        assert torch.equal(part, whole[start:stop, 3:20, 2:7])


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 40),
    count=st.integers(1, 40),
    scale=st.floats(0.1, 6.0),
    offset=st.floats(-5.0, 45.0),
    mean=st.booleans(),
)
def test_taps_are_weighted_means_at_the_right_place(
    length: int, count: int, scale: float, offset: float, mean: bool
) -> None:
    taps = axis_taps(length, count, scale, offset, mean=mean)
    assert len(taps) == count
    assert 0 <= int(taps.index.min()) <= int(taps.index.max()) < length
    assert (taps.weight >= 0).all()
    torch.testing.assert_close(taps.weight.sum(1), torch.ones(count))
    place = (taps.weight * taps.index).sum(1).numpy()
    centre = offset + scale * np.arange(count)
    inside = (centre - scale / 2 >= 0) & (centre + scale / 2 <= length - 1)
    np.testing.assert_allclose(place[inside], centre[inside], atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 30), low=st.integers(0, 29), scale=st.floats(-3.0, 3.0))
def test_touching_finds_every_target_that_a_source_range_reaches(
    length: int, low: int, scale: float
) -> None:
    low = min(low, length - 1)
    taps = axis_taps(length, 25, scale or 1.0, 3.0, mean=False)
    seen = torch.zeros(length)
    seen[low] = 1
    values = (taps.weight * seen[taps.index]).sum(1)
    start, stop = taps.touching(low, low + 1)
    assert (values[start:stop] >= 0).all()
    assert not values[:start].any()
    assert not values[stop:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu() -> None:
    array, source = noise((40, 36, 20)), make_grid((40, 36, 20), (0.7, 0.7, 2.5), order=ORDERS[9])
    tensor = torch.from_numpy(array)[None]
    for spacing in ((1.5, 1.5, 1.5), (0.5, 0.6, 1.0)):
        target = source.oriented("RAS").with_spacing(spacing)
        cuda = resample(tensor.cuda(), source, target)
        torch.testing.assert_close(cuda.cpu(), resample(tensor, source, target), atol=0.02, rtol=0)
