"""Pictures of a validation case for TensorBoard: outlines on a slice, and where the gates open."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

from attunet3d.core import Float32s, Mask, Size
from attunet3d.evaluation import slices
from attunet3d.inference import winning_values
from attunet3d.training import distributed
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.step import TrainingStep

LEAST_PIXELS = 240  # of a picture's shorter side
COLOURS = {"reference": (33, 199, 243), "prediction": (255, 144, 0)}  # as in `validation/*.png`
Picture = npt.NDArray[np.uint8]
"""(rows, columns, 3)."""


@torch.no_grad()
def validation_pictures(
    cases: Sequence[CachedCase],
    update: TrainingStep,
    network: nn.Module,
    window: Size,
    labels: LabelClasses,
) -> dict[str, Picture]:
    """A slice through the middle of what is labelled in the first case, in one window.

    Args:
        cases: Of the validation.
        update: Its `forward` gives the logits.
        network: In eval mode; gates are drawn if it has `forward_with_attention`.
        window: Voxels of the window.
        labels: What the classes are.

    Returns:
        "outlines" of reference and prediction, all labels as one, and "gate 1" (of the finest gated
        level) and so on, bright where the gate is open. The patient's right is on the left. Nothing
        without cases, and in all processes of a run but the first.
    """
    if not cases or not distributed.is_first():
        return {}
    case = cases[0]
    labelled = np.isin(case.label(), case.classes)
    middle = slices.middle(labelled)
    starts = [
        max(0, min(m - w // 2, n - w)) for m, w, n in zip(middle, window, case.shape, strict=True)
    ]
    x, y, z = (slice(start, start + length) for start, length in zip(starts, window, strict=True))
    k = middle[2] - starts[2]
    image = np.asarray(case.image()[x, y, z], np.float32)
    patch = torch.from_numpy(image)[None, None].to(update.device)
    order = [labels.values.index(value) for value in labels.order]
    gates: list[Tensor] = []
    logits = update.forward(_keeping(network, gates), patch)
    found = winning_values(logits[0], labels.written, order)[..., k]
    grey = _grey(image[:, :, k])
    outlines = grey.copy()
    outlines[_outline(labelled[x, y, z][:, :, k])] = COLOURS["reference"]
    outlines[_outline(found.cpu().numpy() > 0)] = COLOURS["prediction"]
    pictures = {"outlines": _upright(outlines)}
    for number, gate in enumerate(gates, 1):
        bright = _plane(gate, image.shape, k)[..., None] * np.array([255, 200, 0])
        pictures[f"gate {number}"] = _upright((grey * 0.5 + bright * 0.5).astype(np.uint8))
    return pictures


def _keeping(network: nn.Module, gates: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The network, which leaves the coefficients of its levels in `gates`, if it has any."""
    if not hasattr(network, "forward_with_attention"):
        return network

    def compute(x: Tensor) -> Tensor:
        levels: list[Tensor]
        logits: Tensor
        logits, levels = network.forward_with_attention(x)  # type: ignore[operator]
        gates.extend(levels)
        return logits

    return compute


def _plane(level: Tensor, size: Sequence[int], k: int) -> Float32s:
    """Plane k (X, Y) of a level's coefficients (1, gates, x, y, z), the mean of its gates."""
    mean = level.float().mean(1, keepdim=True)
    plane: Float32s = F.interpolate(mean, size, mode="trilinear")[0, 0, :, :, k].cpu().numpy()
    return plane


def _grey(plane: Float32s) -> Picture:
    low, high = np.percentile(plane, (1, 99.5))
    values = (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=-1)


def _outline(mask: Mask) -> Mask:
    """The voxels (X, Y) of a mask that have a neighbour outside of it."""
    outline: Mask = mask & ~binary_erosion(mask)  # outside the array counts as outside the mask
    return outline


def _upright(picture: Picture) -> Picture:
    """From (R, A, RGB) to rows from anterior and columns from the right, in larger pixels."""
    shown = picture[::-1, ::-1].transpose(1, 0, 2)
    times = -(-LEAST_PIXELS // min(shown.shape[:2]))
    return shown.repeat(times, 0).repeat(times, 1)
