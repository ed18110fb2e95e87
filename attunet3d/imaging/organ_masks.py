"""Labels that hold organs by name: a folder with a mask file for each, a DICOM SEG, an RTSTRUCT."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import ENDINGS, DataError, Mask, stem
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import read_label

ONE = ({0, 1}, {0, 255})  # the values that a mask may hold


class OrganMasks(ABC):
    """Masks by the names of organs.

    Args:
        path: Of the file or folder.
        parts: What there is, with its name. Names that differ in case, spaces or punctuation only
            are one; its mask then consists of all its parts.

    Attributes:
        path: As given.
        names: Each once, as first spelled.
    """

    def __init__(self, path: Path, parts: Iterable[tuple[str, Any]]) -> None:
        self.path = path
        self._parts: dict[str, list[Any]] = {}
        names: dict[str, str] = {}
        for name, part in parts:
            names.setdefault(_folded(name), name)
            self._parts.setdefault(_folded(name), []).append(part)
        self.names = tuple(names.values())

    def __contains__(self, name: str) -> bool:
        """Whether there is a mask of this name."""
        return _folded(name) in self._parts

    def mask(self, name: str, grid: Grid) -> Mask:
        """The voxels (I, J, K) of a scan's grid that belong to an organ, in Fortran order.

        Raises:
            DataError: The mask does not lie on this grid, or is damaged.
        """
        found = np.zeros(grid.shape, bool, order="F")
        for part in self._parts[_folded(name)]:
            self._add(part, found, grid)
        return found

    @abstractmethod
    def _add(self, part: Any, mask: Mask, grid: Grid) -> None:
        """Add the voxels of one part to a mask."""


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


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
