"""Label maps of sheared grids (a tilted gantry) on grids with right angles, for programs of ITK."""

from dataclasses import replace

import numpy as np

from attunet3d.core import LabelMap
from attunet3d.imaging.volume import Segmentation


def straightened(segmentation: Segmentation) -> Segmentation:
    """Resample a label map to a grid without shear that covers it, by nearest neighbour.

    Voxels beyond the old grid are background. Of a tilted gantry each slice is only shifted, by
    less than half a voxel off its exact place.

    Returns:
        The label map on `Grid.straightened`; the same object where nothing is sheared.

    Example:
        >>> from attunet3d.imaging.geometry import Grid
        >>> tilted = np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        >>> labels = np.zeros((1, 3, 2), np.uint8)
        >>> labels[0, 1] = 7
        >>> segmentation = Segmentation(labels, Grid((1, 3, 2), tilted), {0: "background", 7: "x"})
        >>> straightened(segmentation).array[0].tolist()  # the upper slice lies one voxel further
        [[0, 0], [7, 0], [0, 7], [0, 0]]
    """
    grid = segmentation.grid
    if not grid.is_sheared:
        return segmentation
    target = grid.straightened()
    relation = np.linalg.inv(grid.affine) @ target.affine  # target index -> source index
    i, j = np.ogrid[: target.shape[0], : target.shape[1]]
    array: LabelMap = np.zeros(target.shape, np.uint8, order="F")
    for k in range(target.shape[2]):
        exact = [row[0] * i + row[1] * j + row[2] * k + row[3] for row in relation[:3]]
        index = [np.floor(axis + 0.5 - 1e-6).astype(np.int64) for axis in exact]  # halves: down
        inside = np.ones(target.shape[:2], bool)
        for axis, size in zip(index, grid.shape, strict=True):
            inside &= (axis >= 0) & (axis < size)
            axis.clip(0, size - 1, out=axis)
        array[..., k] = segmentation.array[tuple(index)] * inside
    return replace(segmentation, array=array, grid=target, geometry=None)
