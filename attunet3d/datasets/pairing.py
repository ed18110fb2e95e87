"""Which scan belongs to which label, by the names of files and folders alone.

images/CASE.nii.gz     labels/CASE.nii.gz              a label map
images/CASE.nii.gz     labels/CASE/ORGAN.nii.gz        a mask file for each organ
images/CASE/*.dcm      labels/CASE.dcm                 a DICOM SEG or RTSTRUCT
CASE/ct.nii.gz         CASE/segmentations/ORGAN.nii.gz TotalSegmentator, AbdomenAtlas
ImageTr/CASE/ct.nii.gz LabelTr/CASE/segmentations/…    PanTS
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attunet3d.core import ENDINGS, DataError, stem

SCANS = ("ct", "image", "scan")  # in the folder of a case
MASKS = ("segmentations", "segmentation", "masks", "labels", "seg")
LABEL_ENDINGS = ("", "_label", "_labels", "_seg", "_mask", "_segmentation", "-label")  # of a stem

Entry = dict[str, Any]


def pairs(folder: Path, images: str, labels: str | None) -> Iterator[Entry]:
    """Scans with the labels that match by name, then labels without a scan.

    Args:
        folder: The data set.
        images: Its folder of scans.
        labels: Its folder of labels, if there is one.
    """
    scans = _stems(folder / images, SCANS)
    masks = _stems(folder / labels, MASKS, (*ENDINGS, ".dcm")) if labels else {}
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


def case_folders(folder: Path) -> Iterator[Entry]:
    """The folders that each hold the scan of a case, and a folder of its masks."""
    for case in sorted(folder.iterdir()):
        if case.is_dir() and not case.name.startswith("."):
            scan, masks = _inner(case, SCANS), _inner(case, MASKS)
            if scan is not None:
                label = {} if masks is None else {"label": f"{case.name}/{masks}"}
                yield {"id": case.name, "image": f"{case.name}/{scan}"} | label


def _case_id(name: str, scans: Mapping[str, str], masks: Mapping[str, str]) -> str:
    """The scan's name without nnU-Net's channel, unless the number belongs to the name."""
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


def _stems(
    folder: Path, inner: tuple[str, ...], endings: tuple[str, ...] = ENDINGS
) -> dict[str, str]:
    """Files and folders by the names of their cases, relative to the folder they lie in.

    A folder stands for itself (a DICOM series, masks), or for what is called `inner` in it.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not (path.is_dir() or path.name.lower().endswith(endings)):
            continue
        name = re.sub(r"\.dcm$", "", stem(path.name), flags=re.IGNORECASE)
        part = _inner(path, inner) if path.is_dir() else None
        if name in found:
            other = found[name].split("/")[0]
            raise DataError(
                f"{other} and {path.name} are the same case", path=folder.name, cure="keep one"
            )
        found[name] = path.name if part is None else f"{path.name}/{part}"
    return found


def _inner(case: Path, names: tuple[str, ...]) -> str | None:
    """The file or folder of one of these names in the folder of a case."""
    there = {stem(path.name).lower(): path.name for path in sorted(case.iterdir())}
    return next((there[name] for name in names if name in there), None)


def _ending(name: str) -> str:
    return name[len(stem(name)) :] or ".nii.gz"
