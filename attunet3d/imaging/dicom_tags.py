"""Values of DICOM tags, parsed from their bytes.

pydicom's own conversion quotes odd values in its warnings, and values may name a person.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from attunet3d.core import DataError

COPY = "copy or export the series again"
GROUPS = {  # functional group that holds a tag in an enhanced object
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, or an empty list if the tag is missing."""
    return list(dataset[keyword].value) if keyword in dataset else []


def text(dataset: Dataset, keyword: str) -> str:
    """A tag's text from its bytes, or "" if the tag is missing."""
    value = dataset.get_item(keyword).value if keyword in dataset else None
    if isinstance(value, bytes):
        return value.decode("latin-1").strip("\0 ")
    return "" if value is None else str(value)


def integer(dataset: Dataset, keyword: str) -> int | None:
    """A tag's whole number, or None if there is none."""
    if keyword in ("SeriesNumber", "InstanceNumber", "ImagesInAcquisition", "NumberOfFrames"):
        given = text(dataset, keyword)  # text in the file (IS); the others are binary (US)
        return int(given) if re.fullmatch(r"[+-]?[0-9]{1,12}", given) else None
    value = dataset[keyword].value if keyword in dataset else None
    return value if isinstance(value, int) else None


def number(dataset: Dataset, groups: Sequence[Dataset], keyword: str, path: Path) -> float | None:
    """One number of a frame, or None if it is missing; see `numbers`."""
    found = numbers(dataset, groups, keyword, 1, path, optional=True)
    return found[0] if found else None


def numbers(
    dataset: Dataset,
    groups: Sequence[Dataset],
    keyword: str,
    count: int,
    path: Path,
    *,
    optional: bool = False,
) -> tuple[float, ...]:
    """The `count` numbers of a frame's tag, separated by backslashes; () if it may be missing.

    The functional groups of the frame, then those of all frames, take precedence over the header.

    Raises:
        DataError: The tag is missing, or is not `count` finite numbers.
    """
    found = [item for place in groups for item in items(place, GROUPS[keyword])]
    given = next((given for item in [*found, dataset] if (given := text(item, keyword))), "")
    if optional and not given:
        return ()
    try:
        values = tuple(float(part) for part in given.split("\\"))
    except ValueError:
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        what = "has no" if not given else "has a damaged"
        raise DataError(f"{what} {keyword}: must be {count} numbers", path=path, cure=COPY)
    return values


def orientation(dataset: Dataset, groups: list[Dataset], path: Path) -> tuple[float, ...]:
    """Unit vectors (6 numbers, LPS) along the rows and along the columns of a frame.

    Args:
        dataset: The file's header.
        groups: As `numbers` takes them.
        path: The file, for messages.

    Raises:
        DataError: They are missing, or are not two perpendicular unit vectors.
    """
    found = numbers(dataset, groups, "ImageOrientationPatient", 6, path)
    rows = np.array(found).reshape(2, 3)
    if np.abs(rows @ rows.T - np.eye(2)).max() > 1e-3:
        rule = "has an ImageOrientationPatient that is not two perpendicular unit vectors"
        raise DataError(rule, path=path, value=found, cure=COPY)
    return found


def spacing(dataset: Dataset, groups: list[Dataset], path: Path) -> tuple[float, ...]:
    """Millimetres between the rows and between the columns of a frame; see `orientation`.

    Raises:
        DataError: They are missing or not positive.
    """
    found = numbers(dataset, groups, "PixelSpacing", 2, path)
    if min(found) <= 0:
        rule = f"has PixelSpacing {found}: must be positive"
        raise DataError(rule, path=path, value=found, cure=COPY)
    return found
