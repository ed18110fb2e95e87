"""Prepared cases, as `attunet3d.training.cache` writes them."""

from pathlib import Path

import numpy as np

from attunet3d.core import Array
from attunet3d.training.cached_case import CachedCase


def stored_case(
    folder: Path,
    image: Array,
    label: Array,
    classes: int = 2,
    annotated: tuple[int, ...] | None = None,
    air: float = -1.0,
) -> CachedCase:
    """Write a case of some classes; every foreground voxel is listed."""
    folder.mkdir(parents=True)
    voxels = [np.argwhere(label == index).astype(np.int32) for index in range(1, classes)]
    starts = (0, *np.cumsum([0, *map(len, voxels)]).tolist())
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "label.npy", label.astype(np.uint8))
    np.save(folder / "foreground.npy", np.concatenate(voxels))
    i, j, k = label.shape
    return CachedCase(folder.name, folder, (i, j, k), air, starts, annotated, annotated)
