"""What became of a file against what must become of it: one of six verdicts."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.corpus_files import Entry
from benchmarks.reliability.nifti_bytes import Array

RIGHT, WRONG, BAD_ACCEPTED = "right", "silently wrong", "bad accepted"
GOOD_REFUSED, UNNAMED, OVER = "good refused", "unnamed", "over limits"
VERDICTS = (RIGHT, WRONG, BAD_ACCEPTED, GOOD_REFUSED, UNNAMED, OVER)
THRESHOLD_HU = 170.0
MOST_SHIFT = 0.1  # voxels at a corner, for a loader


@dataclass(frozen=True)
class Verdict:
    """A file's verdict and why."""

    file: str
    verdict: str
    detail: str = ""
    no_scan: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the beginning of the detail on one line, its paths as bare names."""
        detail = re.sub(r"/\S*/(?=\S)", "", " ".join(self.detail.split()))[:200]
        return {**asdict(self), "detail": detail}


def refused(entry: Entry, message: str) -> Verdict:
    """The verdict on a refusal with this message."""
    if entry.expect != "refuse" and not entry.either:
        return Verdict(entry.file, GOOD_REFUSED, message)
    named = names(message, Path(entry.file).name)
    return Verdict(entry.file, RIGHT if named else UNNAMED, message)


def names(message: str, name: str) -> bool:
    """Whether a message names a file, as it is or with its odd characters escaped."""
    forms = {name, repr(name)[1:-1], " ".join(name.split()), ascii(name)[1:-1]}
    forms |= {form.replace("\\", "\\\\") for form in forms}
    return any(form in message for form in forms)


def loaded(entry: Entry, folder: Path, array: Array, affine: Array) -> Verdict:
    """The verdict on voxels (HU) and a place (voxel → RAS mm) that a reader gave out."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    detail = _fault(entry, folder, array, affine)
    if entry.expect == "refuse":
        fine = entry.either and not detail
        return Verdict(entry.file, RIGHT if fine else BAD_ACCEPTED, detail, entry.no_scan)
    return Verdict(entry.file, WRONG if detail else RIGHT, detail)


def _fault(entry: Entry, folder: Path, array: Array, affine: Array) -> str:
    if entry.truth is not None:
        with np.load(folder / entry.truth) as truth:
            return _against_truth(array, affine, dict(truth))
    if entry.ball_centre_mm is not None:
        with np.errstate(invalid="ignore"):
            bright = np.isfinite(array) & (array > THRESHOLD_HU)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return ball_fault(bright, affine, entry.ball_centre_mm, spacing)
    return ""


def ball_fault(inside: Array, affine: Array, centre_mm: Iterable[float], spacing: Array) -> str:
    """How far a ball lies from its place, where that is more than half a voxel and 1 mm."""
    if inside.ndim != 3 or not inside.any():
        return "no ball"
    place = affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3]
    apart = float(np.linalg.norm(place - np.asarray(list(centre_mm))))
    return f"ball {apart:.1f} mm off" if not apart <= 0.5 * spacing.max() + 1 else ""


def _against_truth(array: Array, affine: Array, truth: dict[str, Array]) -> str:
    hu, place = truth["hu"], truth["affine"]
    if array.shape != hu.shape or array.dtype.kind not in "iufb":
        return f"shape {array.shape} for {hu.shape}"
    with np.errstate(over="ignore"):  # beyond float32 is infinite for a reader of float32
        array, hu = array.astype(np.float32), hu.astype(np.float32)
    close = np.isclose(array, hu, rtol=1e-4, atol=0.02, equal_nan=True)
    if not close.all():
        return f"{1 - close.mean():.1%} of the values wrong"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(place).all():
        same = np.allclose(spacing, truth["spacing"], rtol=1e-3)
        return "" if same else f"spacing {spacing.round(3).tolist()}"
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in hu.shape]), -1).reshape(-1, 3)
    apart = np.linalg.norm(corners @ (affine - place)[:3, :3].T + (affine - place)[:3, 3], axis=1)
    most = float(apart.max())
    return f"{most:.4g} mm off" if not most <= MOST_SHIFT * truth["spacing"].min() else ""
