"""The label map and the maps of one image on the scan's grid, slab by slab as the network goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attunet3d.core import LabelMap
from attunet3d.imaging import Grid
from attunet3d.inference.chunks import Chunk, ChunkBuilder
from attunet3d.inference.decision import background, choose
from attunet3d.inference.dice_decision import DiceDecision
from attunet3d.inference.expected_dice import Activation, ArgmaxDice
from attunet3d.inference.map_output import MapsByKind
from attunet3d.inference.record import Stopwatch
from attunet3d.inference.sliding_window import Slab


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How logits become labels and probabilities."""

    decision: Literal["argmax", "dice"]
    """As `inference.decision`."""
    activation: Activation
    """What turns logits into probabilities."""
    probabilities: bool = False
    """Whether the probabilities are handed on."""
    order: tuple[int, ...] = ()
    """The values of overlapping regions as they are written, see `decide`."""


class Labelling:
    """Labels a scan from slabs on the network's grid, and hands its maps on.

    Args:
        network: The network's grid.
        source: The scan's grid.
        values: The label value of each class, background first.
        maps: Takes probabilities, if they are asked for, and attention, if the slabs have it.
        rule: How logits become labels, and probabilities.

    Attributes:
        labels: The label map, complete after `finish`.
    """

    def __init__(
        self, network: Grid, source: Grid, values: Sequence[int], maps: MapsByKind, rule: Rule
    ) -> None:
        self.labels: LabelMap = background(source)
        self._values, self._maps, self._rule = values, maps, rule
        self._chunks = ChunkBuilder(network, source, logits=rule.probabilities)
        self._expected = ArgmaxDice(len(values), rule.activation)
        self._dice: DiceDecision | None = None
        if rule.decision == "dice":
            self._dice = DiceDecision(network, source, values, self.labels, rule.activation)

    def add(self, slab: Slab, watch: Stopwatch) -> None:
        """Take the next slab."""
        if self._dice is not None:
            with watch.stage("decision"):
                self._dice.add(slab)
            if not self._rule.probabilities and slab.attention is None:
                return
        else:
            with watch.stage("doubt"):
                self._expected.add(slab.logits)
        for chunk in watch.items("decision", self._chunks.add(slab)):
            if self._dice is None:
                with watch.stage("decision"):
                    choose(chunk, self._values, self.labels, self._rule.order)
            with watch.stage("maps"):
                self._hand_on(chunk)

    def finish(self, watch: Stopwatch) -> list[float]:
        """Decide what could not be decided before; return the Dice expected of each label."""
        if self._dice is None:
            return self._expected.expected()
        with watch.stage("decision"):
            return self._dice.decide()

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
        sigmoid = self._rule.activation == "sigmoid"
        return logits[1:].sigmoid() if sigmoid else logits.softmax(0)[1:]
