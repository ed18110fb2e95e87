"""What training minimises: losses of torch and MONAI by name, at one scale or several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from monai.networks import one_hot
from torch import Tensor

from attunet3d.core import SettingsError, TrainingConfig
from attunet3d.training.components import Criterion

SMOOTH = 1e-5  # added above and below the fraction bar: a class in neither mask has Dice 1


@dataclass(frozen=True)
class DeepSupervision:
    """A loss at every scale but the coarsest, weighted 1, 1/2, 1/4, … over their sum.

    The coarsest of several scales has weight 0, as in nnU-Net (Isensee et al. 2021).

    Args:
        criterion: The loss of one scale.
        strides: Voxels of the finest scale per voxel of each scale, finest first; empty:
            inferred from the sizes, which is exact if the strides divide them.
    """

    criterion: Criterion
    strides: Sequence[Sequence[int]] = ()

    def __call__(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """The weighted mean over the scales, in float32.

        Args:
            logits: (B, C, x, y, z) per scale, finest first, of any floating type.
            label: (B, 1, X, Y, Z) class indices (and the ignored value) at the finest scale.
        """
        scales = [logits] if isinstance(logits, Tensor) else logits
        counted = scales[: max(1, len(scales) - 1)]
        weights = [0.5**number for number in range(len(counted))]
        losses = [
            weight * self.criterion(scale.float(), at_scale(label, scale, self._stride(number)))
            for number, (weight, scale) in enumerate(zip(weights, counted, strict=True))
        ]
        return torch.stack(losses).sum() / sum(weights)

    def _stride(self, number: int) -> Sequence[int] | None:
        return self.strides[number] if number < len(self.strides) else None


def build_loss(
    config: TrainingConfig, out_channels: int, strides: Sequence[Sequence[int]] = ()
) -> DeepSupervision:
    """The loss that a configuration names, at every scale.

    Args:
        config: `loss` and what it says of the loss count.
        out_channels: Classes, background included.
        strides: See `DeepSupervision`.

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
    return DeepSupervision(build_criterion(config, out_channels), strides)


def build_criterion(config: TrainingConfig, out_channels: int) -> Criterion:
    """The loss of one scale that a configuration names.

    Every loss but "bce" sees a softmax over the classes; "bce" sees each class by itself. Dice and
    Tversky are means over patches and classes; the background is one of them, as in the authors'
    soft Dice, unless `dice_background` is off.

    Raises:
        SettingsError: There is no such loss, or there are fewer than two classes.
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
    return losses[config.loss]


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


def at_scale(label: Tensor, like: Tensor, stride: Sequence[int] | None = None) -> Tensor:
    """`label` (B, 1, X, Y, Z) at the voxels of a coarser scale, by nearest neighbour.

    Args:
        label: At the finest scale.
        like: (…, x, y, z): the coarser scale. Its voxel i covers the voxels i·s to (i + 1)·s − 1
            of the finest, of which the network repeats the last where the strides divide it not.
        stride: s along each axis; None: the ratio of the sizes, rounded up.

    Example:
        >>> label = torch.arange(5, dtype=torch.uint8).view(1, 1, 5, 1, 1)
        >>> at_scale(label, torch.zeros(1, 2, 3, 1, 1), (2, 1, 1)).flatten().tolist()
        [1, 3, 4]
    """
    for axis, (fine, coarse) in enumerate(zip(label.shape[2:], like.shape[2:], strict=True)):
        step = stride[axis] if stride else -(-fine // coarse)
        if step > 1:
            voxels = torch.arange(coarse, device=label.device) * step + step // 2
            label = label.index_select(2 + axis, voxels.clamp_(max=fine - 1))
    return label
