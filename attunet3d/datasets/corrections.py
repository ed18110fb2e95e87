"""Corrects a manifest after the check of its cases: accepts, flips or removes cases."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from attunet3d.core import DataError
from attunet3d.datasets.case import Case
from attunet3d.datasets.manifest import Manifest
from attunet3d.datasets.pair_check import PARTS, Problem


def accept(
    cases: Manifest, problems: Sequence[Problem], case_ids: Collection[str]
) -> tuple[Manifest, list[Problem]]:
    """Accept labels as they are stored, voxel by voxel, because a person has checked them.

    Args:
        cases: The manifest that was checked.
        problems: The problems that were found.
        case_ids: The cases whose labels are right, whatever `label_fit` says.

    Returns:
        The manifest, in which these cases have the `label_flip` "", and the problems, of which
        those about the position of these labels are now warnings.

    Raises:
        DataError: There is no such case.
    """
    known = {case.id for part in PARTS for case in getattr(cases, part)}
    if unknown := sorted(set(case_ids) - known):
        raise DataError(
            f"--accept {unknown[0]}: no such case", value=unknown[0], cure="check the case's id"
        )
    doubted = {p.case_id for p in problems if p.misfit and p.case_id in case_ids}

    def accepted(case: Case) -> Case:
        return replace(case, label_flip=case.label_flip or "") if case.id in doubted else case

    left = [
        replace(problem, text=f"{problem.text}: accepted as it is", warning=True, flip=None)
        if problem.misfit and problem.case_id in doubted
        else problem
        for problem in problems
    ]
    return cases.changed(accepted), left


def fix_flips(cases: Manifest, problems: Sequence[Problem]) -> tuple[Manifest, list[Problem]]:
    """Record the flips that correct labels; each such problem becomes a warning.

    Args:
        cases: The manifest that was checked.
        problems: The problems that were found.

    Returns:
        The manifest with these flips as `label_flip`, and the problems that are left.
    """
    flips = {p.case_id: p.flip for p in problems if p.flip is not None}

    def fixed(case: Case) -> Case:
        if case.id not in flips:
            return case
        # The flip was found in the label as read, that is, with the manifest's flip applied.
        letters = set(flips[case.id]) ^ set(case.label_flip or "")
        return replace(case, label_flip="".join(sorted(letters)))

    left = [
        problem
        if problem.flip is None
        else replace(problem, text=f"{problem.text}: done", warning=True, flip=None)
        for problem in problems
    ]
    return cases.changed(fixed), left


def without_failures(cases: Manifest, problems: Iterable[Problem]) -> Manifest:
    """Return the manifest without the cases that have an error; warnings do not count.

    Raises:
        DataError: No case is left.
    """
    bad = {problem.case_id for problem in problems if not problem.warning}
    good = cases.changed(lambda case: None if case.id in bad else case)
    if not any(getattr(good, part) for part in PARTS):
        raise DataError(
            f"manifest {cases.name!r}: no case is left", cure="correct the errors named above"
        )
    return good
