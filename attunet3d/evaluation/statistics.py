"""How sure a mean over cases is: bootstrap intervals and the paired comparison of two models.

Patients are drawn, not cases: two scans of one patient say less than scans of two (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993; percentile intervals).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

from attunet3d.core import DataError, Floats

RESAMPLES = 2_000
CONFIDENCE = 0.95
BLOCK = 1 << 22  # draws of patients held at a time


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How the second of two models differs from the first on the same cases."""

    mean: float
    """Of second less first."""
    low: float
    high: float
    """End of its confidence interval."""
    p_value: float
    """Of Wilcoxon's signed-rank test over patients, two-sided."""
    patients: int


def bootstrap_interval(
    values: npt.ArrayLike,
    patients: Sequence[str] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Percentile bootstrap intervals of the means of one or more columns of values.

    Args:
        values: (cases,) or (cases, columns); what is not finite is left out.
        patients: The patient of each case; None: every case is one.
        confidence: Share of intervals that hold the true mean.
        resamples: Number of draws of patients with replacement.
        seed: Equal seeds give equal intervals.

    Returns:
        Lower and upper ends, (columns,) each, or scalars for one column without axis; NaN for
        columns without a finite value.

    Raises:
        DataError: The numbers of patients and cases differ, or there is no case.

    Example:
        >>> low, high = bootstrap_interval([0.7, 0.8, 0.9])
        >>> round(float(low), 2), round(float(high), 2)
        (0.7, 0.9)
    """
    table = np.asarray(values, np.float64)
    columns = table.reshape(len(table), -1)  # (cases, columns)
    if not len(columns) or (patients is not None and len(patients) != len(columns)):
        rule = f"{len(columns)} cases: there must be at least one, and one patient each"
        raise DataError(rule, value=len(columns), cure="give both in one order")
    names = list(map(str, range(len(columns)))) if patients is None else list(patients)
    index = {name: row for row, name in enumerate(sorted(set(names)))}
    rows = [index[name] for name in names]
    finite = np.isfinite(columns)
    sums, counts = np.zeros((2, len(index), columns.shape[1]))  # (patients, columns)
    np.add.at(sums, rows, np.where(finite, columns, 0.0))
    np.add.at(counts, rows, finite)
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // len(index))
    blocks = [min(size, resamples - first) for first in range(0, resamples, size)]
    means = np.concatenate([_means(rng, block, sums, counts) for block in blocks])
    ends = np.full((2, columns.shape[1]), math.nan)
    known = counts.any(axis=0)
    tail = 50 * (1 - confidence)
    ends[:, known] = np.nanpercentile(means[:, known], [tail, 100 - tail], axis=0)
    low, high = (end.reshape(table.shape[1:]) for end in ends)
    return low, high


def paired_difference(
    first: Sequence[float], second: Sequence[float], patients: Sequence[str] | None = None
) -> PairedDifference:
    """Compare two models' scores of the same cases.

    Args:
        first: One model's scores, a case each.
        second: The other's, in the same order; cases where either is not finite are left out.
        patients: The patient of each case; None: every case is one.

    Raises:
        DataError: There are not as many of one as of the other, or no case is left.

    Example:
        >>> found = paired_difference([0.70, 0.80, 0.75], [0.74, 0.84, 0.79])
        >>> round(found.mean, 3), round(found.p_value, 3), found.patients
        (0.04, 0.25, 3)
    """
    names = list(map(str, range(len(first)))) if patients is None else list(patients)
    if not len(first) == len(second) == len(names):
        rule = f"{len(first)} and {len(second)} scores cannot be paired"
        raise DataError(rule, value=len(second), cure="score the same cases with both models")
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    kept = np.isfinite(differences)
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    differences = differences[kept]
    low, high = bootstrap_interval(differences, names)
    by_patient = [
        differences[[other == name for other in names]].mean() for name in sorted(set(names))
    ]
    differ = np.any(by_patient)
    return PairedDifference(
        mean=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_value=float(wilcoxon(by_patient).pvalue) if differ else 1.0,
        patients=len(by_patient),
    )


def _means(rng: np.random.Generator, resamples: int, sums: Floats, counts: Floats) -> Floats:
    """Means (resamples, columns) over patients drawn with replacement; NaN where none has any."""
    patients = len(sums)
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), resamples)
    with np.errstate(invalid="ignore"):
        means: Floats = (drawn @ sums) / (drawn @ counts)
    return means
