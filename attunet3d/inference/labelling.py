"""The label map and the maps of one image on the scan's grid, slab by slab as the network goes."""

from collections.abc import Sequence

from torch import Tensor

from attunet3d.core import LabelMap
from attunet3d.imaging import Grid
from attunet3d.inference.chunks import Chunk, ChunkBuilder
from attunet3d.inference.decision import background, choose
from attunet3d.inference.map_output import MapsByKind
from attunet3d.inference.record import Stopwatch
from attunet3d.inference.sliding_window import Slab


class Labelling:
    """Labels a scan from slabs on the network's grid, and hands its maps on.

    Args:
        network: The network's grid.
        source: The scan's grid.
        values: The label value of each class, background first.
        maps: Takes probabilities, if they are asked for, and attention, if the slabs have it.
        activation: What turns logits into probabilities; None: they are not asked for.

    Attributes:
        labels: The label map, finished when every slab was added.
    """

    def __init__(
        self,
        network: Grid,
        source: Grid,
        values: Sequence[int],
        maps: MapsByKind,
        activation: str | None,
    ) -> None:
        self.labels: LabelMap = background(source)
        self._values, self._maps, self._activation = values, maps, activation
        self._chunks = ChunkBuilder(network, source, logits=activation is not None)

    def add(self, slab: Slab, watch: Stopwatch) -> None:
        """Take the next slab."""
        for chunk in watch.items("decision", self._chunks.add(slab)):
            with watch.stage("decision"):
                choose(chunk, self._values, self.labels)
            with watch.stage("maps"):
                self._hand_on(chunk)

    def _hand_on(self, chunk: Chunk) -> None:
        """Resample the chunk's maps to the scan's grid."""
        if chunk.logits is not None:
            for box, logits in chunk.resampled(chunk.logits):
                self._maps.write("probabilities", box, self._probabilities(logits))
        if chunk.attention is not None:
            for box, values in chunk.resampled(chunk.attention):
                self._maps.write("attention", box, values.clamp(0, 1))

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Of the foreground labels (K - 1, i, j, k), from all logits (K, i, j, k)."""
        return logits[1:].sigmoid() if self._activation == "sigmoid" else logits.softmax(0)[1:]
