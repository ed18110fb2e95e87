"""From a scan in Hounsfield units to the network's input, deterministically.

The steps are: crop to the body, resample to the network's spacing in RAS order, clip to the
Hounsfield window, normalise. Each changes the grid or the values; mapping logits back to the scan
needs only the two grids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from attunet3d.core import Array, Box, DataError, Mask, PreprocessingConfig, Size
from attunet3d.imaging.components import large_components
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.resampling import Sampler, memory_order, resample
from attunet3d.imaging.volume import Volume

BODY_HU = -500  # halfway between air and water; below it lie air, lung and most table foam
SAMPLE_MM = 4.0  # distance between the voxels examined for the body box
MARGIN_MM = 8.0  # kept around the body: two of those distances
TIE = 1e-4  # fractions that differ by less are equal: they are sums of float32 weights
BODY_SHARE = 0.25  # components at least this large relative to the largest count as body (legs)


@dataclass(frozen=True, eq=False)
class NetworkImage:
    """A network's input."""

    tensor: Tensor
    """(1, X, Y, Z) float32, axes towards R, A, S, normalised; in the scan's memory order."""
    grid: Grid


def body_box(volume: Volume) -> Box:
    """The box of voxels around the body, without the air around it and the table under it.

    One voxel every few millimetres is examined. Morphological opening removes thin sheets (table,
    blanket); of the rest, the large connected components are kept. The box is the whole scan where
    there is no air, or only air.

    Example:
        >>> array = np.full((60, 60, 30), -1000, np.int16)
        >>> array[20:40, 20:40] = 40
        >>> body_box(Volume(array, Grid(array.shape, np.diag([2.0, 2.0, 4.0, 1.0]))))
        (slice(15, 44, None), slice(15, 44, None), slice(0, 30, None))
    """
    spacing = volume.grid.spacing_mm
    steps = [max(1, int(SAMPLE_MM / size)) for size in spacing]
    sampled = volume.array[tuple(slice(None, None, step) for step in steps)]
    body = _body(sampled > BODY_HU)
    parts = []
    for axis, (step, size) in enumerate(zip(steps, volume.grid.shape, strict=True)):
        hit = np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(hit):
            return _whole(volume.grid.shape)
        margin = step + int(np.ceil(MARGIN_MM / spacing[axis])) - 1  # step: not examined
        start, stop = int(hit[0]) * step - margin, int(hit[-1]) * step + margin + 1
        parts.append(slice(max(0, start), min(size, stop)))
    return parts[0], parts[1], parts[2]


def to_network_grid(
    volume: Volume, config: PreprocessingConfig, device: torch.device | str = "cpu"
) -> NetworkImage:
    """Crop, resample, reorient, clip and normalise a scan.

    Args:
        volume: The scan in HU; not modified.
        config: With a spacing, and with mean and deviation where `normalisation` is "dataset".
        device: Where to resample and to return the result.

    Raises:
        DataError: A required setting is not set.
    """
    box, target = network_grid(volume, config)
    body = volume.cropped(box)
    array = body.array
    if torch.device(device).type != "cpu":
        array = np.array(array, order="K")  # contiguous; else the copy to the GPU reorders it
    scan = as_tensor(array)[None].to(device)
    image = resample(scan, body.grid, target)
    return NetworkImage(normalise_(image, config), target)


def network_grid(volume: Volume, config: PreprocessingConfig) -> tuple[Box, Grid]:
    """The box of a scan that the network gets, and the grid that it is resampled to.

    Raises:
        DataError: A required setting is not set.
    """
    _require_resolved(config)
    assert config.spacing_mm is not None
    box = body_box(volume) if config.crop_to_body else _whole(volume.grid.shape)
    return box, volume.grid.cropped(box).oriented("RAS").with_spacing(config.spacing_mm)


def normalise_(image: Tensor, config: PreprocessingConfig) -> Tensor:
    """Clip `image` (any shape, float32, HU) to the window and shift and scale it, in place."""
    if config.hu_window is not None:
        image.clamp_(*config.hu_window)
    if config.normalisation == "volume":
        deviation, mean = torch.std_mean(image, correction=0)
        return image.sub_(mean).div_(deviation.clamp(min=1e-3))  # a constant scan becomes zeros
    return image.sub_(config.mean_hu or 0.0).div_(config.std_hu or 1.0)


