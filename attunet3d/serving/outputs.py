"""The forms in which a finished job's result can be fetched, each made when it is asked for."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attunet3d import __version__
from attunet3d.core import DataError
from attunet3d.evaluation import ReportCase, ReportText, write_report
from attunet3d.imaging import Segmentation, read_label, read_volume
from attunet3d.packaging import SourceSeries, write_dicom_seg

MASK, SIDECAR, SEG, REPORT = "scan.nii.gz", "scan.json", "scan.dcm", "report.html"


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
    return result / MASK


def _sidecar(scan: Path, result: Path) -> Path:
    return result / SIDECAR


def _dicom_seg(scan: Path, result: Path) -> Path:
    path = result / SEG
    if not path.exists():
        if not scan.is_dir():
            raise DataError("the scan was not a DICOM series", cure="fetch label-map")
        sidecar = json.loads((result / SIDECAR).read_text(encoding="utf-8"))
        labels = {int(value): name for value, name in sidecar["labels"].items()}
        volume = read_label(result / MASK)
        segmentation = Segmentation(volume.array, volume.grid, labels)
        write_dicom_seg(path, segmentation, SourceSeries.read(scan), __version__)
    return path


def _report(scan: Path, result: Path) -> Path:
    path = result / REPORT
    if not path.exists():
        sidecar = json.loads((result / SIDECAR).read_text(encoding="utf-8"))
        labels = {int(value): name for value, name in sidecar["labels"].items()}
        values = {name: entry["ml"] for name, entry in sidecar["volumes"].items()}
        case = ReportCase(
            name="scan",
            scan=read_volume(scan),
            layers={"prediction": read_label(result / MASK).array},
            values=values,
            warnings=tuple(sidecar["warnings"]),
        )
        text = ReportText(
            title="Segmentation",
            subtitle="Volumes in millilitres.",
            order="",
            footer="Made by attunet3d. Research software: a person must look at every label map.",
        )
        write_report(path, text, labels, dict.fromkeys(values, "{:.1f}"), [case])
    return path


KINDS = (
    Kind("label-map", _label_map, "application/gzip", "segmentation.nii.gz"),
    Kind("sidecar", _sidecar, "application/json", "segmentation.json"),
    Kind("dicom-seg", _dicom_seg, "application/dicom", "segmentation.dcm"),
    Kind("report", _report, "text/html; charset=utf-8", "report.html"),
)
