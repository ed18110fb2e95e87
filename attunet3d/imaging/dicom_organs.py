"""Organs in DICOM objects: segments of a SEG, and contours of an RTSTRUCT filled on a scan's grid.

Each frame of a SEG and each contour says where it lies in the patient, so an oblique, flipped or
sheared series is right without regard to the order of its slices. Names of organs are the only text
of such a file that is ever shown.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from attunet3d.core import DataError, Floats, Mask
from attunet3d.imaging import dicom_file
from attunet3d.imaging.dicom_tags import (
    COPY,
    integer,
    items,
    numbers,
    orientation,
    spacing,
    text,
)
from attunet3d.imaging.geometry import LPS_TO_RAS, Grid
from attunet3d.imaging.named_masks import OrganMasks
from attunet3d.imaging.polygons import fill_polygons

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation, since 2024
UNDEFINED_LENGTH = 0xFFFFFFFF
OFF_VOXELS = 0.05  # by which a segment's voxel may miss one of the scan
OFF_SLICES = 0.25  # by which a contour may miss a slice
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
SCAN = "give the scan that it was drawn on"


def open_object(path: Path) -> OrganMasks:
    """The organs of a SEG or RTSTRUCT.

    Raises:
        DataError: The file is damaged, or another object.
    """
    with path.open("rb") as file, dicom_file.refusing_damage(path):
        dataset = dicom_file.parse(file.fileno(), path, header_only=False)
        if _is_cut(dataset):
            raise DataError("is truncated", path=path, cure=COPY)
        kind = text(dataset, "SOPClassUID")
        if kind in READERS and (found := READERS[kind](path, dataset)).names:
            return found
    if kind in READERS:
        raise DataError("names no organ", path=path, cure=COPY)
    rule = f"is a DICOM object of another kind ({UID(kind).name}) than SEG and RTSTRUCT"
    raise DataError(rule, path=path, value=kind, cure="give the object that holds the organs")


def _is_cut(dataset: Dataset) -> bool:
    """Whether the file ends before an element does, of which pydicom keeps what there is."""
    for tag in dataset.keys():  # noqa: SIM118 (the items would be parsed)
        part: Any = dataset.get_item(tag)
        raw = isinstance(part, RawDataElement)
        if raw and len(part.value or b"") < part.length < UNDEFINED_LENGTH:
            return True
    return False


class _DicomOrgans(OrganMasks):
    def mask(self, name: str, grid: Grid) -> Mask:
        with dicom_file.refusing_damage(self.path):
            return super().mask(name, grid)


class Segments(_DicomOrgans):
    """The segments of a SEG: binary, fractional (from one half on) or a label map.

    Args:
        path: The file.
        dataset: Its content.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        segments = items(dataset, "SegmentSequence")
        named = [(str(part.SegmentLabel), integer(part, "SegmentNumber")) for part in segments]
        super().__init__(path, named)
        self._dataset = dataset
        self._shared = items(dataset, "SharedFunctionalGroupsSequence")
        self._frames = items(dataset, "PerFrameFunctionalGroupsSequence")
        frames = integer(dataset, "NumberOfFrames")
        if frames != len(self._frames):
            rule = f"has {frames} frames, and says where {len(self._frames)} of them lie"
            raise DataError(rule, path=path, value=frames, cure=COPY)
        kind = text(dataset, "SegmentationType")
        self._is_label_map = kind == "LABELMAP"
        most = integer(dataset, "MaximumFractionalValue") if kind == "FRACTIONAL" else None
        self._least = 1 if most is None else most / 2

    def _add(self, part: int, mask: Mask, grid: Grid) -> None:
        every = range(len(self._frames))
        wanted = list(every if self._is_label_map else self._frames_of.get(part, ()))
        if not wanted:
            return
        pixels = iter_pixels(self._dataset, indices=wanted)
        for number, frame in zip(wanted, pixels, strict=True):
            inside = frame == part if self._is_label_map else frame >= self._least
            places = self._voxels(inside, [self._frames[number], *self._shared], grid)
            mask[tuple(places.T)] = True

    @cached_property
    def _frames_of(self) -> Mapping[int | None, list[int]]:
        """The frames of each segment, by its number."""
        keyword, frames_of = "SegmentIdentificationSequence", defaultdict(list)
        for number, frame in enumerate(self._frames):
            found = [item for group in (frame, *self._shared) for item in items(group, keyword)]
            if found:
                frames_of[integer(found[0], "ReferencedSegmentNumber")].append(number)
        return frames_of

    def _voxels(self, inside: Mask, groups: list[Dataset], grid: Grid) -> np.ndarray:
        """Indices (N, 3) of the scan's voxels that a frame (rows, columns) covers."""
        dataset, path = self._dataset, self.path
        corner = np.array(numbers(dataset, groups, "ImagePositionPatient", 3, path))
        along, down = np.array(orientation(dataset, groups, path)).reshape(2, 3)
        between_rows, between_columns = spacing(dataset, groups, path)
        rows, columns = np.nonzero(inside)
        lps = (
            corner
            + np.outer(columns * between_columns, along)
            + np.outer(rows * between_rows, down)
        )
        index = grid.to_index(lps @ LPS_TO_RAS)
        nearest = np.rint(index)
        off = float(np.abs(index - nearest).max(initial=0))
        if off > OFF_VOXELS:
            rule = f"its voxels lie up to {off:.2g} voxels off the scan's"
            raise DataError(rule, path=path, value=off, cure=SCAN)
        if (nearest < 0).any() or (nearest >= grid.shape).any():
            raise DataError("reaches beyond the scan", path=path, cure=SCAN)
        return nearest.astype(int)