@torch.no_grad()
def label_to_network_grid(
    label: Volume, grid: Grid, values: Sequence[int], *, ignore_value: int | None = None
) -> Tensor:
    """Resample a label map to the network's grid: each class's mask linearly, then the largest.

    A network voxel gets the class that fills most of it, as far as linear sampling tells. Ties
    with background go to the structure, so that a structure one voxel thick does not vanish; ties
    between structures go to the lower class.

    Args:
        label: Label values; those not in `values` count as background. Not modified.
        grid: The network's grid; its axes are parallel to the label's.
        values: Label values, sorted, background (0) first; class c is `values[c]`.
        ignore_value: A label value that marks unlabelled voxels; sampled by nearest neighbour and
            kept.

    Returns:
        (X, Y, Z) uint8 class indices.

    Raises:
        DataError: The grids' axes are not parallel.
    """
    array = as_tensor(label.array)
    sampler = Sampler.between(label.grid, grid, memory_order(array, label.grid, grid), mean=True)
    table = array.permute(sampler.source_axes)  # (P, R, C), a view
    shape = (len(sampler.planes), len(sampler.rows), len(sampler.columns))
    classes = torch.zeros(shape, dtype=torch.uint8)
    best, filled = torch.zeros(shape), torch.zeros(shape)  # fraction of the largest class, of all
    boxes = dict(enumerate(ndimage.find_objects(table.numpy()), start=1))
    if ignore_value is not None and boxes.get(ignore_value) is not None:
        for target, share in _shares(table, ignore_value, sampler, boxes[ignore_value]):
            filled[target] += share  # what is unknown is not background
    for index, value in enumerate(values):
        if boxes.get(value) is None:
            continue
        for target, share in _shares(table, value, sampler, boxes[value]):
            filled[target] += share
            classes[target].masked_fill_(share > best[target], index)
            torch.maximum(best[target], share, out=best[target])
    classes.masked_fill_(best < 1 - filled - TIE, 0)
    classes = classes.permute([sampler.target_axes.index(axis) for axis in range(3)])
    if ignore_value is not None:
        nearest = resample(array[None], label.grid, grid, mode="nearest")[0]
        classes.masked_fill_(nearest == ignore_value, ignore_value)
    return classes


def as_tensor(array: Array) -> Tensor:
    """The array's memory as a tensor that must not be written to, without a copy.

    Unlike `torch.from_numpy`, this accepts read-only memory (a memory map) without a warning.
    """
    tensor: Tensor = from_dlpack(array)
    return tensor


def _shares(table: Tensor, value: int, sampler: Sampler, box: Box) -> Iterator[tuple[Box, Tensor]]:
    """The fraction of each target voxel that `value` fills, as blocks with their places."""
    (first, last), rows, columns = sampler.touching(box)
    inner = sampler.part((first, last), rows, columns)
    for start, stop in inner.blocks():
        place = slice(first + start, first + stop), slice(*rows), slice(*columns)
        yield place, replace(inner, planes=inner.planes.part(start, stop))(table, value)


def _body(mask: Mask) -> Mask:
    """The large components of a coarse mask, without thin sheets unless nothing else is left."""
    # Outside the scan counts as inside: a body cut off by the border, or one slice thin, survives.
    opened = ndimage.binary_dilation(ndimage.binary_erosion(mask, border_value=1)) & mask
    return large_components(opened if opened.any() else mask, BODY_SHARE)


def _whole(shape: Size) -> Box:
    a, b, c = (slice(0, size) for size in shape)
    return a, b, c


def _require_resolved(config: PreprocessingConfig) -> None:
    needed = ["spacing_mm"]
    needed += ["mean_hu", "std_hu"] if config.normalisation == "dataset" else []
    for name in needed:
        if getattr(config, name) is None:
            raise DataError(
                f"preprocessing.{name} is not set",
                cure=f"let the plan fill it in, or give --set preprocessing.{name}=…",
            )
