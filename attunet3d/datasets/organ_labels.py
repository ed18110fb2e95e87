"""Label names, and what was annotated in each case, of labels that hold organs by name."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from attunet3d.core import DataError, UserError, suggestion
from attunet3d.datasets.case import Case
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging import OrganMasks, folded_name, open_organ_masks

_NAMED = 5  # cases named in one line
_log = logging.getLogger(__name__)


def chosen_labels(
    listed: Manifest, organs: Sequence[str], names: Mapping[str, str]
) -> Mapping[str, str] | None:
    """Label names by value of a data set whose labels hold organs by name; None if they do not.

    Args:
        listed: Its cases.
        organs: Those to take, as the values 1, 2, …; none: all that any case has.
        names: Names by value, instead.

    Raises:
        DataError: No case has one of the organs, organs are asked for and labels are label maps, or
            both kinds of labels occur.
    """
    if organs and names:
        raise DataError("--organs and --label cannot be used together", cure="give one of them")
    wanted = [*organs, *names.values()]
    asked: dict[str, str] = {}
    for name in wanted:
        if other := asked.get(folded_name(name)):
            rule = f"organs {other!r} and {name!r} name the same mask"
            raise DataError(rule, value=name, cure="give it once")
        asked[folded_name(name)] = name
    known, there, others = set[str](), set[str](), []
    for case in _cases(listed):
        if case.label is None or not case.label.exists():
            continue
        masks = _masks(case)  # of one case at a time: a SEG is held with its pixels
        if masks is None:
            others.append(case.id)
        else:
            known.update(masks.names)
            there.update(name for name in wanted if name in masks)
    if (known or organs) and others:
        rule = f"the label of case {others[0]!r} is a label map, which does not hold organs by name"
        cure = "leave --organs out" if organs else "move that label elsewhere"
        raise DataError(rule, value=others[0], cure=cure)
    if not known:
        return None
    for name in wanted:
        if name not in there:
            rule = f"no case has a mask of {name!r}"
            raise DataError(rule, value=name, cure=suggestion(name, sorted(known)))
    if names:
        return names
    return {str(value): name for value, name in enumerate(organs or sorted(known), start=1)}


def annotated(manifest: Manifest) -> Manifest:
    """The same manifest, each case with the labels of which it holds a mask as `annotated`.

    A case without any is left out. Cases with label maps stay as they are.
    """
    names = [name for value, name in manifest.labels.items() if value]
    left_out = []

    def marked(case: Case) -> Case | None:
        """The case with what was annotated in it; None: nothing was."""
        masks = _masks(case)
        if masks is None or case.annotated is not None:
            return case
        there = tuple(name for name in names if name in masks)
        if not there:
            left_out.append(case.id)
            return None
        return case if len(there) == len(names) else replace(case, annotated=there)

    found = manifest.changed(marked)
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        listed = ", ".join(left_out[:_NAMED]) + more
        _log.warning("left out, because they have no mask of any label: %s", listed)
    return found


def _cases(manifest: Manifest) -> list[Case]:
    return [*manifest.training, *manifest.validation, *manifest.test]


def _masks(case: Case) -> OrganMasks | None:
    """The organs of a case; None also where its label cannot be read, which the check reports."""
    with suppress(UserError, OSError):
        return None if case.label is None else open_organ_masks(case.label)
    return None
