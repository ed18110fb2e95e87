"""How well a label map agrees with its reference: overlap, surface distances, volumes.

Overlap. With P and R the voxels of a label in prediction and reference:
Dice 2|P∩R| / (|P|+|R|), Jaccard |P∩R| / |P∪R|, precision |P∩R| / |P|, recall |P∩R| / |R|.

Distances. A surface is the set of a mask's voxels of which a face neighbour lies outside the mask
(or outside the scan); distances are those between voxel centres in the patient, so any spacing,
obliqueness or shear is right. The two directions, prediction → reference and back, are joined as
in MONAI: HD95 is the larger of the two 95th percentiles, the average distance is the mean over
both surfaces together, surface Dice the share of both surfaces within the tolerance. `nsd_1mm` and
`nsd_2mm` weigh surfaces by area, as most papers do: see `surfels`.

Empty masks. Both empty: a right answer, every ratio is 1. One of them empty: every ratio is 0.
Distances do not exist in either case: NaN. `empty_prediction` and `empty_reference` say so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from attunet3d.core import Array, Box, DataError, Floats, Mask
from attunet3d.evaluation.surfels import ROUNDING_MM, normalised_surface_dice
from attunet3d.imaging import Grid

NSD_MM = (1.0, 2.0)  # tolerances of `nsd_1mm` and `nsd_2mm`
POINTS = 200_000  # whose neighbours are looked for between two words about progress
TOLERANCE_MM = 2.0  # about two readers' disagreement on a clear border, and the paper's voxel


Done = Callable[[float], object]


def _nobody(share: float) -> None:
    """Takes word of the share of the work that is done."""


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """The scores of one label in one case; see the module for the definitions."""

    dice: float
    jaccard: float
    precision: float
    recall: float
    hd95_mm: float
    """95th percentile of the surface distances, the larger of the two directions."""
    asd_mm: float
    """Average symmetric surface distance."""
    surface_dice: float
    """Share of both surfaces' voxels that lies within the tolerance of the other."""
    nsd_1mm: float
    """Share of both surfaces' area within 1 mm of the other; see `surfels`."""
    nsd_2mm: float
    volume_ml_prediction: float
    volume_ml_reference: float
    volume_difference_ml: float
    """The volume of the prediction minus that of the reference."""
    empty_prediction: bool
    empty_reference: bool


def score(
    prediction: Array, reference: Array, grid: Grid, tolerance_mm: float = TOLERANCE_MM
) -> LabelScore:
    """Score one mask against its reference.

    Args:
        prediction: (I, J, K); what is not 0 is the organ.
        reference: (I, J, K), likewise.
        grid: Where both lie.
        tolerance_mm: The tolerance of surface Dice. Below the slice thickness, a surface that is
            shifted by one slice counts as wrong.

    Raises:
        DataError: A mask does not have the grid's shape, or the tolerance is negative or NaN.

    Example:
        >>> grid = Grid((1, 1, 8), np.diag([1.0, 1.0, 5.0, 1.0]))
        >>> reference = np.array([1, 1, 0, 0, 0, 0, 0, 0]).reshape(1, 1, 8)
        >>> result = score(np.roll(reference, 1), reference, grid)
        >>> result.dice, result.hd95_mm, result.asd_mm
        (0.5, 4.75, 2.5)
    """
    maps = [np.asarray(prediction) != 0, np.asarray(reference) != 0]
    scores = score_labels(maps[0].view(np.uint8), maps[1].view(np.uint8), grid, [1], tolerance_mm)
    return scores[1]


def score_labels(
    prediction: Array,
    reference: Array,
    grid: Grid,
    values: Sequence[int] | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    done: Done = _nobody,
) -> dict[int, LabelScore]:
    """Score the labels of one case, each within the box that contains it in either map.

    Args:
        prediction: (I, J, K) label values, whole numbers.
        reference: (I, J, K), likewise.
        grid: Where both lie.
        values: Labels to score; None: all that occur in either map except the background.
        tolerance_mm: As in `score`.
        done: Called with the share of the work that is done, in [0, 1].

    Raises:
        DataError: As in `score`.
    """
    if prediction.shape != grid.shape or reference.shape != grid.shape:
        raise DataError(
            f"prediction {prediction.shape} and reference {reference.shape} must both have the"
            f" grid's shape {grid.shape}",
            value=prediction.shape,
            cure="resample one of them",
        )
    check_tolerance(tolerance_mm)
    boxes = label_boxes(prediction), label_boxes(reference)
    found = sorted({*boxes[0], *boxes[1]}) if values is None else values
    unions = {value: _union([part[value] for part in boxes if value in part]) for value in found}
    sizes = {
        value: math.prod(axis.stop - axis.start for axis in box) for value, box in unions.items()
    }
    scores, before, whole = {}, 0, sum(sizes.values())
    for value, box in unions.items():
        masks = prediction[box] == value, reference[box] == value
        part = _part(done, before / whole, sizes[value] / whole)
        scores[value] = _score(*masks, grid.cropped(box), tolerance_mm, part)
        before += sizes[value]
    return scores


def check_tolerance(tolerance_mm: float) -> None:
    """Raise a DataError unless the tolerance of surface Dice is 0 mm or more."""
    if not tolerance_mm >= 0:
        rule = f"tolerance {tolerance_mm} mm: must be 0 or more"
        raise DataError(rule, value=tolerance_mm, cure="give another one")


