"""What was done with a scan, and how long it took: the record that its sidecar holds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from attunet3d.core import Float32s
from attunet3d.imaging import Segmentation
from attunet3d.inference.agreement import Agreement

Item = TypeVar("Item")


@dataclass
class Execution:
    """How the network was applied to one image; filled in as it goes."""

    mode: Literal["window", "whole"] = "window"
    """Overlapping windows, or everything in one pass."""
    precision: str = "float32"
    """In which the network computed."""
    agreement: Agreement | None = None
    """Between the members of an ensemble, or the mirrorings of one network."""
    fallbacks: list[str] = field(default_factory=list)
    """Why it was done in another way than the settings ask for."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The provenance of a label map; plain values for JSON, none of them from the scan's header.

    Mode, precision and fallbacks are those of `Execution`.
    """

    model: str
    """Checksum of the model, or of all models of an ensemble."""
    members: int
    settings: dict[str, Any]
    """Everything but the model on which the label map depends."""
    activation: str
    """What turns logits into probabilities: softmax, or a sigmoid per label."""
    mode: str
    precision: str
    memory_budget_gb: float
    """The class of machines that decided on the mode, in units of 10⁹ bytes."""
    device: str
    fallbacks: list[str]
    warnings: list[str]
    """What is odd about the scan."""
    seconds: dict[str, float]
    """By stage."""
    expected_dice: dict[str, float] = field(default_factory=dict)
    """Dice coefficient that the probabilities promise each label."""
    member_dice: dict[str, float | None] = field(default_factory=dict)
    """Dice coefficient between the members for each label, if there are several."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result for one scan, on the scan's grid."""

    segmentation: Segmentation
    record: Record
    probabilities: Float32s | None = None
    """(I, J, K, classes - 1) of the foreground labels in order, when asked for."""
    attention: Float32s | None = None
    """(I, J, K, maps) coefficients in [0, 1], finest level first, when asked for."""


class StageTimes:
    """Seconds by stage.

    Example:
        >>> watch = StageTimes()
        >>> with watch.stage("sleep"):
        ...     pass
        >>> list(watch.seconds)
        ['sleep']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the block takes to a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def items(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        """Hand `items` on; what it takes to make them is added to a stage."""
        while True:
            with self.stage(name):
                found = [item] if (item := next(items, None)) is not None else []
            if not found:
                return
            yield found[0]
