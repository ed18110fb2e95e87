"""Label maps as DICOM Segmentation objects, which PACS and viewers show over the source series.

Each frame of the object refers to one slice of the source and takes its plane position and
orientation from it, so that a series with a tilted gantry, an oblique one or one stored in any
order is right without resampling. Patient and study are copied from the source, because DICOM
requires it; nothing of them is written anywhere else.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues
from pydicom import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from attunet3d.core import DataError, LabelMap, Mask, whole_file
from attunet3d.imaging import Segmentation, colour_of, term_of
from attunet3d.packaging.source_series import SourceSeries

SERIES_NUMBER = 900  # above those that scanners give, so that it is listed behind them


def write_dicom_seg(
    path: Path, segmentation: Segmentation, source: SourceSeries, version: str
) -> None:
    """Write a label map as one DICOM Segmentation of its source series.

    Args:
        path: `.dcm`.
        segmentation: Its array is (I, J, K): column, row and slice of the source. Each label but
            0, the background, becomes a segment; segments of regions overlap.
        source: The series it was made from.
        version: Of the software and model, for the algorithm's identification.

    Raises:
        DataError: The label map does not have the source's size, or has no label but background.
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    source.require_size(segmentation.array.shape, path)
    names = {value: name for value, name in sorted(segmentation.labels.items()) if value}
    if not names:
        raise DataError("has no label but the background", path=path, cure="name a label")
    frames = _frames(segmentation, list(names))
    if source.frames is not None:
        frames = frames[np.argsort(source.frames)]  # in the order of the file
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="attunet3d", version=version, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        _describe(number, name, value, algorithm)
        for number, (value, name) in enumerate(names.items(), 1)
    ]
    seg = highdicom.seg.Segmentation(
        source_images=list(source.datasets),
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="attunet3d",
        manufacturer_model_name="attunet3d",
        software_versions=version,
        device_serial_number="1",
        series_description="attunet3d segmentation",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(frames.any()),  # an object has at least one frame
    )
    content = io.BytesIO()
    dcmwrite(content, seg, enforce_file_format=True)
    whole_file.write_bytes(path, content.getvalue())


def _frames(segmentation: Segmentation, values: Sequence[int]) -> LabelMap | Mask:
    """Segment numbers (slice, row, column); where labels overlap, masks with a fourth axis."""
    array = segmentation.array.transpose(2, 1, 0)
    if len(segmentation.layers()) == 1:
        numbers = np.zeros(256, np.uint8)  # DICOM numbers segments from 1 without a gap
        for number, value in enumerate(values, 1):
            numbers[list(segmentation.values_of(value))] = number
        frames: LabelMap = numbers[array]
        return frames
    masks: Mask = np.empty((*array.shape, len(values)), np.bool_)
    for index, value in enumerate(values):
        masks[..., index] = segmentation.mask_of(value).transpose(2, 1, 0)
    return masks


def _describe(
    number: int, name: str, value: int, algorithm: highdicom.AlgorithmIdentificationSequence
) -> highdicom.seg.SegmentDescription:
    term = term_of(name)
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],  # the longest that DICOM's type LO holds
        segmented_property_category=term.category,
        segmented_property_type=term.kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[term.region] if term.region is not None else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*colour_of(value)),
        tracking_uid=highdicom.UID(),
        tracking_id=name[:64],
    )
    if term.side is not None:
        side = highdicom.sr.CodedConcept.from_code(term.side)
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