def label_boxes(array: Array) -> dict[int, Box]:
    """The box of each label that occurs in a label map (I, J, K), except the background.

    Example:
        >>> label_boxes(np.array([0, 0, 3, 3]).reshape(1, 4, 1))
        {3: (slice(0, 1, None), slice(2, 4, None), slice(0, 1, None))}
    """
    boxes = find_objects(array.T)  # (K, J, I): the order in which label maps lie in memory
    return {
        index: (box[2], box[1], box[0]) for index, box in enumerate(boxes, 1) if box is not None
    }


def dice(prediction: Array, reference: Array) -> float:
    """Dice of two masks of one shape; 1 when both are empty.

    Example:
        >>> dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]))
        0.5
    """
    p, r = np.asarray(prediction) != 0, np.asarray(reference) != 0
    both, whole = np.count_nonzero(p & r), np.count_nonzero(p) + np.count_nonzero(r)
    return _ratio(2 * int(both), int(whole))


def absent() -> LabelScore:
    """The score of a label that is in neither map, as it should be."""
    nothing = np.zeros((1, 1, 1), np.bool_)
    return _score(nothing, nothing, Grid((1, 1, 1), np.eye(4)), TOLERANCE_MM)


def unknown() -> LabelScore:
    """The score of a label that was not annotated: no number, and no empty mask to count."""
    names = [field.name for field in fields(LabelScore)]
    values: dict[str, Any] = {
        name: False if name.startswith("empty") else math.nan for name in names
    }
    return LabelScore(**values)


def _score(
    prediction: Mask, reference: Mask, grid: Grid, tolerance_mm: float, done: Done = _nobody
) -> LabelScore:
    p, r = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(prediction & reference))
    hd95, asd, surface = _surface_scores(
        prediction, reference, grid, tolerance_mm, _part(done, 0, 0.6)
    )
    nsd = normalised_surface_dice(prediction, reference, grid, NSD_MM, _part(done, 0.6, 0.4))
    voxel = grid.voxel_volume_ml
    overlap = both > 0 or p == r == 0  # else every ratio is 0, the undefined ones included
    return LabelScore(
        dice=_ratio(2 * both, p + r),
        jaccard=_ratio(both, p + r - both),
        precision=_ratio(both, p) if overlap else 0.0,
        recall=_ratio(both, r) if overlap else 0.0,
        hd95_mm=hd95,
        asd_mm=asd,
        surface_dice=surface,
        nsd_1mm=nsd[0],
        nsd_2mm=nsd[1],
        volume_ml_prediction=p * voxel,
        volume_ml_reference=r * voxel,
        volume_difference_ml=(p - r) * voxel,
        empty_prediction=p == 0,
        empty_reference=r == 0,
    )


def _surface_scores(
    prediction: Mask, reference: Mask, grid: Grid, tolerance_mm: float, done: Done
) -> tuple[float, float, float]:
    """HD95 in mm, average surface distance in mm, surface Dice."""
    p, r = surface_points(prediction, grid), surface_points(reference, grid)  # (n, 3), (m, 3)
    if not len(p) or not len(r):
        return float("nan"), float("nan"), float(len(p) == len(r))
    there, back = _nearest(p, r, _part(done, 0, 0.5)), _nearest(r, p, _part(done, 0.5, 0.5))
    every = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    # What lies exactly at the tolerance may miss it by the rounding of world positions.
    near = np.count_nonzero(every <= tolerance_mm + ROUNDING_MM)
    return float(hd95), float(every.mean()), near / len(every)


def surface_points(mask: Mask, grid: Grid) -> Floats:
    """World positions (n, 3), mm, of the voxels of a mask that have a face neighbour outside it.

    Example:
        >>> cube = np.zeros((5, 5, 5), bool)
        >>> cube[1:4, 1:4, 1:4] = True
        >>> surface_points(cube, Grid((5, 5, 5), np.eye(4))).shape
        (26, 3)
    """
    mask = mask.T  # (K, J, I): the order in which label maps lie in memory
    surface = mask & ~binary_erosion(mask)  # outside the array counts as outside the mask
    return grid.to_world(np.argwhere(surface)[:, ::-1])


def _nearest(points: Floats, others: Floats, done: Done) -> npt.NDArray[np.float64]:
    """Distance (n,) in mm from each of `points` (n, 3) to the nearest of `others` (m, 3)."""
    # Voxel centres fill their box evenly: splitting at the middle is as good as at the median.
    tree = KDTree(others, leafsize=32, balanced_tree=False)
    distances = np.empty(len(points))
    for first in range(0, len(points), POINTS):
        part = slice(first, first + POINTS)
        distances[part] = tree.query(points[part])[0]
        done((first + POINTS) / len(points))
    return distances


def _part(done: Done, first: float, share: float) -> Done:
    """`done` for a part of the work: `share` of the whole, which begins at `first`."""
    return lambda here: done(first + share * min(1.0, here))


def _union(boxes: Sequence[Box]) -> Box:
    """The box around all boxes, or one voxel if there are none."""
    boxes = boxes or [(slice(0, 1), slice(0, 1), slice(0, 1))]
    a, b, c = (
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*boxes, strict=True)
    )
    return a, b, c


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
