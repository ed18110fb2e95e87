"""Training: steps, validations, the best weights, and a state from which a killed run goes on.

Every step is a function of the state before it and of the step's number (batches are, see
`dataset`; the random numbers of dropout are seeded by it), so on a CPU a run that was killed and
resumed ends with the weights, to the last bit, of one that was not.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from attunet3d import atomic, checkpoint, loss, memory_layout, optimisation, runtime
from attunet3d.cached_case import CachedCase
from attunet3d.config import Config
from attunet3d.dataset import Batch, PatchBatches
from attunet3d.errors import UserError
from attunet3d.network import AttentionUNet3D
from attunet3d.run_log import RunLog
from attunet3d.validation import dice_network_grid

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingError(UserError):
    """A run cannot go on as it is."""


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


def training_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The precision of forward passes: bfloat16 on GPUs that compute in it, float16 on others."""
    precision = config.training.precision
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def refuse_wrong_gradients(network: AttentionUNet3D, config: Config) -> None:
    """Refuse patches for which CPUs compute wrong gradients in bfloat16.

    oneDNN 3.12 (torch 2.13) gives garbage, often NaN, as the gradient of a 3×3×3 kernel when its
    input has exactly 2 voxels along the first axis, whatever the other two.

    Raises:
        TrainingError: A level of the network is 2 voxels long in x.
    """
    assert config.training.patch_size is not None
    x = config.training.patch_size[0]
    if 2 in (-(-x // stride[0]) for stride in network.strides):
        raise TrainingError(
            f"training.precision=bfloat16 with training.patch_size {config.training.patch_size}:"
            " CPUs compute wrong gradients where a level is 2 voxels long in x; choose another"
            " patch size, or training.precision=float32"
        )


class Trainer:
    """One run: the network, its optimiser, and how far it has come.

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
        runtime.seed_everything(config.training.seed)
        names = [value for value in data.labels if value != config.training.ignore_index]
        self.labels = {value: data.labels[value] for value in sorted(names)}
        network = AttentionUNet3D.from_config(config.network, 1, len(self.labels))
        self.network = self._laid_out(network)
        self.average = optimisation.moving_average(self.network, config.training.ema_decay)
        self.optimiser = optimisation.build_optimiser(self.network.parameters(), config.training)
        self.schedule = optimisation.build_schedule(self.optimiser, config.training)
        self.criterion = loss.build_loss(config.training, len(self.labels))
        self.dtype = training_dtype(config, device)
        if self.dtype == torch.bfloat16 and device.type == "cpu":
            refuse_wrong_gradients(self.network, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step = self.best_step = self.skipped = self.since_best = 0
        self.best_dice: float | None = None
        self.losses = (0.0, 0)  # their sum and number since the last validation

    # ------------------------------------------------------------------ the run

    def fit(self) -> Result:
        """Train to the last step, or until early stop, SIGTERM or Ctrl-C (which save first).

        Raises:
            TrainingError: The loss is not finite (`on_nonfinite_loss` "stop").
            SystemExit: SIGTERM or Ctrl-C; the state is saved.
        """
        settings, began = self.config.training, time.monotonic()
        batches = PatchBatches(self.data.training, self.config)
        first = self.step * settings.accumulation
        stream = batches.iterate(first, self.device, settings.steps * settings.accumulation)
        total = settings.steps
        with (
            RunLog(self.run_dir, self.step) as log,
            _stop_requests() as requests,
            tqdm(total=total, initial=self.step, desc="training", unit="step", disable=None) as bar,
        ):
            try:
                while self.step < settings.steps and not self._stopped_early():
                    value = self._train_step(self._fetch(stream, requests))
                    self._after_step(value, log)
                    bar.update()
                    bar.set_postfix(self._progress(value), refresh=False)
                    if requests:
                        self._save_and_leave(requests[0])
            finally:
                stream.close()
        return Result(
            step=self.step,
            best_dice=self.best_dice,
            best_step=self.best_step,
            skipped_steps=self.skipped,
            seconds=round(time.monotonic() - began, 1),
        )

    def _fetch(self, stream: Iterator[Batch], requests: list[int]) -> list[Batch]:
        """What one step sees."""
        try:
            return [next(stream) for _ in range(self.config.training.accumulation)]
        except (RuntimeError, OSError, EOFError):
            if requests:  # sent to the workers as well, and they are gone
                self._save_and_leave(requests[0])
            raise

    def _train_step(self, batches: Sequence[Batch]) -> float:
        """One update of the weights; returns the loss."""
        settings = self.config.training
        torch.manual_seed(hash((settings.seed, self.step)) % 2**63)  # dropout
        self.network.train()
        skips = settings.on_nonfinite_loss == "skip"
        buffers = [part.clone() for part in self.network.buffers()] if skips else []
        self.optimiser.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for batch in batches:
            with self._autocast():
                image = memory_layout.laid_out(batch.image, self.layout)
                logits = self.network(image)  # list of (B, C, X, Y, Z), finest first
            value: Tensor = self.criterion(logits, batch.label) / len(batches)
            self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            losses.append(value.detach())
        total, updated = self._update(torch.stack(losses).sum())
        names = tuple(name for batch in batches for name in batch.case_ids)
        if updated:
            if self.average is not None:
                self.average.update_parameters(self.network)
        else:
            self._nonfinite(total, names)
            for part, before in zip(self.network.buffers(), buffers, strict=True):
                part.copy_(before)  # running statistics: one NaN would stay in them for good
        self.schedule.step()
        self.step += 1
        return total

    def _update(self, loss: Tensor) -> tuple[float, bool]:
        """Clip the gradient and step, unless the loss or the gradient is not finite.

        Returns:
            The loss, and whether the weights were updated.
        """
        self.scaler.unscale_(self.optimiser)
        limit = self.config.training.clip_gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        total, length = torch.stack([loss, norm]).tolist()  # the step's only wait for a GPU
        finite = math.isfinite(total) and (self.scaler.is_enabled() or math.isfinite(length))
        if finite:
            self.scaler.step(self.optimiser)  # the scaler itself passes over an overflow
        self.scaler.update()
        return total, finite

    def _nonfinite(self, value: float, names: tuple[str, ...]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.config.training.on_nonfinite_loss == "skip":
            self.skipped += 1
            return
        what = "loss" if not math.isfinite(value) else "gradient"
        raise TrainingError(
            f"step {self.step}: the {what} is not finite (loss {value}; cases {', '.join(names)});"
            f" the last good state is {self.run_dir / 'last.pt'}; look at these cases, lower"
            " training.learning_rate, or set training.on_nonfinite_loss=skip"
        )

    def _after_step(self, value: float, log: RunLog) -> None:
        settings = self.config.training
        if math.isfinite(value):
            self.losses = (self.losses[0] + value, self.losses[1] + 1)
        at_end = self.step == settings.steps
        if self.step % settings.validate_every == 0 or at_end:
            self._validate(log)
            self.save()
        elif self.step % settings.save_every == 0:
            self.save()

    def _validate(self, log: RunLog) -> None:
        """Score the weights, keep them when they are the best, and start a new mean of losses."""
        began = time.monotonic()
        network = self.evaluated()
        scores = dice_network_grid(
            self.data.validation,
            lambda patch: self.forward(network, patch),
            self.config.inference.window or self.config.training.patch_size or (96, 96, 96),
            self.device,
            self.config.training.ignore_index,
        )
        dice = sum(scores.values()) / len(scores) if scores else None
        names = list(self.labels.values())
        mean_loss = self.losses[0] / self.losses[1] if self.losses[1] else math.nan
        row: dict[str, Any] = {"step": self.step, "loss": mean_loss}
        row |= {"learning_rate": self.optimiser.param_groups[0]["lr"], "dice_network_grid": dice}
        row |= {f"dice_{names[index]}": score for index, score in scores.items()}
        log.write(row | {"seconds": round(time.monotonic() - began, 2)})
        self.losses = (0.0, 0)
        if dice is None or self.best_dice is None or dice > self.best_dice:
            self.best_dice, self.best_step, self.since_best = dice, self.step, 0
            self._save_model(network)
        else:
            self.since_best += 1

    # ------------------------------------------------------------------ parts

    def _laid_out(self, network: AttentionUNet3D) -> AttentionUNet3D:
        """The network on the device, its features in a CPU's fastest layout."""
        self.layout = torch.contiguous_format
        if self.device.type == "cpu":
            self.layout = memory_layout.fastest(network)
            memory_layout.keep_gradients_dense(network, self.layout)
        network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        return network

    def evaluated(self) -> AttentionUNet3D:
        """The network that is validated and kept (the average where there is one), in eval mode."""
        if self.average is None:
            return self.network.eval()
        network: AttentionUNet3D = self.average.module  # type: ignore[assignment]
        return network.eval()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.inference_mode()
    def forward(self, network: AttentionUNet3D, patch: Tensor) -> Tensor:
        """Logits (B, C, X, Y, Z) float32 of `network`, at the precision of training."""
        with self._autocast():
            logits: Tensor = network(patch)  # (B, C, X, Y, Z)
        return logits.float()

    def _stopped_early(self) -> bool:
        limit = self.config.training.early_stop
        return bool(limit) and self.since_best >= limit

    def _progress(self, value: float) -> dict[str, str]:
        rate = self.optimiser.param_groups[0]["lr"]
        dice = "–" if self.best_dice is None else f"{self.best_dice:.3f}"
        return {"loss": f"{value:.3f}", "rate": f"{rate:.1e}", "best Dice": dice}

    # ------------------------------------------------------------------ states

    def save(self) -> None:
        """Write `last.pt`, from which `resume` goes on."""
        checkpoint.save_state(self.run_dir / "last.pt", self._state())

    def resume(self) -> list[str]:
        """Go on from `last.pt`, from the one before where it is torn, or from the start.

        Returns:
            Warnings.

        Raises:
            CheckpointError: Neither can be read.
        """
        for folder in (self.run_dir, self.run_dir / "validation"):
            atomic.sweep(folder)
        names = (checkpoint.STATE, checkpoint.PREVIOUS, "summary.json")  # the last: it was finished
        if not any((self.run_dir / name).exists() for name in names):
            return [f"{self.run_dir}: was stopped before its first save; it begins at step 0"]
        state, warnings = checkpoint.load_state(self.run_dir / "last.pt")
        try:
            self._load(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
            raise TrainingError(
                f"{self.run_dir / 'last.pt'}: belongs to another network or configuration; resume"
                " with the config.json of this run folder"
            ) from None
        return warnings

    def _state(self) -> dict[str, Any]:
        average = None if self.average is None else self.average.state_dict()
        return {
            "network": self.network.state_dict(),
            "average": average,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best_dice": self.best_dice,
            "best_step": self.best_step,
            "since_best": self.since_best,
            "skipped": self.skipped,
            "losses": list(self.losses),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self.best_dice, self.best_step = state["best_dice"], int(state["best_step"])
        self.since_best = int(state["since_best"])
        self.losses = (float(state["losses"][0]), int(state["losses"][1]))

    def _save_model(self, network: AttentionUNet3D) -> None:
        notes = {"step": self.step, "dice_network_grid": self.best_dice}
        path = self.run_dir / "model.safetensors"
        checkpoint.save_model(path, network.state_dict(), self.config, self.labels, notes)

    def _save_and_leave(self, number: int) -> None:
        self.save()
        tqdm.write(
            f"stopped at step {self.step}; the same command with --resume goes on from here",
            file=sys.stderr,
        )
        raise SystemExit(128 + number)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals SIGTERM and SIGINT instead of their ending the process."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
