"""From logits on the network's grid to labels on the scan's: resample, choose, components.

The way back is one linear resample of the logits, then the decision; never one of labels. It runs
slab by slab, as the sliding window hands them on, so memory holds a few planes of the scan.

Only differences of logits decide, so each class is resampled as its margin over background,
d_c = l_c − l_0. Linear sampling takes weighted means: where d_c ≤ 0 at all corners it is ≤ 0 in
between, and class c cannot win there. Hence each class is resampled only inside the box where its
margin is positive somewhere. This changes no label; a scan with one organ costs the organ's box.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Box, LabelMap, Range
from attunet3d.imaging import (
    BLOCK_VOXELS,
    GPU_BLOCK_VOXELS,
    Grid,
    Sampler,
    axis_map,
    extent,
    keep_largest_,
)
from attunet3d.inference.sliding_window import Slab
from attunet3d.inference.zeros import zeros

TABLE_VALUES = 2**22  # of logits turned into the scan's memory order at once (16 MB)
GPU_TABLE_VALUES = 2**26
PIECE_VALUES = 2**22  # of logits handed on at once (16 MB)
EDGE = 1e-3  # voxels; rounding of the outer faces


@dataclass(frozen=True, eq=False)
class _Stretch:
    """The logits of some neighbouring planes, and the scan's voxels that need no others."""

    table: Tensor  # (K, P, R, C): planes along S, the rest in the scan's order; overwritten later
    sampler: Sampler  # to the scan's planes along S (p), rows (r) and columns (c)
    box: Box  # of the scan

    def place(self, *ranges: Range) -> Box:
        """The box of the scan at these ranges of planes, rows and columns."""
        parts = list(self.box)
        for axis, (start, stop) in zip(self.sampler.target_axes, ranges, strict=True):
            first = self.box[axis].start
            parts[axis] = slice(first + start, first + stop)
        return parts[0], parts[1], parts[2]


@torch.no_grad()
def to_source_grid(
    slabs: Iterable[Slab], network: Grid, source: Grid
) -> Iterator[tuple[Box, Tensor]]:
    """Resample logits to the scan's grid, piece by piece.

    Args:
        slabs: All planes of the network's grid along S, in order.
        network: The network's grid.
        source: The scan's grid.

    Yields:
        A box of the scan and its logits (K, i, j, k), float32, 16 MB or one row at most. Together
        the boxes cover, once, all voxels whose centres lie within the network's grid; what lies
        outside is background.

    Raises:
        DataError: The grids' axes are not parallel.
    """
    for stretch in _stretches(slabs, network, source, margins=False):
        sampler, channels = stretch.sampler, len(stretch.table)
        back = [sampler.target_axes.index(axis) for axis in range(3)]
        for planes, rows in _pieces(sampler, channels):
            part = sampler.part(planes, rows, (0, len(sampler.columns)))
            shape = (channels, len(part.planes), len(part.rows), len(part.columns))
            logits = torch.empty(shape, device=stretch.table.device)
            for channel, table in zip(logits, stretch.table, strict=True):
                channel.copy_(part(table))
            place = stretch.place(planes, rows, (0, len(sampler.columns)))
            yield place, logits.permute(0, *(axis + 1 for axis in back))


@torch.no_grad()
def decide(
    slabs: Iterable[Slab],
    network: Grid,
    source: Grid,
    values: Sequence[int],
    keep_largest: Sequence[int] = (),
) -> LabelMap:
    """Labels on the scan's grid: the class of the largest resampled logit.

    Ties go to the lowest class; a margin (K = 1) must be above 0. Outside the network's grid is
    background.

    Args:
        slabs: All planes of the network's grid along S, in order.
        network: The network's grid.
        source: The scan's grid.
        values: The label value of each class, background first.
        keep_largest: Label values of which only the largest connected component is kept.

    Returns:
        Label values in the scan's shape, Fortran order.

    Raises:
        DataError: The grids' axes are not parallel.

    Example:
        >>> grid = Grid((1, 1, 4), np.eye(4))
        >>> margin = torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> decide([Slab(0, margin)], grid.resized((1, 1, 2)), grid, [0, 7]).ravel().tolist()
        [0, 0, 7, 7]
    """
    labels: LabelMap = zeros(source.shape[::-1], np.uint8).T
    for stretch in _stretches(slabs, network, source, margins=True):
        _choose(stretch, values, torch.from_numpy(labels))
    keep_largest_(labels, keep_largest)
    return labels


