"""The DICOM Segmentations that `infer --dicom-seg` writes, each when its scan is done."""

from collections.abc import Mapping
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from attunet3d.cohort import CohortCall, Engine, Events, Relay, case_files, failure_reason
from attunet3d.core import DataError, WriteError
from attunet3d.packaging.label_maps import writer


def with_dicom_seg(engine: Engine, call: CohortCall) -> Engine:
    """The engine that also writes OUT_DIR/CASE.dcm, if the call asks for it.

    Scans that were already done get theirs if it is missing or older than their label map. A scan
    that is not a DICOM series fails.

    Raises:
        DependencyError: highdicom is not installed.
    """
    if not call.options.dicom_seg:
        return engine
    write = writer("dicom-seg")

    class _Writing(Relay):
        def __init__(self, found: Mapping[str, list[Path]], events: Events) -> None:
            super().__init__(events)
            self._found = found

        def done(self, case_id: str) -> None:
            if self._written(case_id):
                self.events.done(case_id)

        def skipped(self, case_id: str) -> None:
            if self._written(case_id):
                self.events.skipped(case_id)

        def _written(self, case_id: str) -> bool:
            files, (scan, *_) = case_files(call.out_dir, case_id), self._found[case_id]
            target = files.dicom_seg
            try:
                if not _is_current(target, files.sidecar):
                    if not scan.is_dir():
                        rule = "is not a DICOM series, so no DICOM Segmentation can refer to it"
                        raise DataError(rule, path=scan, cure="leave --dicom-seg out")
                    write(files, target, scan)
            except Exception as error:
                self.events.failed(case_id, failure_reason(error))
                return False
            return True

    return lambda found, events: engine(found, _Writing(found, events))


def _is_current(target: Path, sidecar: Path) -> bool:
    """Whether the object is there and newer than the sidecar.

    Raises:
        WriteError: Another file has its name.
    """
    if not target.exists():
        return False
    try:
        there = dcmread(target, specific_tags=["SOPClassUID", "Manufacturer"])
        ours = there.SOPClassUID == SegmentationStorage and there.Manufacturer == "attunet3d"
    except (InvalidDicomError, AttributeError):
        ours = False
    if not ours:
        rule = "exists already and is not a DICOM Segmentation of attunet3d"
        raise WriteError(rule, path=target, cure="choose another output folder")
    return target.stat().st_mtime_ns >= sidecar.stat().st_mtime_ns
