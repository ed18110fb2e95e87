"""Label maps as DICOM RT Structure Sets: closed planar contours on the slices of the source series.

Patient and study are copied from the source, because DICOM requires it; nothing of them is written
anywhere else.
"""

import datetime
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom import Sequence as Items
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from attunet3d.core import whole_file
from attunet3d.imaging import Segmentation, colour_of
from attunet3d.packaging.contours import outlines
from attunet3d.packaging.source_series import SourceSeries

COPIED = (  # of the source: type 1 or 2 in the modules of patient, study and frame of reference
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)
SERIES_NUMBER = 901  # behind those of scanners and of our segmentation objects
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: what readers expect here


def write_rtstruct(
    path: Path, segmentation: Segmentation, source: SourceSeries, version: str
) -> None:
    """Write a label map as one RT Structure Set of its source series.

    Args:
        path: `.dcm`.
        segmentation: Its array is (I, J, K): column, row and slice of the source. Each label but
            0, the background, becomes a structure.
        source: The series it was made from.
        version: Of the software and model.

    Raises:
        DataError: The label map does not have the size of the source.
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    source.require_size(segmentation.array.shape, path)
    structures = {value: name for value, name in sorted(segmentation.labels.items()) if value}
    file = _header(source.first, version)
    slices = source.references()
    file.ReferencedFrameOfReferenceSequence = _source(source.first, slices)
    file.StructureSetROISequence, file.ROIContourSequence = Items(), Items()
    file.RTROIObservationsSequence = Items()
    for number, (value, name) in enumerate(structures.items(), 1):
        region, observation, contours = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name[:64]
        region.ReferencedFrameOfReferenceUID = source.first.FrameOfReferenceUID
        region.ROIGenerationAlgorithm = "AUTOMATIC"
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        contours.ReferencedROINumber = number
        contours.ROIDisplayColor = list(colour_of(value))
        polygons = list(_contours(segmentation, value, slices))
        if polygons:  # DICOM has the sequence left out where it would be empty
            contours.ContourSequence = Items(polygons)
        file.StructureSetROISequence.append(region)
        file.RTROIObservationsSequence.append(observation)
        file.ROIContourSequence.append(contours)
    content = io.BytesIO()
    file.save_as(content, enforce_file_format=True)
    whole_file.write_bytes(path, content.getvalue())


def _header(source: Dataset, version: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        RTStructureSetStorage,
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for name in COPIED:
        setattr(file, name, source.get(name, ""))
    if "SpecificCharacterSet" in source:
        file.SpecificCharacterSet = source.SpecificCharacterSet
    now = datetime.datetime.now()
    file.SOPClassUID, file.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    file.SeriesNumber, file.SeriesDescription = SERIES_NUMBER, "attunet3d structures"
    file.InstanceNumber = 1
    file.StructureSetLabel, file.OperatorsName = "attunet3d", ""
    file.StructureSetDate, file.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    file.InstanceCreationDate, file.InstanceCreationTime = (
        file.StructureSetDate,
        file.StructureSetTime,
    )
    file.Manufacturer = file.ManufacturerModelName = "attunet3d"
    file.SoftwareVersions = version
    file.ApprovalStatus = "UNAPPROVED"
    return file


def _source(first: Dataset, slices: Sequence[Dataset]) -> Items:
    """The frame of reference, the study and the series that the contours lie in."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = Items(slices)
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Items([study])
    return Items([frame])


def _contours(
    segmentation: Segmentation, value: int, slices: Sequence[Dataset]
) -> Iterator[Dataset]:
    mask = segmentation.mask_of(value)
    for k in map(int, np.flatnonzero(mask.any((0, 1)))):
        for polygon in outlines(mask[:, :, k]):
            points = segmentation.grid.to_world(
                np.column_stack([polygon, np.full(len(polygon), k)])
            )
            points[:, :2] *= -1  # RAS to LPS
            contour = Dataset()
            contour.ContourImageSequence = Items([slices[k]])
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{number:.3f}" for number in points.ravel()]
            yield contour
