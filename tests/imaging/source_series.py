"""A CT series as a scanner writes it, for tests: in any orientation, with a gantry tilt."""

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from attunet3d.core import Floats
from attunet3d.imaging import Grid

SHAPE = (20, 16, 7)  # columns, rows, slices
SPACING = (0.8, 0.9, 2.5)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
DIRECTIONS = {
    "axial": np.eye(3),
    "feet first": np.diag([1.0, 1.0, -1.0]) @ np.diag([-1.0, 1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": np.linalg.qr(np.array([[1.0, 0.2, 0.1], [0.1, 1, 0.3], [-0.2, 0.1, 1]]))[0],
}


def make_series(kind: str) -> tuple[list[Dataset], Grid]:
    """The slices in the order of the grid's third axis, and the grid (RAS) on which they lie.

    Args:
        kind: A key of `DIRECTIONS`, or "tilted" (by 15 degrees).
    """
    direction = DIRECTIONS.get(kind, np.eye(3))
    step = direction[:, 2] * SPACING[2]
    if kind == "tilted":
        step = np.array([0.0, np.sin(np.radians(15)), np.cos(np.radians(15))]) * SPACING[2]
    origin = np.array([-30.0, -120.0, 55.0])
    study, series, frame = (generate_uid() for _ in range(3))
    slices = []
    for k in range(SHAPE[2]):
        slices.append(_slice(k, origin + k * step, direction, (study, series, frame)))
    affine = np.eye(4)
    affine[:3, 0] = LPS_TO_RAS @ direction[:, 0] * SPACING[0]
    affine[:3, 1] = LPS_TO_RAS @ direction[:, 1] * SPACING[1]
    affine[:3, 2], affine[:3, 3] = LPS_TO_RAS @ step, LPS_TO_RAS @ origin
    return slices, Grid(SHAPE, affine)


def _slice(k: int, position: Floats, direction: Floats, uids: tuple[str, str, str]) -> Dataset:
    slice_ = Dataset()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
    slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = uids
    slice_.PatientName, slice_.PatientID = "Doe^Jane", "4711"
    slice_.PatientBirthDate = slice_.PatientSex = slice_.AccessionNumber = slice_.StudyID = ""
    slice_.ReferringPhysicianName = slice_.PositionReferenceIndicator = ""
    slice_.StudyDate, slice_.StudyTime, slice_.Modality = "20200101", "120000", "CT"
    slice_.SeriesNumber, slice_.InstanceNumber = 3, k + 1
    slice_.Columns, slice_.Rows, columns_rows = SHAPE[0], SHAPE[1], direction[:, :2]
    slice_.PixelSpacing = [SPACING[1], SPACING[0]]
    slice_.SliceThickness = SPACING[2]
    slice_.ImagePositionPatient = [f"{x:.8g}" for x in position]
    slice_.ImageOrientationPatient = [f"{x:.8g}" for x in columns_rows.T.ravel()]
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
    slice_.PixelRepresentation = 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
    slice_.PixelData = bytes(2 * SHAPE[0] * SHAPE[1])
    return slice_
