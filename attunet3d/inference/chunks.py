"""Pairs the network's planes, as they come, with the planes of the scan that they determine.

The network hands on its logits slab by slab along S. A scan's plane is interpolated between two of
the network's planes, so it is ready as soon as the second of them is there:

    network planes   0   1   2   3 │ 4   5   6          first slab │ second slab
    scan planes      0    1    2   │  3    4            2 lies before network plane 3: ready;
                                   │                    3 lies between 3 and 4: waits

Each chunk therefore holds the last plane of the chunk before it and the new planes. Memory holds a
few planes, never the volume.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Box, Range
from attunet3d.imaging import Grid, Sampler, axis_map
from attunet3d.inference.sliding_window import Slab

TABLE_VALUES = 2**22  # of logits brought into the scan's memory order at once (16 MB)
GPU_TABLE_VALUES = 2**26
PIECE_VALUES = 2**22  # of resampled values handed on at once (16 MB)
EDGE = 1e-3  # voxels; rounding of the outer faces

Ranges = tuple[Range, Range, Range]
"""Ranges of planes, rows and columns."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive planes of the network's grid, and the voxels of the scan that need no others.

    The tables (channels, P, R, C) have the planes along S first, then the two other axes in the
    scan's memory order. The next chunk overwrites them.

    Args:
        margins: Each foreground class's logit minus the background's, (K - 1, P, R, C).
        logits: All logits (K, P, R, C), if they were asked for.
        attention: The gates' coefficients, if the slabs have them.
        sampler: From the tables' planes, rows and columns to the scan's.
        box: The voxels of the scan.
    """

    margins: Tensor
    logits: Tensor | None
    attention: Tensor | None
    sampler: Sampler
    box: Box

    def target(self, *ranges: Range) -> Box:
        """The box of the scan at these ranges of planes, rows and columns of the chunk."""
        parts = list(self.box)
        for axis, (start, stop) in zip(self.sampler.target_axes, ranges, strict=True):
            first = self.box[axis].start
            parts[axis] = slice(first + start, first + stop)
        return parts[0], parts[1], parts[2]

    def resampled(self, table: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """A table resampled to boxes of the scan (channels, i, j, k), each of 16 MB or one row."""
        back = [self.sampler.target_axes.index(axis) for axis in range(3)]
        for ranges in self.pieces(len(table)):
            part = self.sampler.part(*ranges)
            shape = (len(table), len(part.planes), len(part.rows), len(part.columns))
            values = torch.empty(shape, device=table.device)
            for channel, source in zip(values, table, strict=True):
                channel.copy_(part(source))
            yield self.target(*ranges), values.permute(0, *(a + 1 for a in back))

    def pieces(self, channels: int, within: Ranges | None = None) -> Iterator[Ranges]:
        """Divide `within`, or all of the chunk, into ranges of at most `PIECE_VALUES` values."""
        sampler = self.sampler
        (top, bottom), (left, right), columns = within or (
            (0, len(sampler.planes)),
            (0, len(sampler.rows)),
            (0, len(sampler.columns)),
        )
        row = max(1, channels * (columns[1] - columns[0]))
        rows = max(1, min(right - left, PIECE_VALUES // row))
        planes = max(1, PIECE_VALUES // (row * max(1, right - left)))
        for plane in range(top, bottom, planes):
            for first in range(left, right, rows):
                yield (
                    (plane, min(plane + planes, bottom)),
                    (first, min(first + rows, right)),
                    columns,
                )


class ChunkBuilder:
    """Turns slabs into chunks, each as soon as its planes are there.

    Args:
        network: The network's grid.
        source: The scan's grid.
        logits: Whether chunks hold all logits beside the margins.

    Raises:
        DataError: The grids' axes are not parallel.
    """

    def __init__(self, network: Grid, source: Grid, *, logits: bool = False) -> None:
        self._box = _inside(network, source)
        self._tables = _Table(), _Table(), _Table()
        self._with_logits = logits
        self._received = 0  # network planes
        self._done = 0  # scan planes
        if self._box is None:
            return
        axes = axis_map(network, source)
        self._along = axes.order.index(2)  # the scan's axis that runs along S
        middle, fast = sorted({0, 1, 2} - {self._along}, reverse=True)  # later axes are slower
        cropped = source.cropped(self._box)
        self._sampler = Sampler.between(network, cropped, (self._along, middle, fast), mean=False)
        self._needs = self._sampler.planes.index.max(1).values  # last network plane of each plane
        self._reversed = axes.scale[self._along] < 0  # then the scan's last planes come first

    def add(self, slab: Slab) -> Iterator[Chunk]:
        """Take the next slab; yield the chunks that it completes."""
        assert slab.start == self._received, f"slab starts at {slab.start}, not {self._received}"
        planes = slab.logits.shape[3]
        if self._box is not None:
            channels = max(
                1, len(slab.logits), 0 if slab.attention is None else len(slab.attention)
            )
            most = GPU_TABLE_VALUES if slab.logits.is_cuda else TABLE_VALUES
            step = max(1, most // (channels * slab.logits[0, ..., 0].numel()))
            for start in range(0, planes, step):
                yield from self._chunk(slab, start, min(step, planes - start))
        self._received += planes

    def _chunk(self, slab: Slab, start: int, count: int) -> Iterator[Chunk]:
        assert self._box is not None
        first = slab.start + start
        lead = min(first, 1)  # the plane kept of the chunk before
        logits = self._turned(slab.logits[..., start : start + count])
        margins, all_logits, attention = self._tables
        if len(logits) > 1:
            torch.sub(logits[1:], logits[:1], out=margins.extend(logits[1:], lead))
        else:
            margins.extend(logits, lead).copy_(logits)
        if self._with_logits:
            all_logits.extend(logits, lead).copy_(logits)
        if slab.attention is not None:
            maps = self._turned(slab.attention[..., start : start + count])
            attention.extend(maps, lead).copy_(maps)

        ready = int((self._needs < first + count).sum())
        total, done, self._done = len(self._needs), self._done, ready
        if ready == done:
            return
        begin, end = (total - ready, total - done) if self._reversed else (done, ready)
        planes = self._sampler.planes.part(begin, end).shifted(first - lead, count + lead)
        box = list(self._box)
        box[self._along] = slice(*(self._box[self._along].start + index for index in (begin, end)))
        yield Chunk(
            margins.values,
            all_logits.values if self._with_logits else None,
            None if slab.attention is None else attention.values,
            replace(self._sampler, planes=planes),
            (box[0], box[1], box[2]),
        )

    def _turned(self, planes: Tensor) -> Tensor:
        """(C, X, Y, Z) as (C, planes, rows, columns) in float32."""
        return planes.permute(0, *(axis + 1 for axis in self._sampler.source_axes)).float()


class _Table:
    """Consecutive planes that start with the last one of before, always in the same memory.

    Fresh memory costs more than filling it.
    """

    def __init__(self) -> None:
        self._memory = self.values = torch.empty(0)

    def extend(self, like: Tensor, lead: int) -> Tensor:
        """Keep the last `lead` planes and make place for planes of the shape of `like`."""
        channels, count, *plane = like.shape
        last = self.values[:, -1] if lead else None
        if len(self._memory) == 0 or self._memory.shape[1] < count + 1:
            self._memory = like.new_empty((channels, count + 1, *plane))
        self.values = self._memory[:, : count + lead]
        if last is not None:
            self.values[:, 0] = last
        return self.values[:, lead:]


def _inside(network: Grid, source: Grid) -> Box | None:
    """The box of the scan's voxels whose centres lie within the network's grid."""
    axes = axis_map(network, source)
    parts = []
    for axis, size in enumerate(source.shape):
        position = axes.scale[axis] * np.arange(size) + axes.offset[axis]
        last = network.shape[axes.order[axis]] - 1
        hit = ((position > -0.5 - EDGE) & (position < last + 0.5 + EDGE)).nonzero()[0]
        if not len(hit):
            return None
        parts.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return parts[0], parts[1], parts[2]