def _choose(stretch: _Stretch, values: Sequence[int], labels: Tensor) -> None:
    """Write the winning values of a stretch into `labels` (I, J, K), which are background there."""
    margins, sampler = stretch.table, stretch.sampler  # (K - 1, P, R, C)
    assert len(margins) == len(values) - 1, f"{len(margins)} margins for {len(values)} labels"
    over_columns = margins.amax(3)  # (K - 1, P, R)
    rivals = []
    for index in (over_columns.amax((1, 2)) > 0).nonzero().flatten().tolist():
        box = _positive(margins[index], over_columns[index])
        rivals.append(_Rival(values[index + 1], margins[index], sampler.touching(box)))
    for start, stop in sampler.blocks(GPU_BLOCK_VOXELS if margins.is_cuda else BLOCK_VOXELS):
        near = [rival.within(start, stop) for rival in rivals]
        _choose_block(stretch, [rival for rival in near if rival is not None], labels)


@dataclass(frozen=True, eq=False)
class _Rival:
    """A class that is above background somewhere, and the target ranges where it can win."""

    value: int
    margin: Tensor  # (P, R, C)
    ranges: tuple[Range, Range, Range]

    def within(self, start: int, stop: int) -> "_Rival | None":
        """The same among target planes `start` … `stop` - 1; None where it cannot win there."""
        (low, high), rows, columns = self.ranges
        low, high = max(low, start), min(high, stop)
        return replace(self, ranges=((low, high), rows, columns)) if low < high else None


def _choose_block(stretch: _Stretch, rivals: list[_Rival], labels: Tensor) -> None:
    """Let the rivals compete in the smallest box that holds all their ranges."""
    if not rivals:
        return
    spans = [_span([rival.ranges[axis] for rival in rivals]) for axis in range(3)]
    shape = [stop - start for start, stop in spans]
    best = torch.zeros(shape, device=stretch.table.device)  # background's margin over itself
    chosen = torch.zeros(shape, dtype=torch.uint8, device=stretch.table.device)
    for rival in rivals:
        margin = stretch.sampler.part(*rival.ranges)(rival.margin)
        local = _local(rival.ranges, spans)
        better = margin > best[local]
        # chosen = value where better, by arithmetic modulo 256: 80 times as fast as a masked write.
        chosen[local] += (rival.value - chosen[local]) * better
        if len(rivals) > 1:
            torch.maximum(best[local], margin, out=best[local])
    place = stretch.place(*spans)
    labels[place].permute(stretch.sampler.target_axes).copy_(chosen)


def _span(ranges: list[Range]) -> Range:
    return min(start for start, _ in ranges), max(stop for _, stop in ranges)


def _local(ranges: Sequence[Range], spans: Sequence[Range]) -> Box:
    """A box of target voxels, counted from the start of `spans`."""
    p, r, c = (
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(ranges, spans, strict=True)
    )
    return p, r, c


def _positive(margin: Tensor, over_columns: Tensor) -> Box:
    """The smallest box that holds every positive value of `margin` (P, R, C); there is one.

    `over_columns` (P, R) is its largest value along the columns.
    """
    lines = over_columns.amax(1), over_columns.amax(0), margin.flatten(0, 1).amax(0)
    p, r, c = (extent(line.cpu().numpy() > 0) for line in lines)
    return p, r, c


