"""Labels that hold organs by name: a folder with a mask file for each, a DICOM SEG, an RTSTRUCT."""

from pathlib import Path

import numpy as np

from attunet3d.core import ENDINGS, DataError, Mask, stem
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.named_masks import OrganMasks
from attunet3d.imaging.volume import read_label

ONE = ({0, 1}, {0, 255})  # the values that a mask may hold


class MaskFolder(OrganMasks):
    """A folder of masks ORGAN.nii.gz with the values 0 and 1 (or 255), all on the scan's grid."""

    def _add(self, part: Path, mask: Mask, grid: Grid) -> None:
        label = read_label(part)
        here = label.grid
        if here.shape != grid.shape:
            rule = f"the mask has shape {here.shape}, its scan {grid.shape}"
            raise DataError(rule, path=part, value=here.shape, cure="give the mask of this scan")
        if not here.matches(grid):
            rule = (
                f"the mask lies up to {here.distance_mm(grid):.4g} mm off the scan (at most 0.001)"
            )
            raise DataError(rule, path=part, cure="resample it, or correct its header")
        values = set(np.flatnonzero(np.bincount(label.array.ravel("K"))).tolist())
        if not any(values <= allowed for allowed in ONE):
            wrong = min(values - ONE[0])
            rule = f"holds the value {wrong}: a mask has 0 and 1 (or 255)"
            raise DataError(rule, path=part, value=wrong, cure="give one organ in each file")
        mask |= label.array != 0


def open_organ_masks(path: Path) -> OrganMasks | None:
    """Open a label that holds organs by name; a mask itself is read when it is asked for.

    Args:
        path: A folder of mask files, a DICOM SEG or RTSTRUCT, or a folder with one such file.

    Returns:
        None for a label map, which holds values.

    Raises:
        DataError: It is a damaged DICOM object.
    """
    if path.is_dir() and not path.name.lower().endswith(ENDINGS):
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        masks = [file for file in files if file.name.lower().endswith(ENDINGS)]
        if masks:
            return MaskFolder(path, [(stem(file.name), file) for file in masks])
        if len(files) != 1:
            return None
        path = files[0]
    if path.name.lower().endswith(ENDINGS) or not path.is_file():
        return None
    from pydicom.misc import is_dicom

    if not is_dicom(path):
        return None
    from attunet3d.imaging.dicom_organs import open_object

    return open_object(path)
