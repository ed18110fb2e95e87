"""Checks every scan and label of a manifest, and lists all problems of each case.

A case passes if both files can be read to the end and have the same shape and grid, all values of
the label have a name, the scan has no NaN and the label covers tissue. What may still be right (an
empty label, values that do not look like HU) is a warning. Whether a label fits its organ is
decided by a heuristic, which a person can overrule (`corrections.accept`).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import DataError, UserError, progress, side_by_side, whole_file
from attunet3d.datasets import label_fit
from attunet3d.datasets.case import Case
from attunet3d.datasets.case_files import check_file, read_case_label, read_image
from attunet3d.datasets.label_fit import TISSUE_HU
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging import Volume, open_organ_masks, read_label, scan_warnings

_log = logging.getLogger(__name__)
SOFT_TISSUE_HU = (-200.0, 300.0)  # the tissue's range if the scan's values do not look like HU
MOST_LISTED = 20  # values without a name; a label map has fewer than a scan
SWAPPED = "is this the scan, and the image the label map?"
PARTS = ("training", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One error or warning about one case."""

    case_id: str
    text: str
    warning: bool = False
    """Whether the case may still be used."""
    flip: str | None = None
    """The `label_flip` that corrects it."""
    misfit: bool = False
    """Whether it is about the label's position, which a person may judge better."""

    def __str__(self) -> str:
        return f"{self.case_id}: {'warning' if self.warning else 'error'}: {self.text}"


def check_pairs(
    cases: Manifest, tissue_hu: Sequence[float] | None = None, *, workers: int | None = None
) -> list[Problem]:
    """Check all cases of a manifest; test cases need no label.

    Args:
        cases: The manifest.
        tissue_hu: Lowest and highest HU of the labelled tissue; None: `label_fit.TISSUE_HU`.
        workers: Cases read at a time; None: up to four.

    Returns:
        All problems of all cases, in the manifest's order.

    Raises:
        DataError: `tissue_hu` is not a range.
    """
    low, high = _range(TISSUE_HU if tissue_hu is None else tissue_hu)
    jobs = [(case, part != "test") for part in PARTS for case in getattr(cases, part)]

    def check(job: tuple[Case, bool]) -> list[Problem]:
        return _check(*job, cases, (low, high))

    problems: list[Problem] = []
    with (
        ThreadPoolExecutor(workers or side_by_side(len(jobs))) as pool,
        progress(len(jobs), "manifest") as bar,
    ):
        for found in pool.map(check, jobs):
            problems += found
            bar.update()
    return problems


def log_problems(problems: Iterable[Problem]) -> None:
    """Log each problem as a warning or an error of its case."""
    for problem in problems:
        level = logging.WARNING if problem.warning else logging.ERROR
        _log.log(level, "%s", problem.text, extra={"case": problem.case_id})


def check_case(
    case: Case, cases: Manifest, tissue_hu: tuple[float, float] = TISSUE_HU
) -> Iterator[Problem]:
    """All problems of one labelled or unlabelled case of a manifest."""
    labels = cases.value_names

    def problem(text: object, **facts: Any) -> Problem:
        return Problem(case_id=case.id, text=str(text), **facts)

    image: Volume | None = None
    not_hu: str | None = None
    try:
        check_file(case, "image", case.image)
        image = read_image(case)
        odd = scan_warnings(image)
        not_hu = next((text for text in odd if "HU" in text), None)
        yield from (problem(f"{case.image.name}: {text}", warning=True) for text in odd)
    except (UserError, OSError) as error:
        yield problem(_reason(error))
    if case.label is None:
        return
    name = case.label.name
    try:
        check_file(case, "label", case.label)
        if image is None and open_organ_masks(case.label) is not None:
            return
        label = read_case_label(case, image, cases.labels) if image else read_label(case.label)
    except (UserError, OSError) as error:
        swapped = image is not None and _looks_like_labels(image)
        yield problem(_reason(error) + (f"; {SWAPPED}" if swapped else ""))
        return
    yield from (problem(f"{name}: {text}", **facts) for text, facts in _values(label, labels))
    if image is None:
        return
    if cases.ignore is not None:  # unlabelled voxels belong to no organ
        label = replace(label, array=np.where(label.array == cases.ignore, 0, label.array))
    if label.array.shape != image.array.shape:
        yield problem(
            f"{name}: has shape {label.array.shape}, its scan {image.array.shape}; give the label"
            " of this scan"
        )
    elif found := label_fit.find_misfit(image, label, SOFT_TISSUE_HU if not_hu else tissue_hu):
        text = found.text
        if not_hu and found.flip is None and label.grid.matches(image.grid):
            text = f"does not fit a CT scan's values ({not_hu}); only CT is supported: is it MR?"
        yield problem(f"{name}: {text}", warning=found.warning, flip=found.flip, misfit=True)


def write_failures(out: Path, problems: Iterable[Problem]) -> Path | None:
    """Write `OUT.failures.json` with the reasons by case, or delete an older one if there are none.

    Raises:
        WriteError: The file cannot be written.
    """
    path = Path(out).with_suffix(".failures.json")
    failures: dict[str, list[str]] = {}
    for problem in problems:
        if not problem.warning:
            failures.setdefault(problem.case_id, []).append(problem.text)
    if failures:
        whole_file.make_folder(path.parent)
        whole_file.write_text(path, json.dumps(failures, indent=2, ensure_ascii=False) + "\n")
        return path
    with suppress(OSError):  # no such file; if the folder is unusable, saving the manifest says so
        path.unlink()
    return None


def _check(
    case: Case, labelled: bool, cases: Manifest, tissue_hu: tuple[float, float]
) -> list[Problem]:
    try:
        problems = list(check_case(case, cases, tissue_hu))
    except Exception as error:  # one odd file must not end the check of all others
        text = f"cannot be checked ({type(error).__name__}: {' '.join(str(error).split())})"
        return [Problem(case_id=case.id, text=text)]
    if labelled and case.label is None:
        problems.append(Problem(case_id=case.id, text="has no label; give it one or leave it out"))
    return problems


def _range(tissue_hu: Sequence[float]) -> tuple[float, float]:
    if len(tissue_hu) != 2 or not tissue_hu[0] < tissue_hu[1]:
        given = " ".join(f"{value:g}" for value in tissue_hu)
        raise DataError(
            f"--tissue-hu {given}: must be the lowest and the highest HU",
            value=tissue_hu,
            cure="give two numbers",
        )
    return tissue_hu[0], tissue_hu[1]


def _values(label: Volume, labels: dict[int, str]) -> Iterator[tuple[str, dict[str, bool]]]:
    counts = np.bincount(label.array.ravel(order="K"), minlength=256)
    found = set(np.flatnonzero(counts).tolist())
    unknown = sorted(found - set(labels))
    if len(unknown) > MOST_LISTED:
        yield f"has {len(found)} values, of which {len(unknown)} have no name: {SWAPPED}", {}
    elif unknown:
        known = ", ".join(f"{value} {name}" for value, name in labels.items())
        found_words = f"unnamed value{'s' * (len(unknown) > 1)} {', '.join(map(str, unknown))}"
        yield f"has {found_words} (named: {known}); correct the label or use --label", {}
    if found <= {0}:
        yield "nothing is labelled", {"warning": True}


def _looks_like_labels(image: Volume) -> bool:
    sample = image.array[::2, ::2, ::2]
    whole = float(sample.min()) >= 0 and float(sample.max()) <= 255
    return whole and len(np.unique(sample)) <= MOST_LISTED


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    return str(error)
