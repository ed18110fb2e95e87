"""Dice of a network on prepared cases, on the network's own grid: fast, for choosing weights.

This is `dice_network_grid`. The Dice that a paper reports (`dice`, see `evaluation`) is computed
on the scanner's grid against the untouched reference; the two are never compared.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attunet3d.core import Size
from attunet3d.inference import Stitching, sliding_window_slabs
from attunet3d.training.cached_case import CachedCase

Forward = Callable[[Tensor], Tensor]


def predict_classes(
    case: CachedCase, forward: Forward, window: Size, device: torch.device, overlap: float = 0.25
) -> npt.NDArray[np.uint8]:
    """Class indices (X, Y, Z) that a network gives a prepared case.

    Args:
        case: The case.
        forward: (B, 1, x, y, z) → (B, K, x, y, z) logits.
        window: Voxels of a window.
        device: Where `forward` works.
        overlap: Of neighbouring windows; less than in inference, for speed.
    """
    image = torch.from_numpy(case.image().astype(np.float32))[None].to(device)  # (1, X, Y, Z)
    slabs = sliding_window_slabs(
        image, forward, window=window, overlap=overlap, stitching=Stitching(all_channels=True)
    )
    parts = [slab.logits.max(0)[1].to(torch.uint8).cpu() for slab in slabs]  # (X, Y, n)
    classes: npt.NDArray[np.uint8] = torch.cat(parts, -1).numpy()
    return classes


def dice_network_grid(
    cases: Sequence[CachedCase],
    forward: Forward,
    window: Size,
    device: torch.device,
    ignored: int | None = None,
) -> dict[int, float]:
    """Mean Dice of each class over the cases in which reference or prediction has it.

    Args:
        cases: Validation cases.
        forward: (B, 1, x, y, z) → (B, K, x, y, z) logits.
        window: Voxels of a window.
        device: Where `forward` works.
        ignored: Label value of voxels that count nowhere.

    Returns:
        Dice by class index, background left out; a class that no case has is missing.
    """
    scores: dict[int, list[float]] = {}
    for case in cases:
        predicted, label = predict_classes(case, forward, window, device), case.label()
        counted = label != ignored if ignored is not None else None
        for index in range(1, len(case.starts) - 1):
            ours, theirs = predicted == index, label == index
            if counted is not None:
                ours &= counted
            total = int(np.count_nonzero(ours)) + int(np.count_nonzero(theirs))
            if total:
                both = int(np.count_nonzero(ours & theirs))
                scores.setdefault(index, []).append(2 * both / total)
    return {index: float(np.mean(values)) for index, values in scores.items()}