def _stretches(
    slabs: Iterable[Slab], network: Grid, source: Grid, *, margins: bool
) -> Iterator[_Stretch]:
    """Pair the network's planes, as they come, with the scan's planes they decide."""
    box = _inside(network, source)
    if box is None:
        return
    lie = axis_map(network, source)
    along = lie.order.index(2)  # the scan's axis that runs along S
    middle, fast = sorted({0, 1, 2} - {along}, reverse=True)  # a scan's later axes are slower
    whole = Sampler.between(network, source.cropped(box), (along, middle, fast), mean=False)
    reach = whole.planes.index.max(1).values  # last network plane of each of the scan's planes
    turned = lie.scale[along] < 0  # then the scan's last planes come first
    done = 0
    for first, table in _tables(slabs, whole.source_axes, margins):
        ready = int((reach < first + table.shape[1]).sum())
        start, stop = (len(reach) - ready, len(reach) - done) if turned else (done, ready)
        if ready > done:
            near = whole.planes.part(start, stop).shifted(first, table.shape[1])
            part = list(box)
            part[along] = slice(box[along].start + start, box[along].start + stop)
            yield _Stretch(table, replace(whole, planes=near), (part[0], part[1], part[2]))
        done = ready


def _inside(network: Grid, source: Grid) -> Box | None:
    """The box of the scan's voxels whose centres lie within the network's grid."""
    lie = axis_map(network, source)
    parts = []
    for axis, size in enumerate(source.shape):
        position = lie.scale[axis] * np.arange(size) + lie.offset[axis]
        last = network.shape[lie.order[axis]] - 1
        hit = ((position > -0.5 - EDGE) & (position < last + 0.5 + EDGE)).nonzero()[0]
        if not len(hit):
            return None
        parts.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return parts[0], parts[1], parts[2]


def _tables(
    slabs: Iterable[Slab], axes: tuple[int, int, int], margins: bool
) -> Iterator[tuple[int, Tensor]]:
    """First plane and logits, or margins over the first one, (K, P, R, C) of a few planes.

    Each table starts with the last plane of the one before it, from which the next of the scan's
    planes are interpolated, and is written into the same memory: fresh memory costs more than
    filling it.
    """
    room, last = torch.empty(0), torch.empty(0)
    for start, planes in _portions(slabs, axes):
        lead = min(start, 1)
        channels, count, *plane = planes.shape
        channels -= margins and channels > 1
        if len(room) == 0 or room.shape[1] < count + 1:
            room = planes.new_empty((channels, count + 1, *plane))
        table = room[:, : count + lead]
        if lead:
            table[:, 0] = last
        if channels < len(planes):
            torch.sub(planes[1:], planes[:1], out=table[:, lead:])
        else:
            table[:, lead:] = planes
        yield start - lead, table
        last = table[:, -1]


def _portions(slabs: Iterable[Slab], axes: tuple[int, int, int]) -> Iterator[tuple[int, Tensor]]:
    """First plane and logits (K, P, R, C) of slabs, in float32, a few planes at a time."""
    expected = 0
    for slab in slabs:
        assert slab.start == expected, f"slab starts at plane {slab.start}, not at {expected}"
        channels, width, height, count = slab.logits.shape
        most = GPU_TABLE_VALUES if slab.logits.is_cuda else TABLE_VALUES
        step = max(1, most // (channels * width * height))
        turned = slab.logits.permute(0, *(axis + 1 for axis in axes))
        for start in range(0, count, step):
            yield slab.start + start, turned[:, start : start + step].float()
        expected += count


def _pieces(sampler: Sampler, channels: int) -> Iterator[tuple[Range, Range]]:
    """Ranges of planes and rows such that a piece has at most `PIECE_VALUES` logits."""
    row = channels * len(sampler.columns)
    rows = min(len(sampler.rows), max(1, PIECE_VALUES // row))
    planes = max(1, PIECE_VALUES // (row * len(sampler.rows)))
    for top in range(0, len(sampler.planes), planes):
        for left in range(0, len(sampler.rows), rows):
            yield (
                (top, min(top + planes, len(sampler.planes))),
                (left, min(left + rows, len(sampler.rows))),
            )
