"""Expected Dice of a mask from probabilities, and the mask that makes it largest.

A voxel i belongs to a class with probability p_i. With μ = Σ p_i, the Dice coefficient expected of
a mask M is, in the reciprocal-moment approximation (RankSEG-RMA: Wang and Dai, NeurIPS 2025),

    score(M) = 2 Σ_{i ∈ M} p_i / (μ + |M| + 1).

The best mask of τ voxels holds the τ most probable ones (RankSEG: Dai and Li, JMLR 24(224), 2023).
One more voxel raises the score if and only if its p exceeds half the score so far, so that the best
mask of all is a threshold: {i : p_i > score* / 2}, with score* the largest score. No sorting is
needed: counts and exact sums of p in fine bins give score*, and where a bin is taken whole or not
at all the score, which is flat around its maximum, changes by less than float32 can tell.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Floats, Mask, Regions
from attunet3d.inference.agreement import winners

BINS = 2**12  # of [0, 1]; the upper half is one: no threshold lies there, as no score exceeds 1
PRUNED = 0.5  # a class that is nowhere more probable is left out, as RankSEG does

Activation = Literal["softmax", "sigmoid"]


def probabilities_of(margins: Tensor, activation: Activation) -> Tensor:
    """Probabilities (K, …) from the margins (K - 1, …) over the background, whose own come first.

    With sigmoids of their own they leave the background none: it gets zeros.

    Example:
        >>> probabilities_of(torch.tensor([[0.0]]), "softmax").tolist()
        [[0.5], [0.5]]
    """
    if activation == "sigmoid":
        return torch.cat([torch.zeros_like(margins[:1]), margins.sigmoid()])
    if len(margins) == 1:
        return torch.cat([(-margins).sigmoid(), margins.sigmoid()])
    return torch.cat([torch.zeros_like(margins[:1]), margins]).softmax(0)


def margins_of(logits: Tensor) -> Tensor:
    """Foreground logits minus the background's (K - 1, …); a margin (K = 1) is one already."""
    return logits if len(logits) == 1 else logits[1:] - logits[:1]


def expected_dice(inside: float, size: float, total: float) -> float:
    """The Dice expected of a mask of `size` voxels, by the sums of p within it and in all.

    Example:
        >>> round(expected_dice(inside=90, size=100, total=95), 3)
        0.918
    """
    return float(2 * inside / (total + size + 1))


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Where each class's best mask ends; all arrays are (K,), background first."""

    least: Floats
    """A voxel is in the mask where its probability is larger."""
    active: Mask
    """Whether the class takes part."""
    total: Floats
    """Sum of the probabilities of all voxels."""


class ProbabilityHistogram:
    """Counts and sums of the probabilities of each class, the background included.

    Example:
        >>> histogram = ProbabilityHistogram(1)
        >>> histogram.add(torch.tensor([[0.9, 0.8, 0.4, 0.1]]))  # 1.7 · 2 / (2.2 + 2 + 1) = 0.654
        >>> histogram.thresholds().least.round(3).tolist()  # 2.1 · 2 / (2.2 + 3 + 1) = 0.677
        [0.339]
    """

    def __init__(self, classes: int) -> None:
        self.counts: Floats = np.zeros((classes, BINS // 2 + 1))
        self.sums: Floats = np.zeros((classes, BINS // 2 + 1))
        self.largest: Floats = np.zeros(classes)

    def add(self, probabilities: Tensor) -> None:
        """Take the probabilities (K, …) of further voxels."""
        for index, values in enumerate(probabilities.flatten(1)):
            self.largest[index] = max(self.largest[index], float(values.max()))
            above, below = values >= 0.5, values < 1 / BINS
            few = values[~(above | below)].double().cpu()
            bins = (few * BINS).long()
            self.counts[index] += torch.bincount(bins, minlength=BINS // 2 + 1).numpy()
            self.sums[index] += torch.bincount(bins, few, BINS // 2 + 1).numpy()
            for part, mask in ((-1, above), (0, below)):
                self.counts[index, part] += int(mask.sum())
                self.sums[index, part] += float((values * mask).sum(dtype=torch.float64))

    def thresholds(self, scale: float = 1.0) -> Thresholds:
        """The thresholds of the best masks, where each voxel counted stands for `scale` of them."""
        sizes = scale * self.counts[:, ::-1].cumsum(1)  # the most probable first
        inside = scale * self.sums[:, ::-1].cumsum(1)
        total = inside[:, -1]
        scores = 2 * inside / (total[:, None] + sizes + 1)
        return Thresholds(scores.max(1) / 2, self.largest > PRUNED, total)


class ArgmaxDice:
    """The Dice expected of the labels of the largest logits, measured on the network's grid.

    Classes that overlap are made up of those that `regions` gives, in the order of writing.

    Example:
        >>> dice = ArgmaxDice(2, "softmax")
        >>> dice.add(torch.tensor([[9.0, 9.0, -9.0]]))  # margins
        >>> round(dice.expected()[0], 3)
        0.8
    """

    def __init__(
        self, classes: int, activation: Activation, regions: Regions | None = None
    ) -> None:
        self._activation: Activation = activation
        self._regions = regions or {}
        self._inside, self._sizes, self._total = np.zeros((3, classes))

    def add(self, logits: Tensor) -> None:
        """Take the logits (K, …) of further voxels."""
        probabilities = probabilities_of(margins_of(logits), self._activation)
        if self._activation == "sigmoid":
            probabilities[0] = 0.5
        chosen, best = winners(probabilities, self._regions)
        self._total += probabilities.flatten(1).sum(1, dtype=torch.float64).cpu().numpy()
        for index, parts in self._regions.items():
            mask = torch.isin(chosen, torch.tensor(parts, device=chosen.device))
            self._sizes[index] += int(mask.sum())
            self._inside[index] += float((probabilities[index] * mask).sum(dtype=torch.float64))
        if self._regions:
            return
        count, classes = len(self._total), chosen.flatten().cpu()
        self._sizes += torch.bincount(classes, minlength=count).numpy()
        self._inside += torch.bincount(classes, best.flatten().double().cpu(), count).numpy()

    def expected(self) -> list[float]:
        """Of each foreground class."""
        sums = zip(self._inside[1:], self._sizes[1:], self._total[1:], strict=True)
        return [expected_dice(*part) for part in sums]
