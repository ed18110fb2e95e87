"""What training minimises: losses of torch and MONAI by name, at one scale or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor

from attunet3d.core import SettingsError, TrainingConfig
from attunet3d.training.components import Criterion
from attunet3d.training.targets import Annotated, SigmoidTargets, SoftmaxTargets

SURELY_NOT = -1e4  # a logit whose sigmoid is 0, and whose loss is 0 where the target is 0
SMOOTH = 1e-5  # added above and below the fraction bar: a class in neither mask has Dice 1


@dataclass(frozen=True)
class DeepSupervision:
    """A loss at every scale but the coarsest, weighted 1, 1/2, 1/4, … over their sum.

    The coarsest of several scales has weight 0, as in nnU-Net (Isensee et al. 2021).

    Args:
        criterion: The loss of one scale.
        strides: Voxels of the finest scale per voxel of each scale, finest first; empty:
            inferred from the sizes, which is exact if the strides divide them.

    Attributes:
        latest: The loss of each scale that counted in the latest call, without its weight; where
            not everything was annotated, of the last patches with the same classes alone.
    """

    criterion: Criterion
    strides: Sequence[Sequence[int]] = ()
    targets: SoftmaxTargets | SigmoidTargets = SoftmaxTargets()  # noqa: RUF009 (frozen)
    latest: list[Tensor] = field(default_factory=list, init=False, compare=False, repr=False)

    def __call__(
        self,
        logits: Tensor | Sequence[Tensor],
        label: Tensor,
        annotated: Sequence[Annotated] = (),
    ) -> Tensor:
        """The weighted mean over the scales, in float32.

        Patches in which the same classes were annotated go through the criterion together.

        Args:
            logits: (B, C, x, y, z) per scale, finest first, of any floating type.
            label: (B, 1, X, Y, Z) label indices (and the ignored value) at the finest scale.
            annotated: The classes that were annotated in each patch; empty: all of them.
        """
        scales = [logits] if isinstance(logits, Tensor) else logits
        counted = scales[: max(1, len(scales) - 1)]
        if not any(annotated):
            return self._of_group(counted, label, None)
        losses = []
        for classes in dict.fromkeys(annotated):
            rows = [row for row, here in enumerate(annotated) if here == classes]
            group = self._of_group([scale[rows] for scale in counted], label[rows], classes)
            losses.append(group * (len(rows) / len(annotated)))
        return torch.stack(losses).sum()

    def _of_group(self, scales: Sequence[Tensor], label: Tensor, classes: Annotated) -> Tensor:
        """The loss of patches in which the same classes were annotated."""
        weights = [0.5**number for number in range(len(scales))]
        target = self.targets.label(label, classes)
        losses = []
        for number, scale in enumerate(scales):
            here = self.targets.logits(scale.float(), classes)
            there = at_scale(target, scale, self._stride(number))
            losses.append(self.criterion(here, there))
        self.latest[:] = [loss.detach() for loss in losses]
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        return torch.stack(weighted).sum() / sum(weights)

    def _stride(self, number: int) -> Sequence[int] | None:
        return self.strides[number] if number < len(self.strides) else None


def build_loss(
    config: TrainingConfig,
    out_channels: int,
    strides: Sequence[Sequence[int]] = (),
    regions: Mapping[int, Sequence[int]] | None = None,
) -> DeepSupervision:
    """The loss that a configuration names, at every scale.

    Args:
        config: `loss` and what it says of the loss count.
        out_channels: Classes, background included.
        strides: See `DeepSupervision`.
        regions: The label indices of each class, where classes overlap (see `LabelClasses`).

    Returns:
        (list of logits finest first, label (B, 1, X, Y, Z) uint8) → scalar.

    Raises:
        SettingsError: There are fewer than two classes.

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
    sigmoid = config.loss == "bce" or bool(regions)
    return DeepSupervision(
        build_criterion(config, sigmoid=sigmoid),
        strides,
        build_targets(config, out_channels, regions, sigmoid=sigmoid),
    )


def build_targets(
    config: TrainingConfig,
    out_channels: int,
    regions: Mapping[int, Sequence[int]] | None = None,
    *,
    sigmoid: bool,
) -> SoftmaxTargets | SigmoidTargets:
    """What the loss compares: one softmax over the classes, or a sigmoid for each.

    A background logit beside regions counts nowhere.
    """
    if not sigmoid:
        return SoftmaxTargets(config.ignore_index)
    parts = regions or {index: (index,) for index in range(out_channels)}
    return SigmoidTargets(parts, config.ignore_index)


def build_criterion(config: TrainingConfig, *, sigmoid: bool = False) -> Criterion:
    """The loss of one scale that a configuration names.

    Dice and Tversky are means over patches and classes; the background is one of them, as in the
    authors' soft Dice, unless `dice_background` is off. With sigmoids, cross-entropy is the binary
    one.

    Args:
        config: `loss` and what it says of the loss count.
        sigmoid: Each class has a sigmoid of its own and its own channel in the label, see
            `SigmoidTargets`; else there is one softmax, and the label holds class indices.
    """
    ignored = config.ignore_index
    options: dict[str, Any] = {"smooth_nr": SMOOTH, "smooth_dr": SMOOTH, "batch": config.dice_batch}
    options |= {"sigmoid": True} if sigmoid else {"softmax": True, "to_onehot_y": True}
    options |= {"include_background": sigmoid or config.dice_background}
    false_positives, false_negatives = config.tversky
    dice_loss = DiceLoss(ignore_index=None if sigmoid else ignored, **options)

    def ce(logits: Tensor, label: Tensor) -> Tensor:
        return (binary_cross_entropy if sigmoid else cross_entropy)(logits, label, ignored)

    def dice(logits: Tensor, label: Tensor) -> Tensor:
        pair = _without(ignored, logits, label) if sigmoid else (logits, label)
        value: Tensor = dice_loss(*pair)
        return value

    losses: dict[str, Criterion] = {
        "dice": dice,
        "ce": ce,
        "dice_ce": lambda logits, label: dice(logits, label) + ce(logits, label),
        "bce": ce,
        "focal": FocalLoss(
            gamma=config.focal_gamma, to_onehot_y=not sigmoid, use_softmax=not sigmoid
        ),
        "tversky": TverskyLoss(alpha=false_positives, beta=false_negatives, **options),
    }
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


def binary_cross_entropy(logits: Tensor, target: Tensor, ignored: int | None) -> Tensor:
    """Mean binary cross-entropy over the classes and the voxels that count; 0 where none does.

    Args:
        logits: (B, C, X, Y, Z).
        target: (B, C, X, Y, Z), 1 where a voxel is of a class.
        ignored: Value in `target` of the voxels that do not count.
    """
    known = target.numel() if ignored is None else torch.ne(target, ignored).sum().clamp(min=1)
    logits, target = _without(ignored, logits, target)
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum") / known


def _without(ignored: int | None, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits that are surely negative, and rightly so, where the target is ignored."""
    if ignored is None:
        return logits, target
    here = torch.eq(target, ignored)
    return logits.masked_fill(here, SURELY_NOT), target.masked_fill(here, 0)


def at_scale(label: Tensor, like: Tensor, stride: Sequence[int] | None = None) -> Tensor:
    """`label` (B, 1, X, Y, Z) at the voxels of a coarser scale, by nearest neighbour.

    Args:
        label: At the finest scale.
        like: (…, x, y, z): the coarser scale. Its voxel i covers the voxels i·s to (i + 1)·s − 1
            of the finest, of which the network repeats the last where the strides do not divide it.
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
