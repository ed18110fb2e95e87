"""Reads the scan and the label of a case."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from attunet3d.core import ENDINGS, DataError, stem
from attunet3d.datasets.case import Case
from attunet3d.imaging import OrganMasks, Volume, open_organ_masks, read_label, read_volume

_log = logging.getLogger(__name__)


def read_image(case: Case) -> Volume:
    """Read the scan of a case; NaN and infinite values are refused.

    Raises:
        UserError: The file is not a scan, or has such values.
    """
    return read_volume(case.image, nonfinite="refuse")


def read_case_label(case: Case, image: Volume, labels: Mapping[int, str]) -> Volume:
    """The label map of a case, corrected by `label_flip` where the manifest has one.

    Always read labels through this function. The label may be a label map, or hold organs by name:
    a folder of mask files, a DICOM SEG or an RTSTRUCT. Their masks are written one over another in
    the order of the labels' values.

    Args:
        case: A labelled case.
        image: Its scan. Organs by name, and a label with `label_flip`, take the scan's grid.
        labels: The manifest's names by value.

    Raises:
        DataError: The case has no label, a mask of an annotated organ is missing, or the flip does
            not fit the scan.
        UserError: The file is not a label.
    """
    if case.label is None:
        raise DataError(f"case {case.id}: has no label", cure="name one in the manifest")
    masks = open_organ_masks(case.label)
    label = read_label(case.label) if masks is None else _combined(masks, case, image, labels)
    if case.label_flip is None:
        return label
    if label.array.shape != image.array.shape:
        raise DataError(
            f"case {case.id}: {case.label.name} has shape {label.array.shape}, its scan"
            f" {image.array.shape}, and label_flip needs labels of the scan's shape",
            path=case.label,
            cure="correct label_flip in the manifest",
        )
    # A mirrored view would not be in Fortran order, which the callers rely on.
    axes = tuple("ijk".index(axis) for axis in case.label_flip)
    array = np.asfortranarray(np.flip(label.array, axes))
    return replace(label, array=array, grid=image.grid, geometry=image.geometry)


def label_needs_scan(case: Case) -> bool:
    """Whether a case's label takes its scan's grid, instead of having one of its own."""
    assert case.label is not None
    return case.label_flip is not None or not case.label.name.lower().endswith(ENDINGS)


def _combined(masks: OrganMasks, case: Case, image: Volume, labels: Mapping[int, str]) -> Volume:
    """Masks as one label map on the scan's grid; of a voxel in several, the last label counts."""
    array = np.zeros(image.grid.shape, np.uint8, order="F")
    twice = 0
    for value, name in sorted(labels.items()):
        if not value or (case.annotated is not None and name not in case.annotated):
            continue
        if name not in masks:
            raise DataError(
                f"case {case.id}: has no mask of {name!r}; it has {', '.join(masks.names)}",
                path=masks.path,
                value=name,
                cure='correct the name, or list in "annotated" the labels that were annotated',
            )
        mask = masks.mask(name, image.grid)
        twice += int(np.count_nonzero(array[mask]))
        array[mask] = value
    if twice:
        text = "case %s: %d voxels are in several masks; the label of the highest value counts"
        _log.info(text, case.id, twice)
    return Volume(array, image.grid, image.geometry, name=masks.path.name)


def check_file(case: Case, which: str, path: Path) -> None:
    """Check that a case's file exists and has its checksum, if the manifest gives one.

    Args:
        case: The case.
        which: "image" or "label".
        path: The file.

    Raises:
        DataError: The file is missing, or has another checksum.
    """
    if not path.exists():
        raise _missing(path, which)
    expected = case.sha256.get(which)
    if expected and path.is_file():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected.lower():
            raise DataError(
                f"its SHA-256 begins with {found[:12]}, the manifest says {expected[:12]}",
                path=path,
                cure="fetch the file again",
            )


def _missing(path: Path, which: str) -> DataError:
    if path.is_symlink():
        cure = "fetch it (git annex get, datalad get)"
        return DataError("is a link to a file that does not exist", path=path, cure=cure)
    beside = [path.with_name(stem(path.name) + ending) for ending in ENDINGS]
    if other := next((name for name in beside if name.exists()), None):
        cure = f"{other.name} exists: correct the name in the data set's list"
        return DataError("no such file", path=path, cure=cure)
    return DataError("no such file", path=path, cure=f"the case needs its {which}")
