"""Where maps go while they are computed: probabilities of the labels, coefficients of the gates."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from attunet3d.core import Box, Float32s, Size


class Maps(Protocol):
    """Takes maps on a scan's grid box by box, such as `imaging.MapWriter`."""

    def write(self, box: Box, values: Float32s) -> None:
        """Take the values (maps, i, j, k) in a box; boxes do not overlap, and the rest is 0."""


OpenMaps = Callable[[str, int], Maps]
"""(kind, number of maps) → where they go; a second call for a kind begins it again."""


class MapArrays:
    """Maps in memory, (I, J, K, maps) in Fortran order."""

    def __init__(self, shape: Size, count: int) -> None:
        self.array: Float32s = np.zeros((*shape, count), np.float32, order="F")

    def write(self, box: Box, values: Float32s) -> None:
        """See `Maps.write`."""
        self.array[box] = np.moveaxis(values, 0, -1)


class MapsByKind:
    """Opens each kind of maps when the first values of it come.

    Args:
        open_maps: Called once for each kind.
    """

    def __init__(self, open_maps: OpenMaps) -> None:
        self._open_maps = open_maps
        self._open: dict[str, Maps] = {}

    def write(self, kind: str, box: Box, values: Tensor) -> None:
        """Take the values (maps, i, j, k) in a box."""
        if kind not in self._open:
            self._open[kind] = self._open_maps(kind, len(values))
        self._open[kind].write(box, values.cpu().numpy())
