"""Tells which cases a model was trained on, so that scores on such cases are marked."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from attunet3d.core import DataError, FileError, Members, read_json
from attunet3d.datasets.case import Case
from attunet3d.datasets.manifest import Manifest

PLAN = "plan.json"  # of a run folder
Role = Literal["training", "validation", "none"]
_NAMED = 5  # cases named in one line


@dataclass(frozen=True, kw_only=True)
class Split:
    """The role of each case for a model, or for the members of an ensemble.

    Args:
        roles: By case id: "training", the weights were fitted to its label; "validation", it was
            used to choose the best weights; "none", neither.
        rest: The role of all other cases, or None if it is not known.

    Example:
        >>> split = Split(roles={"a": "training", "b": "validation"}, rest="none")
        >>> split.role("a"), split.role("c"), Split().role("c")
        ('training', 'none', None)
    """

    roles: Mapping[str, Role] = field(default_factory=dict)
    rest: Role | None = None

    @classmethod
    def of_models(cls, models: Iterable[str | Path]) -> "Split":
        """Read the `plan.json` beside each model; a case is seen if any member was trained on it.

        Args:
            models: Run folders, cross-validations, or the weights in them.
        """
        splits = [_recorded(model) for model in Members.of(models).paths]
        roles: dict[str, Role] = {}
        for role in ("validation", "training"):  # the latter replaces the former
            roles |= {name: role for split in splits if split for name in split[role]}
        return cls(roles=roles, rest="none" if all(splits) else None)

    def role(self, case_id: str) -> Role | None:
        """The case's role for the model, or None if it is not known."""
        return self.roles.get(case_id, self.rest)

    def seen(self, case_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the cases that the model was trained on."""
        return tuple(case_id for case_id in case_ids if self.role(case_id) == "training")

    def remark(self, case_ids: Collection[str]) -> str | None:
        """One line that says which of the cases the model was trained on, or None if on none.

        Example:
            >>> Split(roles={"a": "training"}, rest="none").remark(["a", "b"])
            '1 of 2 cases were seen in training, which inflates the scores: a'
        """
        seen = self.seen(case_ids)
        if seen:
            more = f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
            return (
                f"{len(seen)} of {len(case_ids)} cases were seen in training, which inflates the"
                f" scores: {', '.join(seen[:_NAMED])}{more}"
            )
        unknown = sum(self.role(case_id) is None for case_id in case_ids)
        if unknown:
            return f"{unknown} of {len(case_ids)} cases may have been seen in training"
        return None


def held_out(
    manifest: Manifest,
    split: Split,
    *,
    fold: int | None = None,
    everything: bool = False,
    labelled: bool = False,
) -> tuple[Case, ...]:
    """Choose the cases of a manifest on which a model is evaluated.

    By default these are the test cases, or, without any, those that the model was validated on (if
    that is not known, the manifest's validation list). If the model is known to have seen no case
    of the data set, all are chosen.

    Args:
        manifest: The data set.
        split: The cases that the model has seen.
        fold: The validation cases of this fold instead.
        everything: All cases instead, including those seen in training.
        labelled: Only cases with a label.

    Raises:
        DataError: There is no such fold, nothing is left, or the manifest is a template.
    """
    manifest.refuse_template()
    if everything and fold is not None:
        raise DataError("--all and --fold cannot be used together", cure="give one of them")
    cases = (*manifest.training, *manifest.validation, *manifest.test)
    if fold is not None:
        cases = manifest.fold(fold)[1]
    if labelled:
        cases = tuple(case for case in cases if case.label)
    kind = "labelled case" if labelled else "case"
    if not cases:
        raise DataError(
            f"manifest {manifest.name!r}: has no {kind} to choose", cure="choose another manifest"
        )
    if everything or fold is not None:
        return cases
    chosen = _unseen(cases, manifest, split)
    if not chosen:
        seen = len(split.seen([case.id for case in cases]))
        rest = f": {seen} of {len(cases)} were seen (by at least one member of an ensemble)"
        raise DataError(
            f"manifest {manifest.name!r}: no {kind} is known to be held out from training"
            f"{rest if seen else ''}",
            cure="use --fold K for the cases that fold K validates on, or --all for every case",
        )
    return chosen


def _unseen(cases: Sequence[Case], manifest: Manifest, split: Split) -> tuple[Case, ...]:
    """Test cases, else validation cases, else all cases of another data set."""
    chosen = tuple(case for case in cases if case in manifest.test)
    if chosen:
        return chosen
    roles = {split.role(case.id) for case in cases}
    if "none" in roles and not roles & {"training", "validation"}:
        return tuple(cases)
    listed = {case.id: "validation" for case in manifest.validation}
    return tuple(
        case for case in cases if (split.role(case.id) or listed.get(case.id)) == "validation"
    )


def _recorded(model: Path) -> dict[str, list[str]] | None:
    """The split in the plan of a run, or None if there is none."""
    folder = model if model.is_dir() else model.parent
    try:
        plan = read_json(folder / PLAN)
    except FileError:
        return None
    split = plan.get("split") if isinstance(plan, dict) else None
    if not isinstance(split, dict) or not all(
        isinstance(split.get(part), list) and all(isinstance(name, str) for name in split[part])
        for part in ("training", "validation")
    ):
        return None
    return split
