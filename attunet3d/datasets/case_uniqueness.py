"""Checks that no case is listed twice and that no patient is on both sides of a split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attunet3d.core import DataError, case_names
from attunet3d.datasets.case import Case


def check_unique(lists: Mapping[str, Sequence[Case]]) -> None:
    """Refuse two cases with the same id or scan, and a patient in two lists or folds.

    Args:
        lists: Cases of "training", "validation" and "test".

    Raises:
        DataError: There are such cases, which the message names.
    """
    names: dict[str, str] = {}
    images: dict[Path, str] = {}
    places: dict[str, tuple[str, str]] = {}
    for part, cases in lists.items():
        for case in cases:
            _claim(names, case_names.folded(case.id), case, "have the same name", "rename one")
            _claim(images, case.image.resolve(), case, "are the same scan", "keep one of them")
            place = part if case.fold is None else f"fold {case.fold}"
            other, where = places.setdefault(case.patient, (case.id, place))
            if where != place:
                raise DataError(
                    f"case {case.id!r}: is in {place}, but case {other!r} of the same patient"
                    f" {case.patient!r} is in {where}",
                    value=case.patient,
                    cure="keep a patient's cases together",
                )


def _claim(taken: dict[Any, str], key: object, case: Case, rule: str, cure: str) -> None:
    if key in taken:
        raise DataError(f"cases {taken[key]!r} and {case.id!r}: {rule}", value=case.id, cure=cure)
    taken[key] = case.id
