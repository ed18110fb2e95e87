"""The scan and the label of a case, as the manifest means them."""

from dataclasses import replace

import numpy as np

from attunet3d.core import DataError
from attunet3d.datasets.case import Case
from attunet3d.imaging import Volume, read_label, read_volume


def read_image(case: Case) -> Volume:
    """The scan of a case as training takes it: NaN and infinite values are refused.

    Raises:
        UserError: The file is not a scan, or has such values.
    """
    return read_volume(case.image, nonfinite="refuse")


def read_case_label(case: Case, image: Volume) -> Volume:
    """The label of a case, corrected by `label_flip` where the manifest has one.

    Always read labels through this function; reading the file directly skips `label_flip`.

    Args:
        case: A labelled case.
        image: Its scan. With `label_flip`, the label takes the scan's grid instead of its own.

    Raises:
        DataError: The case has no label, or the flip does not fit the scan.
        UserError: The file is not a label map.
    """
    if case.label is None:
        raise DataError(f"case {case.id}: has no label", cure="name one in the manifest")
    label = read_label(case.label)
    if case.label_flip is None:
        return label
    if label.array.shape != image.array.shape:
        raise DataError(
            f"case {case.id}: {case.label.name} has shape {label.array.shape}, its scan"
            f" {image.array.shape}, and label_flip needs labels of the scan's shape",
            path=case.label,
            cure="correct label_flip in the manifest",
        )
    # A mirrored view would do, but all that follows takes Fortran order for granted.
    axes = tuple("ijk".index(axis) for axis in case.label_flip)
    array = np.asfortranarray(np.flip(label.array, axes))
    return replace(label, array=array, grid=image.grid, geometry=image.geometry)
