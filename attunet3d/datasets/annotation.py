"""Cases in which only some of the labels were annotated."""

from collections.abc import Iterable, Mapping

from attunet3d.core import DataError, suggestion
from attunet3d.datasets.case import Case


def annotated_values(case: Case, labels: Mapping[int, str]) -> tuple[int, ...] | None:
    """The label values that were annotated in a case, without background; None: all of them.

    Example:
        >>> from pathlib import Path
        >>> case = Case(id="a", image=Path("a.nii.gz"), annotated=("liver",))
        >>> annotated_values(case, {0: "background", 1: "pancreas", 2: "liver"})
        (2,)
    """
    if case.annotated is None:
        return None
    return tuple(value for value, name in labels.items() if name in case.annotated)


def annotated_labels(case: Case, labels: Mapping[int, str]) -> dict[int, str]:
    """The labels that were annotated in a case, and the background, which always counts.

    Example:
        >>> from pathlib import Path
        >>> case = Case(id="a", image=Path("a.nii.gz"), annotated=("liver",))
        >>> annotated_labels(case, {0: "background", 1: "pancreas", 2: "liver"})
        {0: 'background', 2: 'liver'}
    """
    known = annotated_values(case, labels)
    return {v: name for v, name in labels.items() if not v or known is None or v in known}


def check_annotated(cases: Iterable[Case], labels: Mapping[int, str]) -> None:
    """Refuse cases whose annotated labels are not all known.

    Raises:
        DataError: There is such a case.
    """
    known = [name for value, name in labels.items() if value]
    for case in cases:
        for name in case.annotated or ():
            if name not in known:
                rule = f"case {case.id}: annotated {name!r} is not one of the labels"
                raise DataError(rule, value=name, cure=suggestion(name, known))
