"""Turns downloaded folders into a manifest: MSD, nnU-Net raw, folders of images and of cases.

The layout is recognised by what the folder contains, in this order:

    dataset.json with `channel_names` or `file_ending`    nnU-Net raw; `_0000` is optional
    dataset.json with `training`                          MSD, or a MONAI data list
    imagesTr + labelsTr, images + labels, …               by file name; test scans in imagesTs
    train/, validation/ and test/ with such folders       the layout of the paper's authors
    CASE/ct.nii.gz + CASE/segmentations/ORGAN.nii.gz      TotalSegmentator, AbdomenAtlas, SuPreM
    ImageTr/CASE/ct.nii.gz + LabelTr/CASE/segmentations   PanTS; test scans in ImageTe

A scan without a label, or a label without a scan, becomes a case with a missing file, which
`pair_check` reports. Junk (`._*`, hidden files) is ignored.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import DataError, UserError, case_names, read_json
from attunet3d.datasets import manifest, organ_labels, pairing
from attunet3d.datasets.case import Case
from attunet3d.datasets.label_names import parse_labels
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging import read_label

IMAGES = ("imagesTr", "imageTr", "images", "image", "imgs", "img", "scans", "volumes", "ct")
LABELS = (
    "labelsTr",
    "labelTr",
    "labels",
    "label",
    "masks",
    "mask",
    "segmentations",
    "segmentation",
    "seg",
)
TEST_IMAGES, TEST_LABELS = ("imagesTs", "imageTe"), ("labelsTs", "labelTe")
PARTS = {
    "training": ("train", "training"),
    "validation": ("validation", "val"),
    "test": ("test", "testing"),
}


def read_data_set(
    folder: Path,
    names: Mapping[str, str] | None = None,
    root: Path | None = None,
    organs: Sequence[str] = (),
) -> Manifest:
    """List the cases of a folder, without folds.

    The caller names the folder, so links in it are followed wherever they lead.

    Args:
        folder: The data set as downloaded.
        names: Label names by value, as `{"1": "pancreas"}`, in place of the data set's own. Without
            any names, the values that occur are called "label 1" and so on.
        root: A folder that contains all files, or None for the data set's own.
        organs: Those that are taken of labels which hold organs by name (see `imaging`'s
            `open_organ_masks`), as the labels 1, 2, …; none: all that any case has, by name.

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
        if organs or "labels" not in values:
            listed = manifest.parse({**values, "labels": {"label": 1}}, folder, place=place)
            labels = organ_labels.chosen_labels(listed, organs, names or {}) or names
            values = {**values, "labels": labels or _found_labels(listed.training)}
        found = manifest.parse(values, root or folder, folder.resolve().name, place)
        found = organ_labels.annotated(renamed(found, names or {}))
    except UserError as error:
        raise error.within(folder) from None
    if not (found.training or found.validation or found.test):
        raise DataError("lists no case", path=folder, cure="check its contents")
    return found


def renamed(found: Manifest, names: Mapping[str, str]) -> Manifest:
    """Return the same cases with other names for some label values, as `{"1": "pancreas"}`.

    Of regions, the value with which a region is written names it.

    Raises:
        DataError: A value or name is not allowed, or a name comes twice.
    """
    if not names:
        return found
    known = found.labels if found.regions else found.value_names
    named = parse_labels({**{str(value): name for value, name in known.items()}, **names})
    if not found.regions:
        return replace(found, labels=named.labels, ignore=named.ignore)
    kept = found.labels.keys() & named.labels.keys()  # a region cannot become `ignore`
    if unknown := [value for value in names if int(value) not in kept]:
        written = ", ".join(f"{value} {name}" for value, name in found.labels.items() if value)
        rule = f"--label {unknown[0]}: of overlapping regions the values written are {written}"
        raise DataError(rule, value=unknown[0], cure="name one of them")
    new = {name: names.get(str(value), name) for value, name in found.labels.items()}
    return replace(
        found,
        labels={value: new[name] for value, name in found.labels.items()},
        regions={new[name]: values for name, values in found.regions.items()},
    )


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
        """The case with the patient that its id names."""
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
        cure="use --root to name a folder that contains all files, or make the path relative",
    )


def _nnunet(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's values of an nnU-Net raw data set."""
    channels = values.get("channel_names", {"0": "CT"})
    if isinstance(explicit := values.get("dataset"), Mapping):
        pairs = [_listed(case_id, entry) for case_id, entry in explicit.items()]
    else:
        pairs = list(pairing.pairs(folder, "imagesTr", "labelsTr"))
    return {
        **{
            key: values[key] for key in ("name", "licence", "license", "reference") if key in values
        },
        "labels": values.get("labels"),
        "regions_class_order": values.get("regions_class_order"),
        "modality": channels,
        "training": pairs,
        "test": list(pairing.pairs(folder, "imagesTs", "labelsTs")),
    }


def _listed(case_id: str, entry: object) -> pairing.Entry:
    """A case of the explicit list that newer nnU-Net files may contain."""
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
                    pairing.pairs(folder, f"{inner}/{image}", label and f"{inner}/{label}")
                )
    if "training" in values:
        return values
    image, label = _first(names, IMAGES), _first(names, LABELS)
    if image is None or label is None:
        if cases := list(pairing.case_folders(folder)):
            return {"training": cases}
        raise DataError(
            "contains neither dataset.json, nor folders of scans (imagesTr, images, …) and labels"
            " (labelsTr, labels, …), nor folders CASE/ct.nii.gz",
            cure="rename its folders",
        )
    test, test_label = _first(names, TEST_IMAGES), _first(names, TEST_LABELS)
    rest = list(pairing.pairs(folder, test, test_label)) if test else []
    return {"training": list(pairing.pairs(folder, image, label)), "test": rest}


def _first(names: Mapping[str, str], choices: tuple[str, ...]) -> str | None:
    return next((names[choice.lower()] for choice in choices if choice.lower() in names), None)


def _found_labels(cases: Sequence[Case]) -> dict[str, str]:
    """Names for the values that occur in the labels; `pair_check` reports unreadable files."""

    def values(path: Path) -> set[int]:
        with suppress(UserError, OSError):
            return set(np.flatnonzero(np.bincount(read_label(path).array.ravel("K"))))
        return set()

    with ThreadPoolExecutor() as pool:
        found = sorted(set().union(*pool.map(values, [c.label for c in cases if c.label])) - {0})
    if not found:
        raise DataError("all labels are empty", cure="name the labels with --label 1=NAME")
    return {"0": "background"} | {str(value): f"label {value}" for value in found}
