"""Connected parts of masks and of label maps."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from attunet3d.core import Array, Box, Mask, Regions

NEIGHBOURS = np.ones((3, 3, 3), bool)  # by face, edge or corner


def large_components(mask: Mask, share: float = 1.0) -> Mask:
    """The parts of `mask` of at least `share` of its largest part's voxels.

    Voxels that touch by face, edge or corner are connected. Of several equally large parts, a
    share of 1 keeps the one whose first voxel comes first in memory order (i fastest) only.

    Example:
        >>> large_components(np.array([1, 0, 1, 1], bool).reshape(4, 1, 1)).ravel().tolist()
        [False, False, True, True]
    """
    parts, sizes = numbered_components(mask)
    if len(sizes) <= 2:
        return mask.copy()
    if share >= 1:
        largest: Mask = parts == sizes.argmax()
        return largest
    kept: Mask = (sizes >= share * sizes.max())[parts]
    return kept


def numbered_components(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The connected parts of `mask` (I, J, K), numbered from 1 in the order of their first voxels.

    Returns:
        (I, J, K) the number of each voxel's part, 0 outside the mask; and the voxels of each part,
        by its number, where number 0 has none.

    Example:
        >>> parts, sizes = numbered_components(np.array([1, 0, 1, 1], bool).reshape(4, 1, 1))
        >>> parts.ravel().tolist(), sizes.tolist()
        ([1, 0, 2, 2], [0, 1, 2])
    """
    found, _ = ndimage.label(mask.T, NEIGHBOURS)  # (K, J, I): i is fastest
    parts = found.T
    sizes = np.bincount(parts.ravel("K"))
    sizes[0] = 0
    return parts, sizes


def label_mask(labels: Array, value: int, regions: Regions) -> Mask:
    """The voxels of label `value`: of a region, those of all values that make it up.

    Example:
        >>> label_mask(np.array([0, 1, 2, 3]), 1, {1: (1, 2), 2: (2,)}).tolist()
        [False, True, True, False]
    """
    first, *others = regions.get(value, (value,))
    mask: Mask = labels == first
    for part in others:
        mask |= labels == part
    return mask


def label_box(boxes: Sequence[Box | None], value: int, regions: Regions) -> Box | None:
    """The box around label `value`, from those of each value as `ndimage.find_objects` has them.

    Example:
        >>> boxes = ndimage.find_objects(np.array([[[0, 1, 2, 0]]]))
        >>> label_box(boxes, 1, {1: (1, 2)})
        (slice(0, 1, None), slice(0, 1, None), slice(1, 3, None))
    """
    parts = regions.get(value, (value,))
    known = [boxes[part - 1] for part in parts if 0 < part <= len(boxes)]
    found = [box for box in known if box is not None]
    if not found:
        return None
    a, b, c = (
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*found, strict=True)
    )
    return a, b, c


def keep_largest_(
    labels: npt.NDArray[np.uint8], values: Collection[int], regions: Regions | None = None
) -> None:
    """Set what is not in the largest part of its label to 0, in place, for the labels `values`.

    Args:
        labels: (I, J, K).
        values: The labels.
        regions: Where labels overlap, the values of each; what is set to 0 is so in all of them.

    Example:
        >>> labels = np.array([2, 0, 1, 1, 0, 1, 0, 2], np.uint8).reshape(8, 1, 1)
        >>> keep_largest_(labels, [1])
        >>> labels.ravel().tolist()
        [2, 0, 1, 1, 0, 0, 0, 2]
    """
    _keep_(labels, values, regions or {}, lambda value, mask: large_components(mask))


def drop_small_(
    labels: npt.NDArray[np.uint8], fewest: Mapping[int, float], regions: Regions | None = None
) -> None:
    """Set the parts of a label that have fewer than its `fewest` voxels to 0, in place.

    Arguments are as `keep_largest_` takes them.

    Example:
        >>> labels = np.array([2, 0, 1, 1, 0, 1, 0, 2], np.uint8).reshape(8, 1, 1)
        >>> drop_small_(labels, {1: 2})
        >>> labels.ravel().tolist()
        [2, 0, 1, 1, 0, 0, 0, 2]
    """

    def kept(value: int, mask: Mask) -> Mask:
        parts, sizes = numbered_components(mask)
        large: Mask = (sizes >= fewest[value])[parts] & mask
        return large

    _keep_(labels, fewest, regions or {}, kept)


def _keep_(
    labels: npt.NDArray[np.uint8],
    values: Collection[int],
    regions: Regions,
    kept: Callable[[int, Mask], Mask],
) -> None:
    """Set what `kept` leaves out of the mask of each of the labels `values` to 0, in place."""
    if not values:
        return
    memory = labels.T  # (K, J, I): the order in which memory is walked
    rows = memory.max(2)  # (K, J); a quick look that spares the slower one most of the scan
    if not rows.any():
        return
    memory = memory[extent(rows.any(1)), extent(rows.any(0))]
    boxes = ndimage.find_objects(memory)
    # Regions of several values come first: what is cut out of an inner one would split them.
    for value in sorted(values, key=lambda value: (-len(regions.get(value, ())), value)):
        if (box := label_box(boxes, value, regions)) is not None:
            part = memory[box].T  # (I, J, K)
            mask = label_mask(part, value, regions)
            part[mask & ~kept(value, mask)] = 0


def extent(line: Mask) -> slice:
    """From the first to the last true value of `line` (n,), which has one.

    Example:
        >>> extent(np.array([False, True, False, True, False]))
        slice(1, 4, None)
    """
    hit = np.flatnonzero(line)
    return slice(int(hit[0]), int(hit[-1]) + 1)
