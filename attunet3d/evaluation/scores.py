"""Scores of many cases: rows of `scores.csv`, statistics of `summary.json`, a table to read.

A case that failed has no scores and is part of no mean; it is listed by name. A label that is empty
in prediction or reference enters the means as `metrics` defines it, and is counted. A value that is
undefined (a distance to an empty mask) is blank in the CSV, null in JSON, and left out of the
statistics, whose `n` is the number of values that they summarise.
"""

import csv
import io
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from attunet3d.core import as_table
from attunet3d.evaluation import metrics
from attunet3d.evaluation.metrics import LabelScore
from attunet3d.evaluation.statistics import bootstrap_interval

METRICS = tuple(f.name for f in fields(LabelScore) if not f.name.startswith("empty"))
COLUMNS = ("case", "label", "name", *(f.name for f in fields(LabelScore)))
TABLE = {  # columns of the table: metric, heading, format
    "dice": ("Dice", "{:.3f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "hd95_mm": ("HD95 mm", "{:.2f}"),
    "asd_mm": ("ASD mm", "{:.2f}"),
    "surface_dice": ("surface", "{:.3f}"),
    "nsd_2mm": ("NSD 2 mm", "{:.3f}"),
    "volume_difference_ml": ("Δ volume ml", "{:+.2f}"),
}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of an evaluation.

    Args:
        labels: Label values that were scored, except the background, and their names.
        scores: Case → label value → score; every case has every label.
        failures: Case → why it could not be scored, for instance a missing prediction.
        tolerance_mm: The tolerance of surface Dice.
        without_reference: Predictions that have no reference.
        other_values: Values in the files that are not in `labels`; they count as background.
        seen_in_training: Cases that the model is known to have been trained on.
        patients: Case → patient; a case that is not listed is a patient of its own.
        training_remark: A sentence about cases that the model has seen, or None.
    """

    labels: dict[int, str]
    scores: dict[str, dict[int, LabelScore]]
    failures: dict[str, str] = field(default_factory=dict)
    tolerance_mm: float = metrics.TOLERANCE_MM
    without_reference: tuple[str, ...] = ()
    other_values: tuple[int, ...] = ()
    seen_in_training: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    training_remark: str | None = None

    def values(self, value: int, metric: str) -> list[float]:
        """One metric of one label in every scored case; NaN where it does not exist."""
        return [float(getattr(case[value], metric)) for case in self.scores.values()]

    @cached_property
    def intervals(self) -> dict[int, dict[str, tuple[float, float] | None]]:
        """95 % bootstrap intervals, over patients, of the mean of each label's metrics.

        None where no case has a finite value.
        """
        columns = [(value, metric) for value in self.labels for metric in METRICS]
        found: dict[int, dict[str, Any]] = {value: dict.fromkeys(METRICS) for value in self.labels}
        if not (self.scores and columns):
            return found
        table = np.array([self.values(*column) for column in columns]).T  # (cases, columns)
        patients = [self.patients.get(case, case) for case in self.scores]
        ends = np.array(bootstrap_interval(table, patients)).T
        for (value, metric), (low, high) in zip(columns, ends.tolist(), strict=True):
            found[value][metric] = None if math.isnan(low) else (low, high)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `scores.csv`, not rounded."""
        return [
            {"case": case, "label": value, "name": self.labels[value], **asdict(score)}
            for case, by_label in self.scores.items()
            for value, score in by_label.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "cases": len(self.scores) + len(self.failures),
            "scored": len(self.scores),
            "failed": sorted(self.failures),
            "surface_dice_tolerance_mm": self.tolerance_mm,
            "labels": {str(value): self._label(value) for value in self.labels},
            "predictions_without_reference": list(self.without_reference),
            "values_taken_as_background": list(self.other_values),
            "seen_in_training": list(self.seen_in_training),
            "training_remark": self.training_remark,
            "patients": {case: name for case, name in self.patients.items() if name != case},
        }

    def to_csv(self) -> str:
        """The text of `scores.csv`; see `COLUMNS`."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            writer.writerow({name: _cell(value) for name, value in row.items()})
        return stream.getvalue()

    def table(self) -> str:
        """Mean ± standard deviation of each label, and remarks about them."""
        (first, _), *headings = TABLE.values()
        body = [["label", "cases", first, "95 % CI", *(heading for heading, _ in headings)]]
        for value, name in self.labels.items():
            cells = [_mean(self.values(value, metric), form) for metric, (_, form) in TABLE.items()]
            dice = self.intervals[value]["dice"]
            cells.insert(1, "–" if dice is None else "{:.3f}–{:.3f}".format(*dice))
            body.append([name, str(len(self.scores)), *cells])
        return "\n".join([as_table(body), *self._remarks()])

    def _label(self, value: int) -> dict[str, Any]:
        of_label = [case[value] for case in self.scores.values()]
        return {
            "name": self.labels[value],
            **{
                metric: {
                    **statistics(self.values(value, metric)),
                    "mean_ci95": self.intervals[value][metric],
                }
                for metric in METRICS
            },
            "empty_prediction": sum(score.empty_prediction for score in of_label),
            "empty_reference": sum(score.empty_reference for score in of_label),
            "empty_both": sum(s.empty_prediction and s.empty_reference for s in of_label),
            "missing": len(self.failures),
        }

    def _remarks(self) -> list[str]:
        remarks = [
            "mean ± standard deviation; 95 % CI: bootstrap over patients, of the mean Dice;"
            f" surface: surface Dice at {self.tolerance_mm:g} mm"
        ]
        for value, name in self.labels.items():
            counts = self._label(value)
            p, r, both = (counts[f"empty_{part}"] for part in ("prediction", "reference", "both"))
            if p or r:
                remarks.append(
                    f"{name}: empty in {p} predictions and {r} references, in {both} cases in both;"
                    " no distances there"
                )
        if self.training_remark:
            remarks.append(self.training_remark)
        if self.other_values:
            remarks.append(f"values taken as background: {', '.join(map(str, self.other_values))}")
        if self.without_reference:
            remarks.append(f"predictions without a reference: {len(self.without_reference)}")
        if self.failures:
            total = len(self.scores) + len(self.failures)
            remarks.append(f"{len(self.failures)} of {total} cases failed and are in no mean:")
            remarks += [f"  {case}: {reason}" for case, reason in self.failures.items()]
        return remarks


def statistics(values: list[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation (n - 1), median, minimum and maximum of the finite values.

    Example:
        >>> statistics([1.0, 3.0, float("nan")])
        {'n': 2, 'mean': 2.0, 'std': 1.4142135623730951, 'median': 2.0, 'min': 1.0, 'max': 3.0}
        >>> statistics([0.5])["std"] is None
        True
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"n": 0, **dict.fromkeys(("mean", "std", "median", "min", "max"))}
    return {
        "n": len(finite),
        "mean": float(np.mean(finite)),
        "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        "median": float(np.median(finite)),
        "min": min(finite),
        "max": max(finite),
    }


def completed(
    scores: Mapping[str, Mapping[int, LabelScore]],
    labels: Mapping[int, str],
    annotated: Mapping[str, Collection[int] | None] | None = None,
) -> dict[str, dict[int, LabelScore]]:
    """The scores of exactly `labels` in every case; a label in neither map is correctly absent.

    Args:
        scores: By case and label value.
        labels: Names by label value.
        annotated: The label values that were annotated in a case; None: all of them.
    """
    found: dict[str, dict[int, LabelScore]] = {}
    for case, by_label in scores.items():
        known = (annotated or {}).get(case)
        found[case] = {
            value: (by_label.get(value) or metrics.absent())
            if known is None or value in known
            else metrics.unknown()
            for value in labels
        }
    return found


def _mean(values: list[float], form: str) -> str:
    found = statistics(values)
    if found["mean"] is None:
        return "–"
    spread = "" if found["std"] is None else f" ± {form.replace('+', '').format(found['std'])}"
    return form.format(found["mean"]) + spread


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value
