"""Outlines of real organs whose header does not say how the patient lay.

Public label maps often come with a diagonal affine: the spacing is right, the directions are not.
They follow from the organs. Along each axis two groups of organs are compared, one of which lies
further right, further in front or further up in every patient whose organs lie as usual:

* right: the liver, against the spleen;
* front: stomach and gallbladder, against the left kidney and the spleen;
* head: liver, spleen and oesophagus, against the left kidney and the duodenum.

Where only the pancreas is outlined, its shape tells, on average over the patients of a source,
whose arrays are all stored alike: the bulky head lies right of the thin tail, further in front and
lower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from attunet3d.core import Array, DataError, Float32s, Floats, LabelMap
from attunet3d.imaging import Grid, read_label

RULES = (  # organs that lie further along R, A and S, and those that they are compared with
    (("liver",), ("spleen",)),
    (("stomach", "gallbladder"), ("left kidney", "spleen")),
    (("liver", "spleen", "oesophagus"), ("left kidney", "duodenum")),
)
LEAST_MM = 8.0  # by which the two groups must lie apart


@dataclass(frozen=True, eq=False)
class Outlines:
    """Organs of one patient on an upright grid.

    Args:
        array: (I, J, K) label values, RAS.
        grid: Upright, RAS.
        names: Label values and the organs they stand for.
    """

    array: LabelMap
    grid: Grid
    names: Mapping[int, str]

    def centres_mm(self) -> dict[str, Floats]:
        """World position (3,) of the middle of each organ that is there."""
        return organ_centres(self.array, self.grid, self.names)


def read_outlines(path: Path, names: Mapping[int, str]) -> Outlines:
    """Read a label map of abdominal organs and find its directions from the organs.

    Args:
        path: NIfTI; its spacing is believed, its directions are not.
        names: Label values and organs, named as in `RULES`; other labels are left out.

    Raises:
        DataError: An organ that tells the directions is missing, or two lie too close to tell.
    """
    label = read_label(path)
    array = np.where(np.isin(label.array, list(names)), label.array, np.uint8(0))
    grid = Grid(label.grid.shape, np.diag([*label.grid.spacing_mm, 1.0]))
    try:
        signs = directions(organ_centres(array, grid, names))
    except DataError as error:
        raise error.within(path) from None
    return turned(Outlines(array, grid, dict(names)), signs)


def organ_centres(array: Array, grid: Grid, names: Mapping[int, str]) -> dict[str, Floats]:
    """World position (3,) of the middle of each organ that occurs in a label map."""
    boxes = find_objects(array)
    found = {}
    for value, name in names.items():
        if value <= len(boxes) and (box := boxes[value - 1]) is not None:
            index = np.argwhere(array[box] == value).mean(axis=0) + [part.start for part in box]
            found[name] = grid.to_world(index)
    return found


def directions(centres: Mapping[str, Floats]) -> tuple[int, int, int]:
    """+1 or −1 for each axis: whether it grows towards R, A and S.

    Args:
        centres: Middle of each organ (3,) in mm along the array's own axes.

    Raises:
        DataError: The organs of a rule are missing, or lie too close to tell.
    """
    signs = []
    for axis, (further, other) in enumerate(RULES):
        groups = [[centres[n][axis] for n in part if n in centres] for part in (further, other)]
        if not all(groups):
            raise DataError(
                f"needs {' or '.join(further)} and {' or '.join(other)} to find axis {axis}",
                cure="leave this label map out, or give its organs these names",
            )
        apart = float(np.mean(groups[0]) - np.mean(groups[1]))
        if abs(apart) < LEAST_MM:
            raise DataError(
                f"organs lie {abs(apart):.0f} mm apart along axis {axis}, too close to tell its"
                " direction",
                value=apart,
            )
        signs.append(1 if apart > 0 else -1)
    return signs[0], signs[1], signs[2]


def pancreas_directions(patients: Sequence[Floats]) -> tuple[int, int, int]:
    """+1 or −1 for each axis: whether it grows towards R, A and S, in all patients of one source.

    Right is where the tail is not: there the third moment of the voxels is negative. Towards right
    the pancreas comes forward and descends. One patient misleads easily; the mean over many does
    not.

    Args:
        patients: For each, the voxels of the pancreas (n, 3) in mm along the array's own axes.

    Example:
        >>> x = np.repeat(np.arange(-3.0, 2.0), [1, 1, 1, 9, 9])  # a thin tail, a bulky head
        >>> pancreas_directions([np.stack([x, x / 2, -x], axis=1)])
        (1, 1, 1)
    """
    tells = np.zeros(3)
    for points in patients:
        x, y, z = ((points - points.mean(axis=0)) / points.std(axis=0)).T
        tells += [-(x**3).mean(), (x * y).mean(), -(x * z).mean()]
    right, forward, up = (1 if value > 0 else -1 for value in tells)
    return right, right * forward, right * up


def turned(outlines: Outlines, signs: Sequence[int]) -> Outlines:
    """Outlines of an array whose axes grow towards R, A and S where the sign is +1."""
    flips = tuple(axis for axis, sign in enumerate(signs) if sign < 0)
    return Outlines(np.flip(outlines.array, flips), outlines.grid, outlines.names)


def coarsened(outlines: Outlines, factors: Sequence[int]) -> tuple[Float32s, Grid]:
    """The share of each organ in blocks of voxels: what a larger voxel holds.

    Returns:
        (organs, I, J, K) shares in the order of `outlines.names`, and the grid of the blocks.
    """
    p, q, r = (n // factor for n, factor in zip(outlines.array.shape, factors, strict=True))
    a, b, c = (int(factor) for factor in factors)
    blocks = outlines.array[: p * a, : q * b, : r * c].reshape(p, a, q, b, r, c)
    shares = np.zeros((len(outlines.names), p, q, r), np.float32)
    boxes = find_objects(outlines.array)
    for row, value in enumerate(outlines.names):
        if value <= len(boxes) and (box := boxes[value - 1]) is not None:
            i, j, k = (
                slice(part.start // factor, -(-part.stop // factor))
                for part, factor in zip(box, (a, b, c), strict=True)
            )
            own = blocks[i, :, j, :, k] == value
            shares[row, i, j, k] = own.mean(axis=(1, 3, 5), dtype=np.float32)
    step = np.diag([a, b, c, 1.0])
    step[:3, 3] = (np.array([a, b, c]) - 1) / 2
    return shares, Grid((p, q, r), outlines.grid.affine @ step)
