"""Templates of manifests, which ship without data and are completed from a download.

A template contains names, licence and source; and either file patterns for each case, if the ids
are known but the folders are not (`*` matches anything, including slashes), or empty lists and the
expected numbers of cases, if the download lists its own. A pattern that ends in `.dcm` matches the
one folder that contains such files.
"""

import importlib.resources
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import translate
from pathlib import Path, PurePosixPath
from typing import Any

from attunet3d.core import DataError, case_names, read_json
from attunet3d.datasets import formats
from attunet3d.datasets.case import Case
from attunet3d.datasets.manifest import Manifest

_PARTS = ("training", "validation", "test")
_NAMED = 5  # missing files named in one message


def shipped() -> dict[str, Path]:
    """The manifests that ship with the package, by name.

    Example:
        >>> sorted(shipped())
        ['msd_task07_pancreas', 'nih_pancreas_ct', 'phantom']
    """
    folder = importlib.resources.files("attunet3d.data_manifests")
    paths = [Path(str(entry)) for entry in folder.iterdir()]
    return {path.stem: path for path in paths if path.suffix == ".json"}


def _find(template: Path) -> Path:
    return template if template.exists() else shipped().get(str(template), template)


def complete(template: Path, folder: Path) -> Manifest:
    """Make the manifest of a download from a template.

    Args:
        template: A manifest with `"template": true`, or the name of one that ships with the
            package, such as "nih_pancreas_ct".
        folder: The download, which becomes the root of the manifest.

    Raises:
        DataError: Files are missing, found twice, or not as many as expected.
        UserError: The template cannot be read, or the folder's layout is unknown.
    """
    template, folder = _find(Path(template)), Path(folder)
    plan = Manifest.load(template, root=folder)
    if not plan.template:
        rule = 'is not a template ("template": true)'
        raise DataError(rule, path=template, cure="train on it as it is")
    if not folder.is_dir():
        raise DataError("must be the folder of the download", path=folder, cure="check the path")
    if any(getattr(plan, part) for part in _PARTS):
        return _with_files(template, plan, folder)
    names = {str(value): name for value, name in plan.labels.items()}
    found = formats.read_data_set(folder, names)
    lists: dict[str, Any] = {part: getattr(found, part) for part in _PARTS}
    _require_numbers(template, folder, lists)
    return replace(plan, template=False, **lists)


def _with_files(template: Path, plan: Manifest, folder: Path) -> Manifest:
    """The template's cases with the files that their patterns find."""
    names = _names(folder)
    problems: list[str] = []

    def find(path: Path) -> Path:
        pattern = path.relative_to(plan.root).as_posix()
        matches = _matches(pattern, names)
        if len(matches) == 1:
            return case_names.inside(folder, matches[0], follow_links=True)
        problems.append(f"{len(matches)} match {pattern}")
        return path

    def with_files(case: Case) -> Case:
        return replace(case, image=find(case.image), label=case.label and find(case.label))

    found = plan.changed(with_files)
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise DataError(
            f"{template.name} expects one match for each pattern, but"
            f" {', '.join(problems[:_NAMED])}{more}",
            path=folder,
            cure="download the missing files",
        )
    return replace(found, template=False)


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative to it, with forward slashes; junk left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(place).relative_to(folder)
        found += [(base / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that match a pattern; `*/` at its start also matches the top folder."""
    expression = re.compile(translate(pattern))
    found = [name for name in names if expression.match(name) or expression.match("./" + name)]
    if pattern.lower().endswith(".dcm"):
        found = sorted({PurePosixPath(name).parent.as_posix() for name in found})
    return found


def _require_numbers(template: Path, folder: Path, lists: Mapping[str, Sequence[object]]) -> None:
    expected = read_json(template).get("expected", {})
    for part, count in expected.items() if isinstance(expected, dict) else ():
        if part in lists and len(lists[part]) != count:
            raise DataError(
                f"lists {len(lists[part])} {part} cases, {template.name} expects {count}",
                path=folder,
                value=len(lists[part]),
                cure="download the whole data set: a template takes no other",
            )
