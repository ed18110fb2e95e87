"""Folds: patients whole, folds even, the same everywhere; nnU-Net's own splits."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attunet3d.core import DataError
from attunet3d.datasets.folds import assign
from attunet3d.datasets.nnunet_splits import find_splits, read_splits

IDS = [f"case_{number:02}" for number in range(23)]


def own(ids: Any) -> dict[str, str]:
    return {case_id: case_id for case_id in ids}


def test_folds_are_even_and_depend_on_the_seed_alone() -> None:
    assigned = assign(own(IDS), 5, seed=3)
    assert sorted(Counter(assigned.values()).values()) == [4, 4, 5, 5, 5]
    assert assign(own(reversed(IDS)), 5, seed=3) == assigned
    assert assign(own(IDS), 5, seed=4) != assigned


def test_the_deal_never_changes() -> None:
    # Models are compared fold by fold over years: these very numbers are part of the interface.
    assert assign(own("abcdef"), 3, seed=0) == {
        "a": 0,
        "b": 2,
        "c": 1,
        "d": 2,
        "e": 0,
        "f": 1,
    }


def test_large_patients_are_assigned_first() -> None:
    groups = own(IDS) | {f"big_{number}": "big" for number in range(6)}
    assigned = assign(groups, 4)
    assert len({assigned[f"big_{number}"] for number in range(6)}) == 1
    assert sorted(Counter(assigned.values()).values()) == [7, 7, 7, 8]


@given(
    st.dictionaries(st.text(min_size=1), st.integers(0, 12).map(str), min_size=2),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_no_patient_is_in_two_folds(groups: dict[str, str], count: int, seed: int) -> None:
    patients = set(groups.values())
    if len(patients) < count:
        with pytest.raises(DataError, match="number of patients"):
            assign(groups, count, seed)
        return
    assigned = assign(groups, count, seed)
    assert set(assigned) == set(groups)
    assert set(assigned.values()) == set(range(count))  # none is empty
    for patient in patients:
        assert len({assigned[case_id] for case_id in groups if groups[case_id] == patient}) == 1


@pytest.mark.parametrize("count", [-1, 0, 1, 24])
def test_wrong_counts_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"^{count} folds: .* 23; choose another"):
        assign(own(IDS), count)


# --- nnU-Net's splits ------------------------------------------------------------------------


def write(path: Path, *validating: Any) -> Path:
    splits = [
        {"train": [i for i in "abcd" if i not in part], "val": [*part]} for part in validating
    ]
    path.write_text(json.dumps(splits))
    return path


def test_splits_become_folds(tmp_path: Path) -> None:
    path = write(tmp_path / "splits_final.json", "ab", "c", "d")
    assert read_splits(path, "abcd") == {"a": 0, "b": 0, "c": 1, "d": 2}
    assert read_splits(path, "acd") == {"a": 0, "c": 1, "d": 2}  # b was left out


def test_a_case_that_never_validates_always_trains(tmp_path: Path) -> None:
    assert read_splits(write(tmp_path / "s.json", "a", "b"), "abcd") == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a list"),
        ("[]", "must be a list"),
        ('[{"train": ["a"]}]', "must be a list"),
        ('[{"train": [1], "val": [2]}]', "must be a list"),
        ('[{"train": ["b"], "val": ["x"]}]', "validates on none"),
        (
            '[{"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}]',
            "folds 0 and 1 both validate on",
        ),
        ('[{"train": [], "val": ["a"]}]', "but 'b' is in both"),
        ('[{"train": ["a", "b"], "val": ["a"]}]', "but 'a' is in both"),
    ],
)
def test_splits_that_folds_cannot_say_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_splits(tmp_path / "s.json", "ab")
    assert "--folds" in str(error.value)


def test_splits_are_found_in_the_data_set_or_beside_it(tmp_path: Path) -> None:
    raw = tmp_path / "nnUNet_raw" / "Dataset007_Pancreas"
    prepared = tmp_path / "nnUNet_preprocessed" / "Dataset007_Pancreas"
    raw.mkdir(parents=True)
    prepared.mkdir(parents=True)
    assert find_splits(raw) is None
    beside = write(prepared / "splits_final.json", "a")
    assert find_splits(raw) == beside.resolve()
    within = write(raw / "splits_final.json", "a")
    assert find_splits(raw) == within
