"""What training minimises: losses of torch and MONAI by name, over one scale or several."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor, nn

from attunet3d.config import TrainingConfig

SMOOTH = 1e-5  # of numerator and denominator: two empty masks have Dice 1


class ScaleLoss(nn.Module):
    """One loss between logits and class indices of one resolution.

    Args:
        config: Names the loss and its numbers.
        out_channels: Classes, background included. All but "bce" see a softmax over them.
    """

    def __init__(self, config: TrainingConfig, out_channels: int) -> None:
        super().__init__()
        self.name, self.ignored, self.classes = config.loss, config.ignore_index, out_channels
        shared = {"softmax": True, "smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
        false_positives, false_negatives = config.tversky
        self.dice = DiceLoss(include_background=True, **shared)
        self.dice_ce = DiceCELoss(include_background=True, **shared)
        self.focal = FocalLoss(gamma=config.focal_gamma, use_softmax=True)
        self.tversky = TverskyLoss(alpha=false_positives, beta=false_negatives, **shared)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: (B, C, X, Y, Z).
            label: (B, 1, X, Y, Z) class indices (and the ignored value).
        """
        logits = logits.float()
        if self.ignored is not None:
            return self._with_ignored(logits, label[:, 0].long())
        if self.name == "ce":
            return F.cross_entropy(logits, label[:, 0].long())
        target = F.one_hot(label[:, 0].long(), self.classes).movedim(-1, 1).to(logits.dtype)
        if self.name == "bce":
            return F.binary_cross_entropy_with_logits(logits, target)
        criterion: nn.Module = getattr(self, self.name)
        loss: Tensor = criterion(logits, target)
        return loss

    def _with_ignored(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy, and Dice for "dice_ce", over the voxels that count."""
        assert self.ignored is not None
        ignored: int = self.ignored
        counted = torch.ne(label, ignored)  # (B, X, Y, Z)
        if not bool(counted.any()):
            return logits.sum() * 0.0  # nothing counts: no loss, and no gradient
        entropy = F.cross_entropy(logits, label, ignore_index=ignored)
        if self.name == "ce":
            return entropy
        # Dice sees probabilities and targets of 0 where nothing counts: they add to no sum.
        kept = counted[:, None].to(logits.dtype)
        target = F.one_hot(torch.where(counted, label, 0), self.classes).movedim(-1, 1) * kept
        plain = DiceLoss(include_background=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
        dice: Tensor = plain(logits.softmax(1) * kept, target)
        return entropy + dice


class DeepSupervision(nn.Module):
    """A loss at every scale, weighted 1, 1/2, 1/4, … and normalised to 1 (Isensee et al. 2021).

    Labels are brought to each scale by nearest neighbour.
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        """The weighted sum.

        Args:
            logits: (B, C, x, y, z) a scale, finest first.
            label: (B, 1, X, Y, Z) uint8 class indices at the finest scale.
        """
        weights = [0.5**index for index in range(len(logits))]
        losses = [
            weight * self.criterion(scale, at_size(label, scale))
            for weight, scale in zip(weights, logits, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def at_size(label: Tensor, like: Tensor) -> Tensor:
    """`label` (B, 1, X, Y, Z) at the spatial size of `like`, by nearest neighbour."""
    if label.shape[2:] == like.shape[2:]:
        return label
    return F.interpolate(label.float(), like.shape[2:], mode="nearest-exact").to(label.dtype)


def build_loss(config: TrainingConfig, out_channels: int) -> DeepSupervision:
    """The loss that a configuration names.

    Args:
        config: `loss`, `ignore_index`, `tversky` and `focal_gamma` count.
        out_channels: Classes, background included.

    Returns:
        (list of logits finest first, label (B, 1, X, Y, Z) uint8) → scalar.

    Example:
        >>> criterion = build_loss(TrainingConfig(loss="ce"), 2)
        >>> label = torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8)
        >>> round(float(criterion([torch.zeros(1, 2, 2, 2, 2)], label)), 4)  # ln 2
        0.6931
    """
    return DeepSupervision(ScaleLoss(config, out_channels))
