"""The DICOM series that a label map was made from: its headers, in the order of the label map."""

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid

from attunet3d.core import DataError, Size
from attunet3d.imaging import find_series


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """Headers of a series without its pixels.

    Args:
        datasets: An instance for each slice, or the one multi-frame instance.
        frames: Of a multi-frame instance, the number (from 0) of the frame of each slice.
    """

    datasets: tuple[Dataset, ...]
    frames: tuple[int, ...] | None = None

    @classmethod
    def read(cls, path: Path, series: str | None = None) -> "SourceSeries":
        """Read the headers of the series that `read_volume` reads there.

        Args:
            path: The folder, or the multi-frame file.
            series: Which series, where there are several; as `find_series` has it.

        Raises:
            DataError: There is no series, or there are several and none is chosen.
        """
        stack, _ = find_series(path, series)
        datasets = tuple(map(_header, stack.paths))
        if len(datasets) == len(stack.frames):
            return cls(datasets)
        if len(datasets) > 1:
            rule = "several multi-frame files of one series cannot be referred to"
            raise DataError(rule, path=path, cure="export as NIfTI or .seg.nrrd")
        return cls(datasets, tuple(frame.number for frame in stack.frames))

    @property
    def first(self) -> Dataset:
        """The header that tells what all slices share."""
        return self.datasets[0]

    @property
    def size(self) -> Size:
        """Columns, rows and slices."""
        depth = len(self.frames or self.datasets)
        return int(self.first.Columns), int(self.first.Rows), depth

    def require_size(self, shape: tuple[int, ...], path: Path) -> None:
        """Check that a label map lies on this series.

        Raises:
            DataError: Its size is another one.
        """
        if shape != self.size:
            ours, theirs = ("×".join(map(str, size)) for size in (shape, self.size))
            rule = f"the label map of {ours} voxels is not on the series of {theirs}"
            raise DataError(rule, path=path, value=shape, cure="give the series it was made from")

    def references(self) -> list[Dataset]:
        """The references to each slice's instance and frame, for use in other objects."""
        found = []
        for k in range(self.size[2]):
            instance = self.datasets[0 if self.frames else k]
            reference = Dataset()
            reference.ReferencedSOPClassUID = instance.SOPClassUID
            reference.ReferencedSOPInstanceUID = instance.SOPInstanceUID
            if self.frames is not None:
                reference.ReferencedFrameNumber = self.frames[k] + 1
            found.append(reference)
        return found


def _header(path: Path) -> Dataset:
    """A file's header, with UIDs in the place of those that an anonymiser emptied.

    The instance's are also in the file's meta group. Study and series, without whose UIDs no other
    object can refer to an instance, get ones that follow from the frame of reference.
    """
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(name):
            setattr(dataset, name, dataset.file_meta.get(f"MediaStorage{name}"))
    for name in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(name):
            known = [
                name,
                str(dataset.get("FrameOfReferenceUID")),
                str(dataset.get("SeriesNumber")),
            ]
            setattr(dataset, name, generate_uid(entropy_srcs=known))
    return dataset
