"""Trilinear resampling as three weighted sums per voxel, one along each axis.

Each axis has its taps (`taps`): the few source indices and weights of every target index. Summing
along one axis after the other interpolates between any two grids with parallel axes, whether they
are permuted, mirrored, oblique or sheared; no dense sampling grid is needed.

Speed: a scan stays in the memory order it has. The two slower axes are summed by `embedding_bag`
(fused weighted sums of whole memory rows), the fastest by `F.interpolate`; blocks of a few planes
are converted to float32 one after the other and stay in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attunet3d.core import Range, Size
from attunet3d.imaging.geometry import AxisMap, Grid, axis_map
from attunet3d.imaging.taps import SNAP_DIGITS, Taps, axis_taps

BLOCK_VOXELS = 2**21  # per block, source or target: 8 MB of float32, which malloc reuses
GPU_BLOCK_VOXELS = 2**26  # a GPU gains nothing from small blocks, and each costs kernel launches


@dataclass(frozen=True, eq=False)
class Sampler:
    """The taps of all three axes in memory order: planes (slowest), rows, columns (fastest).

    Args:
        planes: Along the slowest axis.
        rows: Along the middle axis.
        columns: Along the fastest axis.
        source_axes: Source axis of planes, rows and columns.
        target_axes: Target axis of planes, rows and columns.
        columns_first: Reduce columns before rows, when upsampling rows. Decided once per volume so
            that blocks are bit-identical to the full result.
    """

    planes: Taps
    rows: Taps
    columns: Taps
    source_axes: Size
    target_axes: Size
    columns_first: bool

    @classmethod
    def between(cls, source: Grid, target: Grid, order: Size, *, mean: bool) -> "Sampler":
        """The sampler from `source` to `target`.

        Args:
            source: The grid of the values.
            target: A grid with parallel voxel axes.
            order: The target axes from the slowest to the fastest in memory.
            mean: Average over target voxels of two and more source voxels; see `taps`.

        Raises:
            DataError: The grids' axes are not parallel.
        """
        mapping = axis_map(source, target)
        planes, rows, columns = (_taps(source, target, mapping, axis, mean) for axis in order)
        p, r, c = (mapping.order[axis] for axis in order)
        growing = len(planes) * len(rows) > planes.length * rows.length
        return cls(planes, rows, columns, (p, r, c), order, growing)

    def part(self, planes: Range, rows: Range, columns: Range) -> "Sampler":
        """The sampler of a box of target voxels."""
        return replace(
            self,
            planes=self.planes.part(*planes),
            rows=self.rows.part(*rows),
            columns=self.columns.part(*columns),
        )

    def touching(self, box: Sequence[slice]) -> tuple[Range, Range, Range]:
        """Ranges of target planes, rows and columns that depend on a box of source voxels."""
        p, r, c = (
            taps.touching(part.start, part.stop)
            for taps, part in zip((self.planes, self.rows, self.columns), box, strict=True)
        )
        return p, r, c

    def blocks(self, voxels: int = BLOCK_VOXELS) -> Iterator[Range]:
        """Ranges of target planes: one, or with at most `voxels` source and target voxels."""
        count = len(self.planes)
        depth, height = (len(range(*taps.narrowed()[0])) for taps in (self.planes, self.rows))
        below = depth * height * self.columns.length
        above = count * len(self.rows) * len(self.columns)
        step = max(1, count * voxels // max(below, above))
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def __call__(self, table: Tensor, value: int | None = None) -> Tensor:
        """Sample a table (P, R, C), or the mask of where it equals `value` (1 inside, 0 outside).

        Returns:
            (p, r, c) float32; may share the table's memory where nothing changes.
        """
        (low, high), planes = self.planes.narrowed()
        (left, right), rows = self.rows.narrowed()
        table = table[low:high, left:right]
        table = (table if value is None else table == value).to(torch.float32)
        if self.columns_first:
            table = sample_columns(table, self.columns)
        table = sample_rows(table, planes, rows)  # (p, r, ·)
        return table if self.columns_first else sample_columns(table, self.columns)


def sample_rows(table: Tensor, planes: Taps, rows: Taps) -> Tensor:
    """Weighted sums over planes and rows: (P, R, C) → (p, r, C)."""
    if planes.identical and rows.identical:
        return table
    index = planes.index[:, None, :, None] * table.shape[1] + rows.index[:, None, :]
    weight = planes.weight[:, None, :, None] * rows.weight[:, None, :]  # (p, r, Tp, Tr)
    bags = index.flatten(2).flatten(0, 1).to(table.device)  # (p·r, Tp·Tr)
    weights = weight.flatten(2).flatten(0, 1).to(table.device)
    memory = table.contiguous().flatten(0, 1)  # (P·R, C)
    summed = F.embedding_bag(bags, memory, mode="sum", per_sample_weights=weights)
    return summed.view(len(planes), len(rows), table.shape[2])


def sample_columns(table: Tensor, columns: Taps) -> Tensor:
    """Weighted sums along the fastest axis: (P, R, C) → (P, R, c)."""
    if columns.identical:
        return table
    if columns.even is None:
        turned = table.transpose(1, 2).contiguous()  # (P, C, R)
        every = torch.arange(len(table))[:, None]
        planes = Taps(every, torch.ones(len(table), 1), len(table))
        return sample_rows(turned, planes, columns).transpose(1, 2)
    count, samples, reverse = columns.even
    if count * samples != table.shape[2]:
        table = stretched(table, count * samples)
    if samples > 1:
        parts = [table[..., part::samples] for part in range(samples)]
        table = parts[0] + parts[1]
        for extra in parts[2:]:
            table += extra
        table *= 1 / samples
    table = table.flip(2) if reverse else table
    return table[..., columns.start : columns.start + len(columns)]


def stretched(table: Tensor, size: int) -> Tensor:
    """Linear interpolation along the fastest axis, outer faces kept: (P, R, C) → (P, R, size)."""
    if table.device.type == "cpu":
        return F.interpolate(table, size=size, mode="linear", align_corners=False)
    # CUDA's 1-D kernel uses one thread per output column, which loops over all rows; its 2-D kernel
    # uses one thread per value.
    rows = table.flatten(0, 1)[None, None]  # (1, 1, P·R, C)
    shape = rows.shape[2], size
    rows = F.interpolate(rows, size=shape, mode="bilinear", align_corners=False)
    return rows.view(*table.shape[:2], size)


@torch.no_grad()
def resample(
    tensor: Tensor, source: Grid, target: Grid, *, mode: Literal["linear", "nearest"] = "linear"
) -> Tensor:
    """Sample a tensor that lies on `source` at the voxels of `target`.

    Args:
        tensor: (C, X, Y, Z), any dtype and any memory order; only read.
        source: Its grid.
        target: A grid with parallel voxel axes, in any order and direction.
        mode: "linear", or "nearest", which keeps the dtype.

    Returns:
        (C, X', Y', Z') in the memory order of `tensor`; float32 for "linear".

    Raises:
        DataError: The grids' axes are not parallel.

    Example:
        >>> grid = Grid((2, 1, 1), np.eye(4))
        >>> resample(torch.tensor([0.0, 4.0]).reshape(1, 2, 1, 1), grid, grid.resized((4, 1, 1)))
        tensor([[[[0.]],
        <BLANKLINE>
                 [[1.]],
        <BLANKLINE>
                 [[3.]],
        <BLANKLINE>
                 [[4.]]]])
    """
    if mode == "nearest":
        return _nearest(tensor, source, target)
    sampler = Sampler.between(source, target, memory_order(tensor[0], source, target), mean=True)
    tables = tensor.permute(0, *(axis + 1 for axis in sampler.source_axes))
    shape = (len(tensor), len(sampler.planes), len(sampler.rows), len(sampler.columns))
    sampled = torch.empty(shape, dtype=torch.float32, device=tensor.device)
    voxels = BLOCK_VOXELS if tensor.device.type == "cpu" else GPU_BLOCK_VOXELS
    for start, stop in sampler.blocks(voxels):
        part = replace(sampler, planes=sampler.planes.part(start, stop))
        for channel, table in zip(sampled, tables, strict=True):
            channel[start:stop] = part(table)
    return sampled.permute(0, *(sampler.target_axes.index(axis) + 1 for axis in range(3)))


def _taps(source: Grid, target: Grid, mapping: AxisMap, axis: int, mean: bool) -> Taps:
    length, count = source.shape[mapping.order[axis]], target.shape[axis]
    return axis_taps(length, count, mapping.scale[axis], mapping.offset[axis], mean=mean)


def memory_order(tensor: Tensor, source: Grid, target: Grid) -> Size:
    """The target axes in the memory order of `tensor` (X, Y, Z, on `source`), slowest first."""
    order = axis_map(source, target).order
    slow, middle, fast = sorted(range(3), key=lambda axis: -tensor.stride(order[axis]))
    return slow, middle, fast


def _nearest(tensor: Tensor, source: Grid, target: Grid) -> Tensor:
    mapping = axis_map(source, target)
    sampled = tensor.permute(0, *(axis + 1 for axis in mapping.order))
    for axis in range(3):
        exact = mapping.scale[axis] * np.arange(target.shape[axis]) + mapping.offset[axis]
        whole = np.floor(exact.round(SNAP_DIGITS) + 0.5).clip(0, sampled.shape[axis + 1] - 1)
        index = torch.from_numpy(whole.astype(np.int64)).to(tensor.device)
        sampled = sampled.index_select(axis + 1, index)
    return sampled
