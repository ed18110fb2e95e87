"""Turns downloaded folders into a manifest: MSD, nnU-Net raw, folders of images and labels.

The layout is recognised by what the folder contains, in this order:

    dataset.json with `channel_names` or `file_ending`    nnU-Net raw; `_0000` is optional
    dataset.json with `training`                          MSD, or a MONAI data list
    imagesTr + labelsTr, images + labels, …               by file name; test scans in imagesTs
    train/, validation/ and test/ with such folders       the layout of the paper's authors

A scan without a label, or a label without a scan, becomes a case whose missing file the check of
the pairs names. Junk (`._*`, hidden files) is ignored.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import ENDINGS, DataError, UserError, case_names, read_json, stem
from attunet3d.datasets import manifest
from attunet3d.datasets.case import Case
from attunet3d.datasets.label_names import parse_labels
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging import read_label

IMAGES = ("imagesTr", "images", "image", "imgs", "img", "scans", "volumes", "ct")
LABELS = ("labelsTr", "labels", "label", "masks", "mask", "segmentations", "segmentation", "seg")
TEST_IMAGES, TEST_LABELS = ("imagesTs",), ("labelsTs",)
PARTS = {
    "training": ("train", "training"),
    "validation": ("validation", "val"),
    "test": ("test", "testing"),
}
LABEL_ENDINGS = ("", "_label", "_labels", "_seg", "_mask", "_segmentation", "-label")  # of a stem

Entry = dict[str, Any]


def read_data_set(
    folder: Path, names: Mapping[str, str] | None = None, root: Path | None = None
) -> Manifest:
    """List the cases of a folder, in no folds.

    The caller names the folder, so links in it are followed wherever they lead.

    Args:
        folder: The data set as it lies.
        names: Label names by value, as `{"1": "pancreas"}`; they replace the folder's for these
            values. Folders without any get names such as "label 1" for the values that occur.
        root: A folder that contains all files, or None for the data set's own.

    Raises:
        UserError: The layout is unknown, or a rule of manifests is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("must be the folder of a data set", path=folder, cure="check the path")
    place = partial(_placed, folder, folder if root is None else Path(root))
    description = folder / "dataset.json"
    values = read_json(description) if description.is_file() else None
    try:
        if values is None:
            values = _folders(folder)
        elif isinstance(values, dict) and {"channel_names", "file_ending"} & set(values):
            values = _nnunet(folder, values)
        if not isinstance(values, dict):
            raise DataError(
                "dataset.json must be an object with labels and lists of cases",
                cure="correct or remove it",
            )
        if names and "labels" not in values:
            values = {**values, "labels": names}
        if "labels" not in values and values.get("training"):
            listed = manifest.parse({**values, "labels": {"label": 1}}, folder, place=place)
            values = {**values, "labels": _found_labels(listed.training)}
        found = manifest.parse(values, root or folder, folder.resolve().name, place)
        found = renamed(found, names or {})
    except UserError as error:
        raise error.within(folder) from None
    if not (found.training or found.validation or found.test):
        raise DataError("lists no case", path=folder, cure="check its contents")
    return found


def renamed(found: Manifest, names: Mapping[str, str]) -> Manifest:
    """Return the same cases with other names for some label values, as `{"1": "pancreas"}`.

    Raises:
        DataError: A value or name is not allowed, or a name comes twice.
    """
    labels = {str(value): name for value, name in found.labels.items()}
    return replace(found, labels=parse_labels({**labels, **names}).labels) if names else found


def grouped(found: Manifest, pattern: str | None) -> Manifest:
    """Return the same cases with the patients that a regular expression finds in their ids.

    Args:
        found: The cases.
        pattern: Its first group, or else the whole match, is the patient; None changes nothing.

    Raises:
        DataError: The pattern is not a regular expression, or an id does not match.

    Example:
        >>> from attunet3d.datasets.case import Case
        >>> case = Case(id="p07_late", image=Path("/data/p07_late.nii.gz"))
        >>> labels = {0: "background", 1: "liver"}
        >>> found = Manifest(name="a", labels=labels, root=Path("/data"), training=(case,))
        >>> grouped(found, "^(p[0-9]+)_").training[0].group
        'p07'
    """
    if pattern is None:
        return found
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"--group {pattern}: is not a regular expression ({error})",
            value=pattern,
            cure="correct it",
        ) from None

    def with_group(case: Case) -> Case:
        match = expression.search(case.id)
        if match is None:
            raise DataError(
                f"--group {pattern}: does not match case {case.id!r}",
                value=case.id,
                cure="correct it",
            )
        return replace(case, group=match[1] if expression.groups else match[0])

    return found.changed(with_group)


def _placed(folder: Path, root: Path, path: str) -> Path:
    """Resolve a path of a data set's own list, which is relative to the data set or absolute."""
    whole = Path(os.path.normpath(os.path.join(folder.absolute(), path)))
    for base in (root.absolute(), root.resolve()):
        if whole != base and whole.is_relative_to(base):
            relative = whole.relative_to(base).as_posix()
            return case_names.inside(root, relative, follow_links=True)
    raise DataError(
        f"path {path[:80]!r}: lies outside the folder {root}",
        value=path,
        cure="name a folder that holds all files by --root, or make the path relative",
    )


