"""Coarse to fine: the box around a coarse label map, and whether a fine one reaches its faces.

A network at 4 mm finds the box in which the labels lie; the fine network then sees that box alone.
So that the box cuts no organ off, the whole scan is segmented where the coarse label map is empty,
and where the fine one reaches a face of the box behind which the scan goes on.
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attunet3d.core import Box, Size
from attunet3d.imaging import Grid, axis_map, extent
from attunet3d.inference.sliding_window import Slab

MARGIN_MM = 16.0  # around the coarse labels: four voxels, and context for the fine network


def box_around(
    labels: npt.NDArray[np.uint8],
    coarse: Grid,
    fine: Grid,
    least: Size = (1, 1, 1),
    margin_mm: float = MARGIN_MM,
) -> Box | None:
    """The box of `fine` that holds every foreground voxel of a coarse label map, and a margin.

    Args:
        labels: Label map on `coarse`; everything but 0 is foreground.
        coarse: Its grid.
        fine: A grid with parallel axes.
        least: Smallest size of the box in voxels, as far as `fine` is that large: a window's, as
            a window costs the same whether it is filled or padded.
        margin_mm: Kept around the foreground.

    Returns:
        None where there is no foreground, or none within `fine`.

    Example:
        >>> labels = np.zeros((10, 10, 10), np.uint8)
        >>> labels[4:6, 4:6, 4:6] = 1
        >>> coarse = Grid((10, 10, 10), np.diag([4.0, 4, 4, 1]))
        >>> box_around(labels, coarse, coarse.resized((20, 20, 20)), margin_mm=8)
        (slice(4, 16, None), slice(4, 16, None), slice(4, 16, None))
    """
    mask = labels != 0
    if not mask.any():
        return None
    axes = axis_map(fine, coarse)
    parts = [slice(0)] * 3
    for axis in range(3):
        along = axes.order[axis]
        part = extent(mask.any(axis=tuple({0, 1, 2} - {axis})))
        faces = [
            axes.scale[axis] * (index - 0.5) + axes.offset[axis]
            for index in (part.start, part.stop)
        ]
        margin = margin_mm / fine.spacing_mm[along]
        start = round(min(faces) + 0.5 - margin)  # a face lies half a voxel before its voxel
        stop = round(max(faces) + 0.5 + margin)
        if start >= fine.shape[along] or stop <= 0:
            return None
        parts[along] = _grown(start, stop, least[along], fine.shape[along])
    return parts[0], parts[1], parts[2]


def _grown(start: int, stop: int, least: int, size: int) -> slice:
    """The range `start` … `stop`, widened to `least` and kept within 0 … `size`."""
    start, stop = max(0, start), min(size, stop)
    length = min(size, max(least, stop - start))
    first = min(max(0, start - (length - (stop - start)) // 2), size - length)
    return slice(first, first + length)


class Faces:
    """Notes whether labels within a box of an image reach a face behind which the image goes on."""

    def __init__(self, box: Box, shape: Size) -> None:
        pairs = list(zip(box, shape, strict=True))
        self.low = [part.start > 0 for part, _ in pairs]  # the image goes on before x, y, z
        self.high = [part.stop < size for part, size in pairs]  # … and behind
        self.planes = box[2].stop - box[2].start
        self.touched = False

    def note(self, slab: Slab) -> None:
        """Look at those voxels of a slab that lie on the faces."""
        self.touched = self.touched or self._reaches(slab)

    def _reaches(self, slab: Slab) -> bool:
        logits = slab.logits  # (K, X, Y, n)
        faces = []
        for axis in (0, 1):
            size = logits.shape[axis + 1]
            faces += [logits.narrow(axis + 1, 0, 1)] if self.low[axis] else []
            faces += [logits.narrow(axis + 1, size - 1, 1)] if self.high[axis] else []
        if self.low[2] and slab.start == 0:
            faces.append(logits[..., :1])
        if self.high[2] and slab.start + logits.shape[3] == self.planes:
            faces.append(logits[..., -1:])
        return any(_has_foreground(face) for face in faces)


def _has_foreground(logits: Tensor) -> bool:
    if len(logits) == 1:  # the margin of two classes
        return bool((logits > 0).any())
    return bool((logits[1:].amax(0) > logits[0]).any())
