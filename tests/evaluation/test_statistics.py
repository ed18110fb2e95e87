"""Bootstrap intervals and paired differences, against enumeration and SciPy."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon

from attunet3d.core import DataError
from attunet3d.evaluation import statistics
from attunet3d.evaluation.statistics import bootstrap_interval, paired_difference

VALUES = np.random.default_rng(0).beta(8, 2, 30)


def ends(*arguments: Any, **options: Any) -> tuple[float, float]:
    """Both ends of one column's interval."""
    low, high = bootstrap_interval(*arguments, **options)
    return float(low), float(high)


def test_an_interval_is_that_of_all_resamples() -> None:
    """Four cases have 256 resamples; their percentiles are the answer for many draws."""
    cases = [0.2, 0.5, 0.7, 0.95]
    means = [np.mean(drawn) for drawn in product(cases, repeat=4)]
    found = ends(cases, confidence=0.8, resamples=200_000)
    assert found == pytest.approx(tuple(np.percentile(means, [10, 90])), abs=0.01)


def test_an_interval_agrees_with_scipy() -> None:
    """Within the noise of 20,000 draws."""
    theirs = bootstrap(
        (VALUES,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert ends(VALUES, resamples=20_000) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_patients_are_drawn_not_cases() -> None:
    """Each case twice is no more certain when both are one patient's, and is when they are two."""
    once = ends(VALUES)
    twice = np.repeat(VALUES, 2)
    names = [f"{number:02}" for number in range(30)]
    same = ends(twice, [name for name in names for _ in range(2)])
    assert same == pytest.approx(ends(VALUES, names))
    more = ends(twice)
    assert more[1] - more[0] < 0.8 * (once[1] - once[0])


def test_columns_are_as_if_alone_and_undefined_values_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One draw of patients serves all columns; a small block gives other draws, not other facts."""
    table = np.stack([VALUES, VALUES**2, np.full(30, np.nan)], axis=1)
    table[:3, 1] = np.inf
    low, high = bootstrap_interval(table)
    assert (low[0], high[0]) == pytest.approx(ends(VALUES))
    assert np.isnan([low[2], high[2]]).all()
    assert low[1] < np.mean(VALUES[3:] ** 2) < high[1]
    monkeypatch.setattr(statistics, "BLOCK", 1000)
    assert ends(VALUES) == pytest.approx((low[0], high[0]), abs=0.01)
    assert ends([0.5]) == (0.5, 0.5)
    with pytest.raises(DataError, match="one patient each"):
        ends(VALUES, ["a"])


def test_a_paired_difference_is_tested_by_patients() -> None:
    """The mean is over cases, Wilcoxon's test over the patients' means."""
    better = VALUES + np.random.default_rng(1).normal(0.02, 0.03, 30)
    patients = [f"{number // 2:02}" for number in range(30)]
    found = paired_difference(VALUES.tolist(), better.tolist(), patients)
    differences = better - VALUES
    assert found.mean == pytest.approx(differences.mean())
    assert found.low < found.mean < found.high
    expected = wilcoxon(differences.reshape(15, 2).mean(axis=1)).pvalue
    assert found.p_value == pytest.approx(expected)
    assert found.patients == 15


def test_equal_models_do_not_differ() -> None:
    """Wilcoxon's test has nothing to rank then; undefined scores leave a pair out."""
    found = paired_difference([0.5, 0.6, np.nan], [0.5, 0.6, 0.7])
    assert (found.mean, found.low, found.high, found.p_value, found.patients) == (0, 0, 0, 1, 2)
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference([0.5], [0.5, 0.6])
