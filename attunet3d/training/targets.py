"""What a loss compares: logits of the classes that count, and what they should be.

A patch may come from a case in which only some classes were annotated. There nothing is known of
the others, so they are not wrong where the label says background. A softmax merges them with the
background, whose probability becomes the sum of theirs (the marginal loss: Shi et al. 2021,
Medical Image Analysis 70, 101979, equation 3); sigmoids, one per class, leave them out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Annotated = tuple[int, ...] | None  # classes that were looked for; None: all of them


@dataclass(frozen=True)
class SoftmaxTargets:
    """Classes that exclude each other.

    Args:
        ignored: Label value of the voxels that do not count.
    """

    ignored: int | None = None

    def logits(self, logits: Tensor, annotated: Annotated) -> Tensor:
        """(B, C, X, Y, Z) → (B, 1 + annotated, X, Y, Z), background first.

        The merged logit is the log of a sum of exponentials, so that after a softmax its
        probability is the sum of those merged.

        Example:
            >>> logits = torch.tensor([0.2, 0.5, 0.3]).log().view(1, 3, 1, 1, 1)
            >>> merged = SoftmaxTargets().logits(logits, (2,)).softmax(1).flatten()
            >>> [round(float(probability), 6) for probability in merged]
            [0.7, 0.3]
        """
        if annotated is None:
            return logits
        others = [index for index in range(logits.shape[1]) if index not in annotated]
        background = logits[:, others].logsumexp(1, keepdim=True)
        return torch.cat([background, logits[:, list(annotated)]], 1)

    def label(self, label: Tensor, annotated: Annotated) -> Tensor:
        """(B, 1, X, Y, Z) class indices → indices of the classes that `logits` leaves."""
        if annotated is None:
            return label
        found = torch.zeros_like(label)
        for index, old in enumerate(annotated, start=1):
            found.masked_fill_(label == old, index)
        return _with_ignored(found, label, self.ignored)


@dataclass(frozen=True)
class SigmoidTargets:
    """Classes that may overlap, each with a sigmoid of its own.

    Args:
        parts: The label indices that make up each class that counts.
        ignored: Label value of the voxels that do not count.
    """

    parts: Mapping[int, Sequence[int]]
    ignored: int | None = None

    def logits(self, logits: Tensor, annotated: Annotated) -> Tensor:
        """(B, C, X, Y, Z) → (B, R, X, Y, Z) of the classes that count and were annotated."""
        return logits[:, self._kept(annotated)]

    def label(self, label: Tensor, annotated: Annotated) -> Tensor:
        """(B, 1, X, Y, Z) label indices → (B, R, X, Y, Z) uint8: 0, 1 or the ignored value.

        Example:
            >>> label = torch.tensor([0, 1, 2], dtype=torch.uint8).view(1, 1, 3, 1, 1)
            >>> SigmoidTargets({1: (1, 2), 2: (2,)}).label(label, None)[0].flatten(1).tolist()
            [[0, 1, 1], [0, 0, 1]]
        """
        masks = []
        for index in self._kept(annotated):
            parts = torch.tensor(self.parts[index], dtype=label.dtype, device=label.device)
            masks.append(torch.isin(label, parts))
        found = torch.cat(masks, 1).to(torch.uint8)
        return _with_ignored(found, label, self.ignored)

    def _kept(self, annotated: Annotated) -> list[int]:
        return [index for index in self.parts if annotated is None or index in annotated]


def _with_ignored(target: Tensor, label: Tensor, ignored: int | None) -> Tensor:
    return target if ignored is None else target.masked_fill_(label == ignored, ignored)
