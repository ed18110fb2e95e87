"""How far a run has come, and how it ended."""

from dataclasses import dataclass


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
    """Of the steps since the last row of metrics.csv."""
    loss_count: int = 0


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
