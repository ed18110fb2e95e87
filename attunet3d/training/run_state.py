"""How far a run has come, and how it ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attunet3d.core import TrainingError


@dataclass(kw_only=True)
class RunState:
    """How far a run has come; saved with the weights."""

    step: int = 0
    best_dice: float | None = None
    """Best `dice_network_grid`; None without validation cases."""
    best_step: int = 0
    validations_since_best: int = 0
    validation_due: bool = False
    """Whether the run was stopped during the validation of this step."""
    skipped_steps: int = 0
    loss_sum: float = 0.0
    """Sum over the steps since the last row of metrics.csv."""
    loss_count: int = 0

    def facts(self, loss: float, rate: float) -> dict[str, str]:
        """What stands beside the bar after a step of this loss and learning rate."""
        best = self.best_dice
        return {
            "loss": f"{loss:.3f}",
            "rate": f"{rate:.1e}",
            "best Dice": "–" if best is None else f"{best:.3f}",
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    step: int
    best_dice: float | None
    """Best `dice_network_grid`; None without validation cases."""
    best_step: int
    skipped_steps: int
    seconds: float
    """Duration of this call."""
    waiting: float
    """Share of it in which the network waited for data."""


def nonfinite_error(loss: float, step: int, names: Sequence[str], saved: Path) -> TrainingError:
    """The error of a step whose loss or gradient is not finite, with the cases that it saw."""
    what = "loss" if not math.isfinite(loss) else "gradient"
    last = f"; the last good state is {saved}" if saved.exists() else ""
    return TrainingError(
        f"step {step}: the {what} is not finite (loss {loss}; cases {', '.join(names)}){last}",
        value=loss,
        cure="look at these cases, lower training.learning_rate, or set"
        " training.on_nonfinite_loss=skip",
    )