class Contours(_DicomOrgans):
    """The regions of interest of an RTSTRUCT: closed contours on slices of the scan.

    Contours of one region in one slice are filled together by the even-odd rule.

    Args:
        path: The file.
        dataset: Its content.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        if "ROIContourSequence" not in dataset:
            raise DataError("has no contours", path=path, cure=COPY)
        contours = {
            text(part, "ReferencedROINumber"): items(part, "ContourSequence")
            for part in items(dataset, "ROIContourSequence")
        }
        regions = items(dataset, "StructureSetROISequence")
        named = [(str(part.ROIName), contours.get(text(part, "ROINumber"), [])) for part in regions]
        super().__init__(path, named)

    def _add(self, part: list[Dataset], mask: Mask, grid: Grid) -> None:
        polygons = [grid.to_index(points @ LPS_TO_RAS) for points in self._points(part)]
        if not polygons:
            return
        axis = int(np.argmin([max(np.ptp(p[:, a]) for p in polygons) for a in range(3)]))
        slices: dict[int, list[Floats]] = defaultdict(list)
        for polygon in polygons:
            slices[self._slice(polygon[:, axis], grid.shape[axis])].append(
                np.delete(polygon, axis, 1)
            )
        gap = int(np.diff(sorted(slices)).min(initial=grid.shape[axis]))
        if len(slices) > 1 and gap > 1:
            rule = f"its contours lie {gap} slices of the scan or more apart"
            cure = "add the contours between them, or give the scan that they were drawn on"
            raise DataError(rule, path=self.path, value=gap, cure=cure)
        planes = np.moveaxis(mask, axis, 2)
        for number, found in slices.items():
            planes[:, :, number] |= fill_polygons(found, planes.shape[:2])

    def _points(self, part: list[Dataset]) -> Iterator[Floats]:
        """The corners (N, 3) of each closed contour in LPS millimetres."""
        for contour in part:
            if text(contour, "ContourGeometricType") not in CLOSED:
                continue
            try:
                points = np.array(text(contour, "ContourData").split("\\"), np.float64)
                points = points.reshape(-1, 3)
            except ValueError:
                points = np.full((1, 3), np.nan)
            if not np.isfinite(points).all():
                raise DataError("has a damaged contour", path=self.path, cure=COPY)
            yield points

    def _slice(self, heights: Floats, count: int) -> int:
        """The slice of a contour, from its points' indices along the scan's third axis."""
        number = round(float(heights.mean()))
        off = float(np.abs(heights - number).max())
        if off > OFF_SLICES:
            rule = f"has a contour that lies {off:.2g} slices off the scan's slices"
            raise DataError(rule, path=self.path, value=off, cure=SCAN)
        if not 0 <= number < count:
            raise DataError("has a contour beyond the scan", path=self.path, cure=SCAN)
        return number


READERS: dict[str, type[Segments | Contours]] = {
    SegmentationStorage: Segments,
    LABEL_MAP_STORAGE: Segments,
    RTStructureSetStorage: Contours,
}
