"""The forms in which a finished job's result can be fetched, each made when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attunet3d.cohort import case_files
from attunet3d.core import DataError
from attunet3d.evaluation import write_folder_report
from attunet3d.packaging import label_maps

CASE = "scan"  # as workers call each


@dataclass(frozen=True)
class Kind:
    """A form of the result.

    Args:
        name: In the address.
        make: (scan, folder of the result) → the file.
        media_type: Of the file.
        file: The name that a client saves it under.
    """

    name: str
    make: Callable[[Path, Path], Path]
    media_type: str
    file: str


def _label_map(scan: Path, result: Path) -> Path:
    return case_files(result, CASE).mask


def _sidecar(scan: Path, result: Path) -> Path:
    return case_files(result, CASE).sidecar


def _dicom_seg(scan: Path, result: Path) -> Path:
    files = case_files(result, CASE)
    path = files.dicom_seg
    if not path.exists():
        if not scan.is_dir():
            raise DataError("the scan was not a DICOM series", cure="fetch label-map")
        label_maps.writer("dicom-seg")(files, path, scan)
    return path


def _report(scan: Path, result: Path) -> Path:
    path = result / "report.html"
    if not path.exists():
        write_folder_report(result, path, {CASE: scan})
    return path


def kinds(scan: Path) -> list[str]:
    """Names of the forms that there are for a scan: a DICOM Segmentation needs a series."""
    return [kind.name for kind in KINDS if kind.make is not _dicom_seg or scan.is_dir()]


KINDS = (
    Kind("label-map", _label_map, "application/gzip", "segmentation.nii.gz"),
    Kind("sidecar", _sidecar, "application/json", "segmentation.json"),
    Kind("dicom-seg", _dicom_seg, "application/dicom", "segmentation.dcm"),
    Kind("report", _report, "text/html; charset=utf-8", "report.html"),
)
