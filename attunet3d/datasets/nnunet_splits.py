"""Reads nnU-Net's folds (`splits_final.json`), so that results can be compared fold by fold."""

from collections.abc import Collection
from pathlib import Path

from attunet3d.core import DataError, read_json

NAME = "splits_final.json"


def find_splits(folder: Path) -> Path | None:
    """Find the splits of a raw data set, in its folder or in that of its preprocessed data.

    Example:
        >>> find_splits(Path("nowhere/Dataset007_Pancreas")) is None
        True
    """
    folder = Path(folder)
    prepared = folder.resolve().parent.parent / "nnUNet_preprocessed" / folder.resolve().name
    return next((path for path in (folder / NAME, prepared / NAME) if path.is_file()), None)


def read_splits(path: Path, ids: Collection[str]) -> dict[str, int]:
    """Read the fold in which each case is validated on.

    Args:
        path: A list of `{"train": [ids], "val": [ids]}`, one per fold.
        ids: The training cases; other names in the file are ignored.

    Returns:
        Fold by id; cases that are in no "val" list are left out, and all folds train on them.

    Raises:
        DataError: A case is in two "val" lists, or a fold validates on none of the cases, or it
            does not train on exactly the others.
    """
    splits = read_json(path)
    if not isinstance(splits, list) or not all(map(_is_split, splits)) or not splits:
        raise _refusal(path, 'must be a list of {"train": [ids], "val": [ids]}')
    folds: dict[str, int] = {}
    for number, split in enumerate(splits):
        validating = [case_id for case_id in split["val"] if case_id in ids]
        if not validating:
            raise _refusal(path, f"fold {number} validates on none of the cases")
        for case_id in validating:
            if folds.setdefault(case_id, number) != number:
                twice = f"folds {folds[case_id]} and {number} both validate on {case_id!r}"
                raise _refusal(path, twice)
    for number, split in enumerate(splits):
        rest = {case_id for case_id in ids if folds.get(case_id) != number}
        if odd := sorted((set(split["train"]) & set(ids)) ^ rest):
            rule = f"fold {number} must train on exactly the cases that it does not validate on"
            raise _refusal(path, f"{rule}, but {odd[0]!r} is in both lists or in none")
    return folds


def _refusal(path: Path, rule: str) -> DataError:
    return DataError(rule, path=path, cure="correct or remove it, or give --folds")


def _is_split(split: object) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(name, str) for name in split[part])
        for part in ("train", "val")
    )
