"""Folders of results: the names of the files, and which cases are done.

    OUT_DIR/CASE.nii.gz                  label map
    OUT_DIR/CASE.json                    sidecar, written last; a case without it is not done
    OUT_DIR/probabilities/CASE.nii.gz    on request, foreground labels in order
    OUT_DIR/attention/CASE.nii.gz        on request, gates from the finest level down
    OUT_DIR/CASE/LABEL.nii.gz            on request, a mask per foreground label
    OUT_DIR/preview/CASE.png             on request, three slices with the labels
    OUT_DIR/CASE.dcm                     on request, a DICOM Segmentation
    OUT_DIR/statistics.csv               a row per case and label, see `statistics_table`
    OUT_DIR/failures.json                reasons by case, if any failed; see `outcome`
    OUT_DIR/.begun-CASE                  while a case is written; a killed call leaves it behind

The sidecar holds a checksum of each file of the case, so damaged and exchanged files are noticed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import (
    DataError,
    FileError,
    UserError,
    WriteError,
    case_names,
    read_json,
    versions,
    whole_file,
)
from attunet3d.imaging import LabelMeasures, Segmentation, read_label

KINDS = "probabilities", "attention"  # of maps; also the names of their folders
BEGUN = ".begun-"
OTHER = {
    "settings": "other settings",
    "scan_checksum": "another scan",
    "probabilities": "other probabilities",
}
SIDECAR_BYTES = 2_000_000  # far above any that is written
REDO = "run `infer` on the case again"


@dataclass(frozen=True)
class CaseFiles:
    """Paths of the results of one case; see `case_files`."""

    folder: Path
    case_id: str

    @property
    def mask(self) -> Path:
        """The label map."""
        return self.folder / f"{self.case_id}.nii.gz"

    @property
    def sidecar(self) -> Path:
        """The record of the case."""
        return self.folder / f"{self.case_id}.json"

    def maps(self, kind: str) -> Path:
        """The foreground labels' probabilities, or the gates' coefficients."""
        return self.folder / kind / f"{self.case_id}.nii.gz"

    def label_masks(self, labels: Mapping[int, str]) -> dict[int, Path]:
        """The mask of each foreground label, by value.

        Raises:
            WriteError: A label's name cannot be that of a file.
        """
        found, folder = {}, self.folder / self.case_id
        for value, name in labels.items():
            try:
                if value:
                    found[value] = folder / f"{case_names.check_id(name)}.nii.gz"
            except DataError:
                rule = f"--mask-files: label {name!r} cannot be the name of a file"
                cure = "leave --mask-files out, or rename the label (`manifest --label`) and train"
                raise WriteError(rule, value=name, cure=cure) from None
        return found

    @property
    def preview(self) -> Path:
        """A picture of the label map on the scan."""
        return self.folder / "preview" / f"{self.case_id}.png"

    @property
    def dicom_seg(self) -> Path:
        """A DICOM Segmentation of the series."""
        return self.folder / f"{self.case_id}.dcm"

    @property
    def begun(self) -> Path:
        """Marks the files of a case without a sidecar as written by us."""
        return self.folder / f"{BEGUN}{self.case_id}"


def case_files(folder: Path, case_id: str) -> CaseFiles:
    """The paths of a case's files, all of them inside `folder`.

    Raises:
        WriteError: The id is not a plain file name, or is that of another file in the folder.

    Example:
        >>> case_files(Path("out"), "case_7").mask.as_posix()
        'out/case_7.nii.gz'
        >>> case_files(Path("out"), "../case_7")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.WriteError: case id '../case_7': must be a plain file name ...
    """
    try:
        return CaseFiles(Path(folder), case_names.check_id(case_id))
    except DataError as error:
        raise WriteError(f"case {error}") from None


def sweep(folder: Path) -> None:
    """Delete the unfinished files of killed calls; files that are being written are kept."""
    for place in (folder, *folder.glob("*/")):
        whole_file.sweep(place)
    for path in folder.glob(f"{BEGUN}*"):
        if (path.parent / f"{path.name.removeprefix(BEGUN)}.json").exists():
            with suppress(OSError):
                path.unlink()


def write_sidecar(
    files: CaseFiles,
    segmentation: Segmentation,
    written: Sequence[Path],
    record: Mapping[str, Any],
    measures: Mapping[str, LabelMeasures] | None = None,
) -> None:
    """Write the sidecar, the last of a case's files.

    Args:
        files: The case.
        segmentation: Gives the names of its labels, and the values of those that overlap.
        written: The files that were written for this case.
        record: All other entries, as plain values.
        measures: Measures of its labels; None: their voxels are counted.
    """
    measures = measures or _counted(segmentation)
    content = {
        "case": files.case_id,
        "labels": {str(value): name for value, name in segmentation.labels.items()},
        **_regions(segmentation),
        "volumes": {name: _volume(label) for name, label in measures.items()},
        **record,
        "versions": versions(),
        "files": {path.relative_to(files.folder).as_posix(): _sha256(path) for path in written},
    }
    whole_file.write_text(files.sidecar, json.dumps(content, indent=2) + "\n")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read a sidecar.

    Raises:
        FileError: It is missing, or is not a sidecar.
    """
    content = read_json(path, SIDECAR_BYTES)
    parts = ("labels", "files", "settings")
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(part), dict) for part in parts)
        or not all(value.isdecimal() for value in content["labels"])
    ):
        rule = "is not a sidecar: it must hold labels, files and settings"
        raise FileError(rule, path=path, cure=REDO)
    try:
        label_regions(content)
    except (AttributeError, TypeError, ValueError):
        rule = "is not a sidecar: its regions must be lists of label values by label value"
        raise FileError(rule, path=path, cure=REDO) from None
    return content


