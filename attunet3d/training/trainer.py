"""Training: steps, validations, the best weights, and a state from which a killed run goes on.

Every step is a function of the state before it and of the step's number (batches are, see
`dataset`; the random numbers of dropout are seeded by it), so on a CPU a run that was killed and
resumed ends with the weights, to the last bit, of one that was not.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from attunet3d.core import Config, StopRequests, TrainingError, progress, stop_requests, whole_file
from attunet3d.models import AttentionUNet3D, checkpoint
from attunet3d.training.batches import Batch, PatchBatches
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.run_log import RunLog
from attunet3d.training.step import TrainingStep
from attunet3d.training.validation import dice_network_grid

STATISTICS_BATCHES = 16  # from which an average of weights gets its running statistics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Prepared cases and what their labels mean."""

    training: Sequence[CachedCase]
    validation: Sequence[CachedCase]
    labels: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    step: int
    best_dice: float | None
    """Best `dice_network_grid`; None without validation cases."""
    best_step: int
    skipped_steps: int
    seconds: float
    """Of this call."""


class Trainer:
    """One run: what updates the weights, and how far it has come.

    Args:
        data: Prepared cases.
        config: Resolved, see `plan`.
        run_dir: Where the run is written; must exist.
        device: Where to train.
    """

    def __init__(
        self, data: TrainingData, config: Config, run_dir: Path, device: torch.device
    ) -> None:
        self.data, self.config, self.run_dir, self.device = data, config, run_dir, device
        names = [value for value in data.labels if value != config.training.ignore_index]
        self.labels = {value: data.labels[value] for value in sorted(names)}
        self.batches = PatchBatches(data.training, config)
        self.update = TrainingStep(config, len(self.labels), device)
        self.step = self.best_step = self.skipped = self.since_best = 0
        self.best_dice: float | None = None
        self.losses = (0.0, 0)  # their sum and number since the last validation

    def fit(self) -> Result:
        """Train to the last step, or until early stop, SIGTERM or Ctrl-C (which save first).

        Raises:
            TrainingError: The loss is not finite (`on_nonfinite_loss` "stop").
            SystemExit: SIGTERM or Ctrl-C; the state is saved.
        """
        settings, began = self.config.training, time.monotonic()
        first = self.step * settings.accumulation
        stream = self.batches.iterate(first, self.device, settings.steps * settings.accumulation)
        with (
            RunLog(self.run_dir, self.step) as log,
            stop_requests() as requests,
            progress(settings.steps, "training", "step", self.step) as bar,
        ):
            try:
                if self._validates_now() and self.losses[1]:  # it was stopped while it validated
                    self._validate(log, requests)
                while self.step < settings.steps and not self._stopped_early():
                    value = self._train_step(list(islice(stream, settings.accumulation)))
                    self._after_step(value, log, requests)
                    bar.update(1, self._progress(value))
                    if requests:
                        self._save_and_leave(requests)
            finally:
                stream.close()
        return Result(
            step=self.step,
            best_dice=self.best_dice,
            best_step=self.best_step,
            skipped_steps=self.skipped,
            seconds=round(time.monotonic() - began, 1),
        )

    def _train_step(self, batches: Sequence[Batch]) -> float:
        """One update of the weights; returns the loss."""
        value, updated = self.update(batches, self.step)
        if not updated:
            self._nonfinite(value, tuple(name for batch in batches for name in batch.case_ids))
        self.step += 1
        return value

    def _nonfinite(self, value: float, names: tuple[str, ...]) -> None:
        if self.config.training.on_nonfinite_loss == "skip":
            self.skipped += 1
            return
        what, state = "loss" if not math.isfinite(value) else "gradient", self.run_dir / "last.pt"
        last = f" the last good state is {state};" if state.exists() else ""
        raise TrainingError(
            f"step {self.step}: the {what} is not finite (loss {value}; cases {', '.join(names)});"
            f"{last} look at these cases, lower training.learning_rate, or set"
            " training.on_nonfinite_loss=skip"
        )

    def _after_step(self, value: float, log: RunLog, requests: StopRequests) -> None:
        settings = self.config.training
        if math.isfinite(value):
            self.losses = (self.losses[0] + value, self.losses[1] + 1)
        if self._validates_now():
            self._validate(log, requests)
            self.save()
        elif self.step % settings.save_every == 0:
            self.save()

    def _validates_now(self) -> bool:
        settings = self.config.training
        return self.step > 0 and (
            self.step % settings.validate_every == 0 or self.step == settings.steps
        )

    def _validate(self, log: RunLog, requests: StopRequests) -> None:
        """Score the weights, keep them when they are the best, and start a new mean of losses.

        A stop request ends it at once; `fit` validates these weights after `resume`.
        """
        began, window = time.monotonic(), self.config.window
        assert window is not None  # else there were no patches
        try:
            with requests.at_once():
                network = self.update.evaluated(self._statistics_images())
                scores = dice_network_grid(
                    self.data.validation,
                    lambda patch: self.update.forward(network, patch),
                    window,
                    self.device,
                    self.config.training.ignore_index,
                )
        except SystemExit:
            self._save_and_leave(requests)
        dice = sum(scores.values()) / len(scores) if scores else None
        names = list(self.labels.values())
        mean_loss = self.losses[0] / self.losses[1] if self.losses[1] else math.nan
        row: dict[str, Any] = {"step": self.step, "loss": mean_loss}
        row |= {"learning_rate": self.update.learning_rate, "dice_network_grid": dice}
        row |= {f"dice_{names[index]}": score for index, score in scores.items()}
        log.write(row | {"seconds": round(time.monotonic() - began, 2)})
        self.losses = (0.0, 0)
        if dice is None or self.best_dice is None or dice > self.best_dice:
            self.best_dice, self.best_step, self.since_best = dice, self.step, 0
            self._save_model(network)
        else:
            self.since_best += 1

    def _statistics_images(self) -> Iterator[Tensor]:
        """The images of the run's first batches, whatever the step: the same after a resume."""
        for number in range(STATISTICS_BATCHES):
            yield self.batches.batch(number, self.device).image

    def _stopped_early(self) -> bool:
        limit = self.config.training.early_stop
        return bool(limit) and self.since_best >= limit

    def _progress(self, value: float) -> dict[str, str]:
        dice = "–" if self.best_dice is None else f"{self.best_dice:.3f}"
        return {
            "loss": f"{value:.3f}",
            "rate": f"{self.update.learning_rate:.1e}",
            "best Dice": dice,
        }

    def save(self) -> None:
        """Write `last.pt`, from which `resume` goes on."""
        checkpoint.save_state(self.run_dir / "last.pt", self._state())

    def resume(self) -> list[str]:
        """Go on from `last.pt`, from the one before where it is torn, or from the start.

        Returns:
            Warnings.

        Raises:
            ModelError: Neither can be read.
        """
        for folder in (self.run_dir, self.run_dir / "validation"):
            whole_file.sweep(folder)
        names = (checkpoint.STATE, checkpoint.PREVIOUS, "summary.json")  # the last: it was finished
        if not any((self.run_dir / name).exists() for name in names):
            return [f"{self.run_dir}: was stopped before its first save; it begins at step 0"]
        state, warnings = checkpoint.load_state(self.run_dir / "last.pt")
        try:
            self._load(state)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
            raise TrainingError(
                f"{self.run_dir / 'last.pt'}: belongs to another network or configuration; resume"
                " with the config.json of this run folder"
            ) from None
        return warnings

    def _state(self) -> dict[str, Any]:
        return self.update.state() | {
            "step": self.step,
            "best_dice": self.best_dice,
            "best_step": self.best_step,
            "since_best": self.since_best,
            "skipped": self.skipped,
            "losses": list(self.losses),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.update.load(state)
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self.best_dice, self.best_step = state["best_dice"], int(state["best_step"])
        self.since_best = int(state["since_best"])
        self.losses = (float(state["losses"][0]), int(state["losses"][1]))

    def _save_model(self, network: AttentionUNet3D) -> None:
        notes = {"step": self.step, "dice_network_grid": self.best_dice}
        path = self.run_dir / "model.safetensors"
        checkpoint.save_model(path, network.state_dict(), self.config, self.labels, notes)

    def _save_and_leave(self, requests: StopRequests) -> NoReturn:
        self.save()
        _log.warning(
            "stopped at step %d; the same command with --resume goes on from here", self.step
        )
        requests.leave()
