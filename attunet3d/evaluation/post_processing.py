"""Post-processing chosen on predictions of cases that their models have not seen.

For each label by itself: keep every connected component, the largest alone, or those of at least
some volume. What gives the greatest mean Dice is taken only if it is better than keeping everything
by more than noise: the bootstrap interval of the paired difference, over patients, must lie above
0. Its confidence is 1 − 0.05 / n for n candidates (Bonferroni), as the best of many looks better
than it is. Where the predictions have nothing to remove, nothing is chosen.

Thresholds of probabilities are not chosen here: `inference.decision` is there to serve the Dice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import Mask, progress
from attunet3d.datasets import Case, Manifest, annotated_labels, read_case_label, read_image
from attunet3d.evaluation.statistics import CONFIDENCE, bootstrap_interval
from attunet3d.imaging import Grid, label_mask, numbered_components, read_label
from attunet3d.inference import fewest_voxels

SMALLEST_ML = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
LARGEST = "keep_largest"
Candidate = float | str
"""A smallest volume in ml, or `LARGEST`."""
CANDIDATES: tuple[Candidate, ...] = (LARGEST, *SMALLEST_ML)


@dataclass(frozen=True, kw_only=True)
class Components:
    """The connected components of a label in a prediction, and what they share with the truth."""

    voxels: tuple[int, ...]
    """Of each component, in the order of their first voxels."""
    right: tuple[int, ...]
    """Of each, the voxels that the reference has as well."""
    reference: int
    """Voxels of the label in the reference."""
    grid: Grid

    @classmethod
    def of(cls, predicted: Mask, reference: Mask, grid: Grid) -> "Components":
        """Count the components of `predicted` (I, J, K)."""
        parts, sizes = numbered_components(predicted)
        right = np.bincount(parts[reference], minlength=len(sizes))
        total = int(np.count_nonzero(reference))
        voxels, hits = tuple(sizes[1:].tolist()), tuple(right[1:].tolist())
        return cls(voxels=voxels, right=hits, reference=total, grid=grid)

    def dice(self, candidate: Candidate | None = None) -> float:
        """Dice with the components that the candidate keeps; None keeps all."""
        numbers = range(len(self.voxels))
        if candidate == LARGEST:
            kept = [max(numbers, key=lambda n: self.voxels[n])] if self.voxels else []
        else:
            fewest = 0 if candidate is None else fewest_voxels(float(candidate), self.grid)
            kept = [n for n in numbers if self.voxels[n] >= fewest]
        total = sum(self.voxels[n] for n in kept) + self.reference
        return 2 * sum(self.right[n] for n in kept) / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for one label, and why."""

    chosen: Candidate | None
    """None: every component is kept."""
    best: Candidate
    """The candidate of the greatest mean Dice."""
    dice: float
    """Mean Dice without post-processing."""
    gain: float
    """By how much `best` is better in the mean."""
    low: float
    high: float
    """End of the interval of that gain."""
    confidence: float
    patients: int
    """Number of patients that it rests on."""


def choose_post_processing(
    predictions: Path, manifest: Manifest, cases: Iterable[Case]
) -> dict[str, Choice]:
    """Choose the components to keep, label by label; see the module.

    Args:
        predictions: Folder of label maps, CASE.nii.gz, on their scans' grids.
        manifest: Names the labels.
        cases: The cases to choose on; those without a prediction or a label are left out.

    Returns:
        The choice for each label, by its name, made on the cases in which it was annotated; empty
        if there are no cases.
    """
    found = [case for case in cases if case.label and _path(predictions, case).is_file()]
    tables: dict[str, list[tuple[Components, str]]] = {}
    with progress(len(found), "post-processing") as bar:
        for case in found:
            for name, components in _case_components(predictions, manifest, case).items():
                tables.setdefault(name, []).append((components, case.patient))
            bar.update()
    return {name: choose(*map(list, zip(*table, strict=True))) for name, table in tables.items()}


def choose(table: list[Components], patients: list[str]) -> Choice:
    """Choose on the components of one label in every case.

    Example:
        >>> grid = Grid((50, 50, 50), np.eye(4))
        >>> case = Components(voxels=(9000, 300), right=(8000, 0), reference=9000, grid=grid)
        >>> found = choose([case] * 6, list("abcdef"))
        >>> found.chosen, round(found.dice, 3), round(found.gain, 3)
        ('keep_largest', 0.874, 0.015)
    """
    plain = np.array([case.dice() for case in table])
    dices = np.array([[case.dice(candidate) for case in table] for candidate in CANDIDATES])
    best = int(np.argmax(dices.mean(1)))  # the first of equals: the largest component
    gains = dices[best] - plain
    confidence = 1 - (1 - CONFIDENCE) / len(CANDIDATES)
    low, high = map(float, bootstrap_interval(gains, patients, confidence=confidence))
    return Choice(
        chosen=CANDIDATES[best] if low > 0 else None,
        best=CANDIDATES[best],
        dice=float(plain.mean()),
        gain=float(gains.mean()),
        low=low,
        high=high,
        confidence=confidence,
        patients=len(set(patients)),
    )


def settings(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The settings of inference that apply the choices.

    Example:
        >>> facts = dict(best=1.0, dice=0.5, gain=0.1, low=0.05, high=0.2, confidence=0.995)
        >>> settings({"liver": Choice(chosen=1.0, patients=9, **facts)})
        {'keep_largest': [], 'smallest_ml': {'liver': 1.0}}
    """
    chosen = {name: choice.chosen for name, choice in choices.items()}
    return {
        "keep_largest": [name for name, candidate in chosen.items() if candidate == LARGEST],
        "smallest_ml": {name: size for name, size in chosen.items() if isinstance(size, float)},
    }


def _path(predictions: Path, case: Case) -> Path:
    return predictions / f"{case.id}.nii.gz"


def _case_components(predictions: Path, manifest: Manifest, case: Case) -> dict[str, Components]:
    """The components of each label that was annotated in a case, by its name."""
    predicted = read_label(_path(predictions, case))
    reference = read_case_label(case, read_image(case), manifest.labels)
    known = None if manifest.ignore is None else reference.array != manifest.ignore
    regions, found = manifest.regions_by_value, {}
    for value, name in annotated_labels(case, manifest.labels).items():
        if value:
            ours = label_mask(predicted.array, value, regions)
            theirs = label_mask(reference.array, value, regions)
            if known is not None:
                ours &= known
            found[name] = Components.of(ours, theirs, predicted.grid)
    return found
