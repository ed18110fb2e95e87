"""Where the classes of a prepared case lie: voxels on which training centres its patches."""

import numpy as np
import numpy.typing as npt

FOREGROUND_VOXELS = 10_000  # kept of each class; as many centres per case are as good as all


def foreground_voxels(
    label: npt.NDArray[np.uint8], classes: int, ignored: int | None = None
) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Up to FOREGROUND_VOXELS voxels of each class, of background only where voxels are ignored.

    There, a patch anywhere may hold nothing to learn from; elsewhere, background is everywhere.

    Returns:
        (n, 3) voxel indices, class by class, always the same ones; and the `classes + 1` rows
        at which the classes start and end.

    Example:
        >>> foreground_voxels(np.array([[[0, 2, 2]]], np.uint8), 3)[0].tolist()
        [[0, 0, 1], [0, 0, 2]]
    """
    flat, starts = [np.zeros(0, np.int64)], [0]
    sparse = ignored is not None and bool((label == ignored).any())
    for index in range(classes):
        voxels = np.flatnonzero(label == index) if index or sparse else flat[0]
        if len(voxels) > FOREGROUND_VOXELS:
            generator = np.random.default_rng(index)
            voxels = np.sort(generator.choice(voxels, FOREGROUND_VOXELS, replace=False))
        flat.append(voxels)
        starts.append(starts[-1] + len(voxels))
    points = np.stack(np.unravel_index(np.concatenate(flat), label.shape), axis=1)
    return points.astype(np.int32), starts
