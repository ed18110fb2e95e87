"""Training: steps, validations, the best weights, and a state from which a killed run goes on.

Every step is a function of the state before it and of the step's number (batches are, see
`batches`; the random numbers of dropout are seeded by it). So on a CPU a run that was killed and
resumed ends with weights that are bit-identical to those of a run that was not.
"""

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from attunet3d.core import (
    Config,
    StopRequests,
    TrainingError,
    progress,
    stop_requests,
    whole_file,
    write_line,
)
from attunet3d.models import checkpoint
from attunet3d.training import distributed, epochs
from attunet3d.training.batches import Batch, PatchBatches
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.components import Components
from attunet3d.training.initial_weights import take_weights
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.pictures import validation_pictures
from attunet3d.training.run_log import RunLog, Stopwatch
from attunet3d.training.run_state import Result, RunState, nonfinite_error
from attunet3d.training.step import TrainingStep
from attunet3d.training.torch_state import memory_error_in_one_line, own_torch_state, step_seed
from attunet3d.training.validation import mean, score_network_grid

STATISTICS_BATCHES = 16  # from which an average of weights gets its running statistics
MOST_ROWS, LEAST_STEPS = 1000, 10  # of training loss in metrics.csv; steps between two
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Prepared cases and what their labels mean."""

    training: Sequence[CachedCase]
    validation: Sequence[CachedCase]
    labels: dict[int, str]


class Trainer:
    """One run: what updates the weights, and how far it has come.

    Args:
        data: Prepared cases.
        config: Resolved, see `plan`.
        run_dir: Where the run is written; must exist.
        device: Where to train.
        components: Parts of your own in the place of the package's.
    """

    def __init__(
        self,
        data: TrainingData,
        config: Config,
        run_dir: Path,
        device: torch.device,
        components: Components = Components(),  # noqa: B008 (frozen)
    ) -> None:
        config = epochs.in_steps(config, len(data.training))
        self.data, self.config, self.run_dir, self.device = data, config, run_dir, device
        self.classes, self.components = LabelClasses.of(data.labels, config), components
        self.labels = self.classes.names
        self.batches = PatchBatches(data.training, config, components)
        regions = self.classes.regions
        self.update = TrainingStep(config, len(self.labels), device, components, regions)
        self.state, self.stopwatch = RunState(), Stopwatch()
        self.taken: tuple[int, ...] = ()  # classes whose heads another model gave

    def fit(self, hours: float | None = None) -> Result:
        """Train to the last step, or until early stop, SIGTERM or Ctrl-C (which save first).

        Args:
            hours: Fit `training.steps`, and with it the schedule of the learning rate, to this
                duration. Such a run is not reproducible: the number of steps depends on the
                machine's speed.

        Raises:
            TrainingError: The loss is not finite (`on_nonfinite_loss` "stop").
            DeviceError: The memory ran out.
            SystemExit: SIGTERM or Ctrl-C; the state is saved.
        """
        settings, state = self.config.training, self.state
        first_step, self.stopwatch = state.step, Stopwatch()
        first, last = (n * settings.accumulation for n in (state.step, settings.steps))
        with (
            own_torch_state(self.device),
            memory_error_in_one_line(self.device),
            closing(
                self.batches.iterate(first, self.device, last if hours is None else None)
            ) as stream,
            RunLog(self.run_dir, state.step, self.components.logger) as log,
            stop_requests() as requests,
            progress(settings.steps, "training", "step", state.step) as bar,
        ):
            self._validate_if_due(log, requests)
            while state.step < self.config.training.steps and not self._stopped_early():
                with self.stopwatch.waiting():
                    batches = list(islice(stream, settings.accumulation))
                value = self._train_step(batches)
                if hours is not None:
                    self._fit_steps_to(hours * 3600, state.step - first_step)
                    bar.total = self.config.training.steps
                self._after_step(value, log, requests)
                bar.update(1, state.facts(value, self.update.learning_rate))
                self._leave_if_asked(requests)
        if hours is not None and distributed.is_first():
            self.config.save(self.run_dir / "config.json")
        return Result(
            step=state.step,
            best_dice=state.best_dice,
            best_step=state.best_step,
            skipped_steps=state.skipped_steps,
            seconds=round(self.stopwatch.seconds, 1),
            waiting=round(self.stopwatch.waiting_share, 3),
        )

    def _fit_steps_to(self, seconds: float, done: int) -> None:
        """Set `training.steps` to what the time allows at the speed of the steps `done` so far."""
        so_far = distributed.largest(self.stopwatch.seconds)
        steps = self.state.step + int(max(0.0, seconds - so_far) / so_far * done)
        self.config = self.config.replaced({"training.steps": max(1, steps), "training.epochs": 0})
        self.update.settings = self.config.training

    def _train_step(self, batches: Sequence[Batch]) -> float:
        """One update of the weights; returns the loss."""
        seed, rank = self.config.training.seed, distributed.rank()
        torch.manual_seed(step_seed(seed, self.state.step, rank))  # dropout
        value, updated = self.update.update(batches, self.state.step)
        if not updated:
            names = [name for batch in batches for name in batch.case_ids]
            self._nonfinite(value, distributed.gathered(names))
        self.state.step += 1
        return value

    def _nonfinite(self, value: float, names: Sequence[str]) -> None:
        if self.config.training.on_nonfinite_loss == "skip":
            self.state.skipped_steps += 1
            return
        raise nonfinite_error(value, self.state.step, names, self.run_dir / checkpoint.STATE)

    def _after_step(self, value: float, log: RunLog, requests: StopRequests) -> None:
        settings, state = self.config.training, self.state
        if math.isfinite(value):
            state.loss_sum += value
            state.loss_count += 1
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            state.validation_due = True
            self._validate_if_due(log, requests)
            self.save()
            return
        if state.step % max(LEAST_STEPS, -(-settings.steps // MOST_ROWS)) == 0:
            log.write(self._row(), self.update.criterion.latest)
        if state.step % settings.save_every == 0:
            self.save()

    def _validate_if_due(self, log: RunLog, requests: StopRequests) -> None:
        """Validate; a stop request saves the state, and the resumed run validates first.

        In a run of several processes each leaves as soon as it is asked to, and the others get an
        error of the connection when they wait for it.
        """
        if not self.state.validation_due:
            return
        try:
            with requests.at_once():
                self._validate(log)
        except (SystemExit, RuntimeError):
            if not requests:
                raise
            self._save_and_leave(requests)
        self.state.validation_due = False

    def _validate(self, log: RunLog) -> None:
        """Score the weights, and keep them when they are the best."""
        began, window, state = time.monotonic(), self.config.window, self.state
        assert window is not None  # else there were no patches
        network = self.update.evaluated(self._statistics_images())
        scores = score_network_grid(
            self.data.validation,
            lambda patch: self.update.forward(network, patch),
            window,
            self.device,
            self.classes,
            self.config.training.ignore_index,
        )
        scores = scores if state.step else scores.of(self.taken)  # of another model's labels
        dice, whole = mean(scores.dice), state.step or len(self.taken) == len(self.labels) - 1
        better = whole and (dice is None or state.best_dice is None or dice > state.best_dice)
        if better or (whole and dice == state.best_dice):  # of equals the one trained longer
            self._save_model(network, dice)
            state.best_dice, state.best_step = dice, state.step
        state.validations_since_best = 0 if better else state.validations_since_best + 1
        found = {"dice_network_grid": dice, "iou": mean(scores.iou), "accuracy": scores.accuracy}
        found |= {f"dice_{list(self.labels.values())[i]}": s for i, s in scores.dice.items()}
        found["validation_seconds"] = round(time.monotonic() - began, 2)
        update, cases = self.update, self.data.validation
        pictures = validation_pictures(cases, update, network, window, self.classes)
        log.write(self._row() | found, update.criterion.latest, pictures)
        if state.step and self.config.training.epochs and distributed.is_first():
            write_line(epochs.epoch_line(log.rows, self.config), sys.stdout)

    def _row(self) -> dict[str, Any]:
        """A row of metrics.csv; a new mean of losses begins."""
        state = self.state
        loss = state.loss_sum / state.loss_count if state.loss_count else math.nan
        state.loss_sum, state.loss_count = 0.0, 0
        row = {"step": state.step, "loss": loss, "learning_rate": self.update.learning_rate}
        return row | self.stopwatch.lap()

    def _statistics_images(self) -> Iterator[Tensor]:
        """Images of the run's first batches, the same after a resume and in all processes."""
        for number in range(STATISTICS_BATCHES):
            slots = distributed.share(self.batches.batch_size, 0)
            yield self.batches.batch(number, self.device, slots).image

    def _stopped_early(self) -> bool:
        limit = self.config.training.early_stop
        return bool(limit) and self.state.validations_since_best >= limit

    def save(self) -> None:
        """Write `last.pt`, from which `resume` goes on."""
        if not distributed.is_first():
            return
        state = self.update.state() | asdict(self.state)
        checkpoint.save_state(self.run_dir / checkpoint.STATE, state)

    def start(self, *, resume: bool, init: Path | None = None) -> None:
        """Resume the run, or else take the weights of the model `init`, if there is one."""
        if resume:
            self.resume()
        if init is not None and not self.state.step:
            self.taken = take_weights(self.update, self.labels, init)
            self.state.validation_due = bool(self.taken)

    def resume(self) -> None:
        """Go on from `last.pt`, from the one before where it is torn, or from the start.

        Raises:
            ModelError: Neither can be read.
            TrainingError: The state belongs to another network.
        """
        for folder in (self.run_dir, self.run_dir / "validation"):
            whole_file.sweep(folder)
        names = (checkpoint.STATE, checkpoint.PREVIOUS, "summary.json")  # the last: it was finished
        if not any((self.run_dir / name).exists() for name in names):
            _log.warning("%s: was stopped before its first save; begins at step 0", self.run_dir)
            return
        saved, warnings = checkpoint.load_state(self.run_dir / checkpoint.STATE)
        for warning in warnings:
            _log.warning("%s", warning)
        try:
            self.update.load(saved)
            self.state = RunState(**{field.name: saved[field.name] for field in fields(RunState)})
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
            raise TrainingError(
                "belongs to another network or configuration",
                path=self.run_dir / checkpoint.STATE,
                cure="resume with the config.json of this run folder",
            ) from None

    def _save_model(self, network: nn.Module, dice: float | None) -> None:
        if not distributed.is_first():
            return
        notes = {"step": self.state.step, "dice_network_grid": dice}
        path = self.run_dir / checkpoint.MODEL
        checkpoint.save_model(path, network.state_dict(), self.config, self.labels, notes)

    def _leave_if_asked(self, requests: StopRequests) -> None:
        """Save and leave when any process was asked to stop."""
        requests.number = int(distributed.largest(requests.number or 0)) or None
        if requests:
            self._save_and_leave(requests)

    def _save_and_leave(self, requests: StopRequests) -> NoReturn:
        self.save()
        _log.warning(
            "stopped at step %d; the same command with --resume goes on from here", self.state.step
        )
        requests.leave()
