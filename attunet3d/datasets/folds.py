"""Assigns patients to folds of nearly equal size; the result depends only on the seed."""

import random
from collections.abc import Mapping

from attunet3d.core import DataError

DEFAULT_FOLDS = 5


def assign(groups: Mapping[str, str], count: int | None = None, seed: int = 0) -> dict[str, int]:
    """Assign cases to `count` folds.

    The patients are shuffled and sorted by their number of cases, most first; each goes to the fold
    that has the fewest cases so far. The order of `groups` does not matter.

    Args:
        groups: Patient of each case, by case id.
        count: Number of folds; None: five, or the number of patients if that is less; a single
            patient is in no fold.
        seed: Seeds the shuffle.

    Returns:
        Fold (0 … count - 1) of each case, by id.

    Raises:
        DataError: There are fewer patients than folds, or fewer than two folds.

    Example:
        >>> assign({"a1": "a", "a2": "a", "b": "b", "c": "c"}, 2)
        {'a1': 0, 'a2': 0, 'b': 1, 'c': 1}
    """
    members: dict[str, list[str]] = {}
    for case_id in sorted(groups):
        members.setdefault(groups[case_id], []).append(case_id)
    if count is None:
        count = min(DEFAULT_FOLDS, len(members))
        if count < 2:
            return {}
    if not 2 <= count <= len(members):
        raise DataError(
            f"{count} folds: must be at least 2 and at most the number of patients, {len(members)}",
            value=count,
            cure="choose another number with --folds",
        )
    patients = sorted(members)
    random.Random(seed).shuffle(patients)
    patients.sort(key=lambda patient: -len(members[patient]))  # stable: the shuffle breaks ties
    sizes = [0] * count
    fold_of: dict[str, int] = {}
    for patient in patients:
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[patient])
        fold_of |= dict.fromkeys(members[patient], fold)
    return dict(sorted(fold_of.items()))
