"""What can be measured of each label of a label map: volume, HU, connected parts, cut-off ends."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from attunet3d.core import Array, Box, LabelMap
from attunet3d.imaging.components import NEIGHBOURS, label_box, label_mask
from attunet3d.imaging.volume import Segmentation, Volume


@dataclass(frozen=True, kw_only=True)
class LabelMeasures:
    """One label of one case; zeros where nothing is labelled so."""

    value: int
    voxels: int = 0
    ml: float = 0.0
    hu_mean: float | None = None
    hu_sd: float | None = None
    pieces: int = 0
    """Connected parts; voxels that touch by face, edge or corner are connected."""
    largest_piece: float = 0.0
    """Share of the voxels that the largest part has."""
    touches_border: bool = False
    """Whether it reaches the outermost voxels of the scan, so that it may go on behind them."""


def measure_labels(
    segmentation: Segmentation, scan: Volume | None = None
) -> dict[str, LabelMeasures]:
    """Measure each foreground label, and the HU within it where its scan is given.

    Returns:
        By label name, in the order of the label values.

    Example:
        >>> from attunet3d.imaging.geometry import Grid
        >>> array = np.zeros((9, 9, 9), np.uint8); array[0, 0, 0] = array[4:6, 4, 4] = 3
        >>> case = Segmentation(array, Grid((9, 9, 9), np.eye(4)), {0: "background", 3: "cyst"})
        >>> found = measure_labels(case)["cyst"]
        >>> found.voxels, found.pieces, round(found.largest_piece, 2), found.touches_border
        (3, 2, 0.67, True)
    """
    boxes = ndimage.find_objects(segmentation.array.T)  # (K, J, I): the order of memory
    hu = None if scan is None else scan.array.T
    measured = {}
    for value, name in sorted(segmentation.labels.items()):
        if not value:
            continue
        box = label_box(boxes, value, segmentation.regions)
        if box is None:
            measured[name] = LabelMeasures(value=value)
        else:
            measured[name] = _measure(segmentation, value, box, None if hu is None else hu[box])
    return measured


def _measure(segmentation: Segmentation, value: int, box: Box, hu: Array | None) -> LabelMeasures:
    labels: LabelMap = segmentation.array.T
    mask = label_mask(labels[box], value, segmentation.regions)
    parts, count = ndimage.label(mask, NEIGHBOURS)
    sizes = np.bincount(parts.ravel())[1:]
    values = None if hu is None else hu[mask].astype(np.float64)
    edges = zip(box, labels.shape, strict=True)
    return LabelMeasures(
        value=value,
        voxels=int(sizes.sum()),
        ml=round(int(sizes.sum()) * segmentation.grid.voxel_volume_ml, 6),
        hu_mean=None if values is None else round(float(values.mean()), 2),
        hu_sd=None if values is None else round(float(values.std()), 2),
        pieces=count,
        largest_piece=round(float(sizes.max() / sizes.sum()), 6),
        touches_border=any(part.start == 0 or part.stop == size for part, size in edges),
    )


def measure_ranges(
    cases: list[Mapping[str, LabelMeasures]],
) -> dict[str, dict[str, tuple[float, float]]]:
    """The least and the largest volume (ml) and mean HU of each label over cases.

    Example:
        >>> small = {"cyst": LabelMeasures(value=1, voxels=9, ml=2.0, hu_mean=8.0)}
        >>> measure_ranges([small, {"cyst": LabelMeasures(value=1)}])
        {'cyst': {'ml': (0.0, 2.0), 'hu': (8.0, 8.0)}}
    """
    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    for name in {name: None for case in cases for name in case}:
        found = [case[name] for case in cases if name in case]
        volumes = [label.ml for label in found]
        means = [label.hu_mean for label in found if label.hu_mean is not None]
        ranges[name] = {"ml": (min(volumes), max(volumes))}
        if means:
            ranges[name]["hu"] = (min(means), max(means))
    return ranges
