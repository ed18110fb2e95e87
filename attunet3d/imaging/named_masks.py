"""Masks by the names of organs, from whatever holds them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import Mask
from attunet3d.imaging.geometry import Grid


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
            names.setdefault(folded_name(name), name)
            self._parts.setdefault(folded_name(name), []).append(part)
        self.names = tuple(names.values())

    def __contains__(self, name: str) -> bool:
        """Whether there is a mask of this name."""
        return folded_name(name) in self._parts

    def mask(self, name: str, grid: Grid) -> Mask:
        """The voxels (I, J, K) of a scan's grid that belong to an organ, in Fortran order.

        Raises:
            DataError: The mask does not lie on this grid, or is damaged.
        """
        found = np.zeros(grid.shape, bool, order="F")
        for part in self._parts[folded_name(name)]:
            self._add(part, found, grid)
        return found

    @abstractmethod
    def _add(self, part: Any, mask: Mask, grid: Grid) -> None:
        """Add the voxels of one part to a mask."""


def folded_name(name: str) -> str:
    """The name without what does not tell two organs apart: case, spaces and punctuation.

    Example:
        >>> folded_name("Pancreas_Head")
        'pancreas head'
    """
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