def _nnunet(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's values of an nnU-Net raw data set."""
    channels = values.get("channel_names", {"0": "CT"})
    if isinstance(explicit := values.get("dataset"), Mapping):
        pairs = [_listed(case_id, entry) for case_id, entry in explicit.items()]
    else:
        pairs = list(_pairs(folder, "imagesTr", "labelsTr"))
    return {
        **{
            key: values[key] for key in ("name", "licence", "license", "reference") if key in values
        },
        "labels": values.get("labels"),
        "regions_class_order": values.get("regions_class_order"),
        "modality": channels,
        "training": pairs,
        "test": list(_pairs(folder, "imagesTs", "labelsTs")),
    }


def _listed(case_id: str, entry: object) -> Entry:
    """A case of the explicit list that newer nnU-Net files may hold."""
    if not isinstance(entry, Mapping) or "images" not in entry:
        raise DataError(
            f"case {case_id!r}: must give images and label",
            value=entry,
            cure="correct its entry in dataset.json",
        )
    return {"id": case_id, "image": entry["images"], "label": entry.get("label")}


def _folders(folder: Path) -> dict[str, Any]:
    """The manifest's values of folders of images and labels."""
    names = {path.name.lower(): path.name for path in folder.iterdir() if path.is_dir()}
    values: dict[str, Any] = {}
    for part, choices in PARTS.items():
        if inner := _first(names, choices):
            below = {path.name.lower(): path.name for path in (folder / inner).iterdir()}
            if image := _first(below, IMAGES):
                label = _first(below, LABELS)
                values[part] = list(
                    _pairs(folder, f"{inner}/{image}", label and f"{inner}/{label}")
                )
    if "training" in values:
        return values
    image, label = _first(names, IMAGES), _first(names, LABELS)
    if image is None or label is None:
        raise DataError(
            "holds neither dataset.json nor a folder of scans (imagesTr, images, …) beside one of"
            " labels (labelsTr, labels, …)",
            cure="rename its folders",
        )
    test, test_label = _first(names, TEST_IMAGES), _first(names, TEST_LABELS)
    rest = list(_pairs(folder, test, test_label)) if test else []
    return {"training": list(_pairs(folder, image, label)), "test": rest}


def _pairs(folder: Path, images: str, labels: str | None) -> Iterator[Entry]:
    """Scans with the labels of their names, then labels without a scan."""
    scans, masks = _stems(folder / images), _stems(folder / labels) if labels else {}
    ids = {name: _case_id(name, scans, masks) for name in scans}
    for name, case_id in ids.items():
        entry = {"id": case_id, "image": f"{images}/{scans[name]}"}
        mask = next(
            (masks.pop(case_id + end) for end in LABEL_ENDINGS if case_id + end in masks), None
        )
        if mask or (labels and (folder / labels).is_dir()):
            entry["label"] = f"{labels}/{mask or case_id + _ending(scans[name])}"
        yield entry
    for name, mask in masks.items():
        yield {"id": name, "image": f"{images}/{name}{_ending(mask)}", "label": f"{labels}/{mask}"}


def _case_id(name: str, scans: Mapping[str, str], masks: Mapping[str, str]) -> str:
    """The scan's name less nnU-Net's channel, unless the number belongs to the name."""
    match = re.fullmatch(r"(.+)_(\d{4})", name)
    if match is None or name in masks:
        return name
    base, channel = match.groups()
    if channel != "0000" and f"{base}_0000" in scans and base in masks:
        raise DataError(
            f"case {base!r}: has several channels, which are not supported",
            value=name,
            cure="keep the CT's channel only, as _0000",
        )
    return base if channel == "0000" and (base in masks or not masks) else name


def _stems(folder: Path) -> dict[str, str]:
    """File names (or names of DICOM folders) of a folder by their stems."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not (path.is_dir() or path.name.lower().endswith(ENDINGS)):
            continue
        if (other := found.setdefault(stem(path.name), path.name)) != path.name:
            raise DataError(
                f"{other} and {path.name} are one case", path=folder.name, cure="keep one"
            )
    return found


def _ending(name: str) -> str:
    return name[len(stem(name)) :] or ".nii.gz"


def _first(names: Mapping[str, str], choices: tuple[str, ...]) -> str | None:
    return next((names[choice.lower()] for choice in choices if choice.lower() in names), None)


def _found_labels(cases: Sequence[Case]) -> dict[str, str]:
    """Names for the values that occur in the labels; the check of the pairs lists bad files."""

    def values(path: Path) -> set[int]:
        with suppress(UserError, OSError):
            return set(np.flatnonzero(np.bincount(read_label(path).array.ravel("K"))))
        return set()

    with ThreadPoolExecutor() as pool:
        found = sorted(set().union(*pool.map(values, [c.label for c in cases if c.label])) - {0})
    if not found:
        raise DataError("all labels are empty", cure="name the labels with --label 1=NAME")
    return {"0": "background"} | {str(value): f"label {value}" for value in found}