def read_sidecars(folder: Path) -> dict[str, dict[str, Any]]:
    """The sidecars of a folder by case; see `each_sidecar`."""
    return dict(each_sidecar(folder))


def each_sidecar(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases of a folder with their sidecars, in order; other programs' JSON is passed over."""
    for path in sorted(folder.glob("[!.]*.json")):
        with suppress(FileError):
            yield path.stem, read_sidecar(path)


def label_names(content: Mapping[str, Any]) -> dict[int, str]:
    """The names of all labels of a sidecar, the background's too, by value."""
    return {int(value): str(name) for value, name in content["labels"].items()}


def label_regions(content: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """The values that make up each of the labels that overlap, by value; of a sidecar."""
    regions = content.get("regions", {})
    return {int(value): (int(first), *map(int, rest)) for value, (first, *rest) in regions.items()}


def read_segmentation(files: CaseFiles, sidecar: Mapping[str, Any]) -> Segmentation:
    """Read a case's label map with the names and regions of its labels, as its sidecar has them.

    Raises:
        UserError: The label map cannot be read.
    """
    volume, names = read_label(files.mask), label_names(sidecar)
    regions = label_regions(sidecar)
    return Segmentation(volume.array, volume.grid, names, volume.geometry, regions)


def spare_others_work(
    files: CaseFiles, segmentation: Segmentation, *, mask_files: bool = False
) -> None:
    """Refuse to overwrite label maps and masks that we cannot prove we wrote: manual work, maybe.

    Raises:
        WriteError: There is one, and it differs from what `segmentation` would be written as.
    """
    if files.sidecar.exists() or files.begun.exists():
        return
    masks = files.label_masks(segmentation.labels if mask_files else {})
    for value, path in {0: files.mask, **masks}.items():
        if not path.exists():
            continue
        with suppress(UserError):
            ours = segmentation.mask_of(value) if value else segmentation.array
            if np.array_equal(read_label(path).array, ours):
                continue  # nothing would be lost
        rule = "already exists, has no sidecar and differs from the result"
        raise WriteError(rule, path=path, cure="move it away, or choose another output folder")


def intact(files: CaseFiles, content: Mapping[str, Any], wanted: Sequence[Path]) -> bool:
    """Whether each wanted file of a case has the checksum that its sidecar gives."""
    for path in wanted:
        name = path.relative_to(files.folder).as_posix()
        if not path.is_file() or content["files"].get(name) != _sha256(path):
            return False
    return True


def is_done(files: CaseFiles, wanted: Sequence[Path], origin: Mapping[str, Any]) -> bool:
    """Whether the case is complete and was made from `origin`, so that it can be skipped.

    Args:
        files: The case.
        wanted: The files it must have.
        origin: Entries that its sidecar must have: model, settings, checksum of the scan.

    Raises:
        WriteError: The case is complete but was made differently; overwriting must be requested.
    """
    try:
        content = read_sidecar(files.sidecar)
    except FileError:
        return False
    if not intact(files, content, wanted):
        return False
    for name, value in origin.items():
        if content.get(name) != value:
            raise WriteError(
                f"was made with {OTHER.get(name, f'another {name}')}",
                path=files.mask,
                cure="use --overwrite or another output folder",
            )
    return True


def _counted(segmentation: Segmentation) -> dict[str, LabelMeasures]:
    grid, found = segmentation.grid, {}
    for value, name in sorted(segmentation.labels.items())[1:]:  # background is the first
        planes = (segmentation.mask_of(value, np.s_[..., k]) for k in range(grid.shape[2]))
        voxels = sum(int(np.count_nonzero(plane)) for plane in planes)
        ml = round(voxels * grid.voxel_volume_ml, 6)
        found[name] = LabelMeasures(value=value, voxels=voxels, ml=ml)
    return found


def _regions(segmentation: Segmentation) -> dict[str, dict[str, list[int]]]:
    parts = {str(value): list(parts) for value, parts in segmentation.regions.items()}
    return {"regions": parts} if parts else {}


def _volume(label: LabelMeasures) -> dict[str, float]:
    found = {name: getattr(label, name) for name in ("value", "voxels", "ml", "hu_mean", "hu_sd")}
    return {name: value for name, value in found.items() if value is not None}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
