"""Scores of a network on prepared cases, on the network's own grid: fast, for choosing weights.

Their Dice is `dice_network_grid`. The Dice that a paper reports (`dice`, see `evaluation`) is
computed on the scanner's grid against the untouched reference; the two are never compared.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from attunet3d.core import Size, progress
from attunet3d.inference import ForwardPass, Stitching, sliding_window_slabs, winning_values
from attunet3d.training import distributed
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.label_classes import LabelClasses

OVERLAP = 0.25  # of neighbouring windows; less than in inference, for speed


def predict_classes(
    case: CachedCase,
    forward: ForwardPass,
    window: Size,
    device: torch.device,
    labels: LabelClasses,
    done: Callable[[float], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """The label (X, Y, Z) that a network gives a prepared case, by the decision of inference.

    Args:
        case: The case.
        forward: (B, 1, x, y, z) → (B, K, x, y, z) logits.
        window: Voxels of a window.
        device: Where `forward` works.
        labels: What the classes are.
        done: Called now and then with the share of the case that is done.
    """
    image = torch.from_numpy(case.image().astype(np.float32))[None].to(device)  # (1, X, Y, Z)
    slabs = sliding_window_slabs(
        image, forward, window=window, overlap=OVERLAP, stitching=Stitching(all_channels=True)
    )
    order = [labels.values.index(value) for value in labels.order]
    parts = []
    for slab in slabs:
        indices = winning_values(slab.logits, labels.written, order)  # (X, Y, n)
        parts.append(indices.cpu())
        if done is not None:
            done(sum(part.shape[-1] for part in parts) / image.shape[-1])
    label: npt.NDArray[np.uint8] = torch.cat(parts, -1).numpy()
    return label


@dataclass(frozen=True)
class NetworkGridScores:
    """Means over the cases in which reference or prediction has a class."""

    dice: dict[int, float]
    """By class index, background left out; a class that no case has is missing."""
    iou: dict[int, float]
    accuracy: float | None
    """Share of right voxels, background included, of the cases in which all was annotated."""

    def of(self, classes: Collection[int]) -> "NetworkGridScores":
        """The scores of some of the classes.

        Example:
            >>> NetworkGridScores({1: 0.5, 2: 0.0}, {1: 0.3, 2: 0.0}, 0.9).of((1,)).dice
            {1: 0.5}
        """
        dice, iou = (
            {index: score for index, score in scores.items() if index in classes}
            for scores in (self.dice, self.iou)
        )
        return replace(self, dice=dice, iou=iou)


def mean(scores: Mapping[int, float]) -> float | None:
    """The mean over the classes; None without any."""
    return sum(scores.values()) / len(scores) if scores else None


def score_network_grid(
    cases: Sequence[CachedCase],
    forward: ForwardPass,
    window: Size,
    device: torch.device,
    labels: LabelClasses,
    ignored: int | None = None,
) -> NetworkGridScores:
    """Mean scores of each class over the cases in which reference or prediction has it.

    Each process of a run takes some of the cases; all get the same answer. A case counts only for
    the classes that were annotated in it.

    Args:
        cases: Validation cases.
        forward: (B, 1, x, y, z) → (B, K, x, y, z) logits.
        window: Voxels of a window.
        device: Where `forward` works.
        labels: What the classes are.
        ignored: Label value of voxels that count nowhere.
    """
    found: list[tuple[int, int, float]] = []  # case, class (0: all voxels), Dice (accuracy)
    own = range(distributed.rank(), len(cases), distributed.world_size())
    with progress(len(own), "validating") as bar:
        for number in own:
            case = cases[number]
            with bar.item() as done:
                predicted = predict_classes(case, forward, window, device, labels, done)
            found += [(number, *pair) for pair in _case_scores(predicted, case, labels, ignored)]
    scores: dict[int, list[float]] = {}
    for _, index, dice in sorted(distributed.gathered(found)):
        scores.setdefault(index, []).append(dice)
    right = scores.pop(0, None)
    return NetworkGridScores(
        dice={index: float(np.mean(values)) for index, values in scores.items()},
        iou={
            index: float(np.mean([d / (2 - d) for d in values])) for index, values in scores.items()
        },
        accuracy=None if right is None else float(np.mean(right)),
    )


def _case_scores(
    predicted: npt.NDArray[np.uint8], case: CachedCase, labels: LabelClasses, ignored: int | None
) -> Iterator[tuple[int, float]]:
    """Class and Dice of the annotated classes that either has; 0 and the share of right voxels."""
    label = case.label()
    counted = label != ignored if ignored is not None else None
    if case.annotated is None:
        known = label.size if counted is None else np.count_nonzero(counted)
        right = np.count_nonzero(predicted == labels.as_written(label))
        yield 0, int(right) / max(1, int(known))
    for index in case.annotated or range(1, len(labels.names)):
        ours, theirs = labels.mask(predicted, index), labels.mask(label, index)
        if counted is not None:
            ours &= counted
        total = int(np.count_nonzero(ours)) + int(np.count_nonzero(theirs))
        if total:
            yield index, 2 * int(np.count_nonzero(ours & theirs)) / total
