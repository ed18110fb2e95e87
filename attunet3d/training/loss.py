"""What training minimises: losses of torch and MONAI by name, at one scale or several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from monai.networks import one_hot
from torch import Tensor

from attunet3d.core import SettingsError, TrainingConfig

# (B, C, X, Y, Z) float32 logits, (B, 1, X, Y, Z) class indices → scalar
Criterion = Callable[[Tensor, Tensor], Tensor]

SMOOTH = 1e-5  # added above and below the fraction bar: a class in neither mask has Dice 1


@dataclass(frozen=True)
class DeepSupervision:
    """A loss at every scale, weighted 1, 1/2, 1/4, … over their sum (Isensee et al. 2021).

    Args:
        criterion: The loss of one scale.
    """

    criterion: Criterion

    def __call__(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        """The weighted mean over the scales, in float32.

        Args:
            logits: (B, C, x, y, z) a scale, finest first, of any floating type.
            label: (B, 1, X, Y, Z) class indices (and the ignored value) at the finest scale.
        """
        weights = [0.5**scale for scale in range(len(logits))]
        losses = [
            weight * self.criterion(scale.float(), at_size(label, scale))
            for weight, scale in zip(weights, logits, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def build_loss(config: TrainingConfig, out_channels: int) -> DeepSupervision:
    """The loss that a configuration names.

    Every loss but "bce" sees a softmax over the classes; "bce" sees each class by itself. Dice and
    Tversky are means over patches and classes; the background is one of them, as in the authors'
    soft Dice, unless `dice_background` is off.

    Args:
        config: `loss` and what it says of the loss count.
        out_channels: Classes, background included.

    Returns:
        (list of logits finest first, label (B, 1, X, Y, Z) uint8) → scalar.

    Raises:
        SettingsError: There is no such loss, or there are fewer than two classes.

    Example:
        >>> criterion = build_loss(TrainingConfig(loss="ce"), 2)
        >>> label = torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8)
        >>> round(float(criterion([torch.zeros(1, 2, 2, 2, 2)], label)), 4)  # ln 2
        0.6931
    """
    if out_channels < 2:
        raise SettingsError(
            f"a loss needs 2 classes or more, background included, got {out_channels}"
        )
    ignored = config.ignore_index
    regions = {"to_onehot_y": True, "softmax": True, "smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
    regions |= {"include_background": config.dice_background, "batch": config.dice_batch}
    false_positives, false_negatives = config.tversky
    dice = DiceLoss(ignore_index=ignored, **regions)

    def ce(logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label, ignored)

    losses: dict[str, Criterion] = {
        "dice": dice,
        "ce": ce,
        "dice_ce": lambda logits, label: dice(logits, label) + ce(logits, label),
        "bce": binary_cross_entropy,
        "focal": FocalLoss(gamma=config.focal_gamma, to_onehot_y=True, use_softmax=True),
        "tversky": TverskyLoss(alpha=false_positives, beta=false_negatives, **regions),
    }
    if config.loss not in losses:
        raise SettingsError(
            f"training.loss must be one of {', '.join(losses)}, got {config.loss!r}"
        )
    return DeepSupervision(losses[config.loss])


def cross_entropy(logits: Tensor, label: Tensor, ignored: int | None) -> Tensor:
    """Mean cross-entropy over the voxels that count; 0 where none does.

    Args:
        logits: (B, C, X, Y, Z).
        label: (B, 1, X, Y, Z).
        ignored: Label value of the voxels that do not count.
    """
    target = label[:, 0].long()  # (B, X, Y, Z)
    if ignored is None:
        return F.cross_entropy(logits, target)
    counted = torch.ne(target, ignored).sum().clamp(min=1)  # torch's own mean of nothing is NaN
    return F.cross_entropy(logits, target, ignore_index=ignored, reduction="sum") / counted


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross-entropy of each class (B, C, X, Y, Z) against all others."""
    target: Tensor = one_hot(label, logits.shape[1])  # (B, C, X, Y, Z) float32
    return F.binary_cross_entropy_with_logits(logits, target)


def at_size(label: Tensor, like: Tensor) -> Tensor:
    """`label` (B, 1, X, Y, Z) at the spatial size of `like`, by nearest neighbour."""
    if label.shape[2:] == like.shape[2:]:
        return label
    # uint8 is the only integer type that interpolation takes everywhere
    return F.interpolate(label.to(torch.uint8), like.shape[2:], mode="nearest-exact")
