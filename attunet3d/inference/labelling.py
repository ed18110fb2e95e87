"""The label map and the maps of one image on the scan's grid, slab by slab as the network goes.

Maps, probabilities of the labels and coefficients of the gates, are handed on while they are
computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from attunet3d.core import Box, Float32s, InferenceConfig, LabelMap, Regions, Size
from attunet3d.imaging import Grid, Volume
from attunet3d.inference.chunks import Chunk, ChunkBuilder
from attunet3d.inference.decision import background, choose
from attunet3d.inference.dice_decision import DiceDecision
from attunet3d.inference.expected_dice import Activation, ArgmaxDice
from attunet3d.inference.record import Execution, StageTimes
from attunet3d.inference.sliding_window import Slab


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


@dataclass(eq=False)
class ScanRun:
    """One scan, what is wanted of it, and what was done so far."""

    volume: Volume
    kinds: Sequence[str]
    """Of maps: "probabilities", "attention"."""
    open_maps: OpenMaps
    progress: Callable[[float], None]
    expected_dice: Sequence[float] = ()
    execution: Execution = field(default_factory=Execution)
    watch: StageTimes = field(default_factory=StageTimes)


class Labelling:
    """Labels a scan from slabs on the network's grid, and hands its maps on.

    Args:
        run: The scan, and what is wanted of it.
        network: The network's grid.
        values: The label value of each class, background first.
        config: How logits become labels.
        activation: And probabilities.
        regions: The classes that make up each, where they overlap; see `class_regions`.

    Attributes:
        labels: The label map, complete after `finish`.
    """

    def __init__(
        self,
        run: ScanRun,
        network: Grid,
        values: Sequence[int],
        config: InferenceConfig,
        activation: Activation,
        regions: Regions,
    ) -> None:
        source = run.volume.grid
        self.labels: LabelMap = background(source)
        self._run, self._values, self._activation = run, values, activation
        self._order = config.regions_class_order
        self._maps: dict[str, Maps] = {}
        self._chunks = ChunkBuilder(network, source, logits="probabilities" in run.kinds)
        self._expected = ArgmaxDice(len(values), activation, regions)
        self._dice: DiceDecision | None = None
        if config.decision == "dice":
            self._dice = DiceDecision(network, source, values, self.labels, activation)

    def add(self, slab: Slab) -> None:
        """Take the next slab."""
        watch = self._run.watch
        if self._dice is not None:
            with watch.stage("decision"):
                self._dice.add(slab)
            if not self._run.kinds:
                return
        else:
            with watch.stage("doubt"):
                self._expected.add(slab.logits)
        for chunk in watch.items("decision", self._chunks.add(slab)):
            if self._dice is None:
                with watch.stage("decision"):
                    choose(chunk, self._values, self.labels, self._order)
            with watch.stage("maps"):
                self._hand_on(chunk)

    def finish(self) -> None:
        """Decide what could not be decided before; note the Dice expected of each label."""
        if self._dice is None:
            self._run.expected_dice = self._expected.expected()
        else:
            with self._run.watch.stage("decision"):
                self._run.expected_dice = self._dice.decide()

    def _hand_on(self, chunk: Chunk) -> None:
        """Resample the chunk's maps to the scan's grid."""
        if chunk.logits is not None:
            for box, logits in chunk.resampled(chunk.logits):
                self._write("probabilities", box, self._probabilities(logits))
        if chunk.attention is not None:
            for box, values in chunk.resampled(chunk.attention):
                self._write("attention", box, values.clamp(0, 1))

    def _write(self, kind: str, box: Box, values: Tensor) -> None:
        if kind not in self._maps:
            self._maps[kind] = self._run.open_maps(kind, len(values))
        self._maps[kind].write(box, values.cpu().numpy())

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Of the foreground labels (K - 1, i, j, k), from all logits (K, i, j, k)."""
        sigmoid = self._activation == "sigmoid"
        return logits[1:].sigmoid() if sigmoid else logits.softmax(0)[1:]
