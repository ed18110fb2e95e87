"""One update of the weights: forward, loss, backward, clip, step; and all that has a state in it.

What an update does depends on the state before it, the number of the step, and torch's random
numbers (dropout), which `Trainer` seeds by the step.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attunet3d.core import Config, TrainingError, machine
from attunet3d.inference import activation, independent
from attunet3d.models import build_network, initialise_by_name, memory_layout
from attunet3d.training import distributed, loss, optimisation
from attunet3d.training.batch_norm import reestimate_statistics
from attunet3d.training.batches import Batch
from attunet3d.training.checkpointing import checkpoint_blocks
from attunet3d.training.components import Components

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def training_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The precision of forward passes: bfloat16 on GPUs that compute in it, float16 on others.

    Raises:
        TrainingError: bfloat16 is asked for, and the device emulates it.
    """
    precision = config.training.precision
    if precision == "bfloat16" and not machine.computes_in_bfloat16(device):
        raise TrainingError(
            f"training.precision=bfloat16: {device} has no instructions for it and would take many"
            " times as long",
            value=precision,
            cure="choose training.precision=float32, or train on another machine",
        )
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if machine.computes_in_bfloat16(device) else torch.float16


def refuse_wrong_gradients(strides: Sequence[Sequence[int]], config: Config) -> None:
    """Refuse patches for which CPUs compute wrong gradients in bfloat16.

    oneDNN 3.12 (torch 2.13) gives garbage, often NaN, as the gradient of a 3×3×3 kernel when its
    input has exactly 2 voxels along the first axis, whatever the other two.

    Args:
        strides: Of each level against the finest.
        config: With a patch size.

    Raises:
        TrainingError: A level of the network is 2 voxels long in x.
    """
    assert config.training.patch_size is not None
    x = config.training.patch_size[0]
    if 2 in (-(-x // stride[0]) for stride in strides):
        raise TrainingError(
            f"training.precision=bfloat16 with training.patch_size {config.training.patch_size}:"
            " CPUs compute wrong gradients where a level is 2 voxels long in x",
            value=config.training.patch_size,
            cure="choose another patch size, or training.precision=float32",
        )


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with every BatchNorm as a SyncBatchNorm.

    Raises:
        TrainingError: The device is a CPU, for which torch has none.
    """
    if device.type != "cuda":
        raise TrainingError(
            f"training.sync_batch_norm: torch has it for GPUs only, and this is {device}",
            value=str(device),
            cure="leave it out, or set network.norm=instance or network.norm=group",
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


class TrainingStep:
    """A network with its loss, optimiser, moving average and scaler.

    Args:
        config: Resolved, see `plan`.
        classes: Number of classes, background included.
        device: Where to train.
        components: A network or a loss of one's own.
        regions: The label indices of each class, where classes overlap.

    Raises:
        TrainingError: CPUs compute wrong gradients for these patches in bfloat16.
    """

    def __init__(
        self,
        config: Config,
        classes: int,
        device: torch.device,
        components: Components = Components(),  # noqa: B008 (frozen)
        regions: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.settings, self.device = config.training, device
        build = components.network or (lambda ins, outs: build_network(config.network, ins, outs))
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            network = build(1, classes)
            initialise_by_name(network, self.settings.initialisation)
        if self.settings.sync_batch_norm and not distributed.parted():
            network = synchronised(network, device)
        self.network = self._in_layout(network)
        self.frozen = "encoder" if self.settings.encoder_rate == 0 else None
        self.average = optimisation.moving_average(self.network, self.settings.ema_decay)
        if self.settings.checkpoint_activations:
            checkpoint_blocks(self.network)
        self.replica = distributed.replicated(self.network, device)
        self.slow_down(())
        strides: Sequence[Sequence[int]] = getattr(network, "strides", [])
        self.sigmoid = activation(config) == "sigmoid"
        self.criterion = loss.build_loss(self.settings, classes, strides, regions)
        if components.loss is not None:
            targets = loss.build_targets(self.settings, classes, regions, sigmoid=bool(regions))
            self.criterion = loss.DeepSupervision(components.loss, strides, targets)
        self.dtype = training_dtype(config, device)
        if self.dtype == torch.bfloat16 and device.type == "cpu":
            refuse_wrong_gradients(strides, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def slow_down(self, taken: Collection[str]) -> None:
        """Begin the optimiser anew; `taken` names the parameters that another model gave."""
        self.taken = sorted(taken)
        groups = optimisation.parameter_groups(self.network, self.settings, self.taken)
        self.optimiser = optimisation.build_optimiser(groups, self.settings)

    def update(self, batches: Sequence[Batch], number: int) -> tuple[float, bool]:
        """Update the weights, unless the loss or the gradient is not finite.

        Args:
            batches: Their gradients are averaged.
            number: Of the step, which tells the learning rate.

        Returns:
            The mean loss, and whether loss and gradient were finite. A float16 overflow counts as
            finite: the scaler skips that step and lowers its scale.
        """
        self.network.train()
        if self.frozen is not None:
            self.network.get_submodule(self.frozen).eval()  # running statistics stay, too
        optimisation.set_rate(self.optimiser, self.settings, number)
        skips = self.settings.on_nonfinite_loss == "skip"
        buffers = [part.clone() for part in self.network.buffers()] if skips else []
        self.optimiser.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for count, batch in enumerate(batches, start=1):
            with self._autocast(), self._local(count < len(batches)):
                image = memory_layout.copy_in_layout(batch.image, self.layout)
                logits = self.replica(image)  # list of (B, C, X, Y, Z), finest first
                value = self.criterion(logits, batch.label, batch.annotated)
                value = value * self._weight(batch) / len(batches)
            # DistributedDataParallel divides the gradients' sum by the number of processes.
            scaled = self.scaler.scale(value * distributed.world_size())
            scaled.backward()
            losses.append(value.detach())
        total, updated = self._apply_gradient(torch.stack(losses).sum())
        if not updated:
            self.optimiser.zero_grad(set_to_none=True)
            for part, before in zip(self.network.buffers(), buffers, strict=skips):
                part.copy_(before)  # running statistics: one NaN would stay in them for good
        elif self.average is not None:
            optimisation.update_average(self.average, self.network, self.settings.ema_decay)
        return total, updated

    def _apply_gradient(self, loss: Tensor) -> tuple[float, bool]:
        """Clip the gradient and step, unless the loss or the gradient is not finite."""
        self.scaler.unscale_(self.optimiser)
        limit = self.settings.clip_gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        total, length = torch.stack([loss, norm]).tolist()  # the step's only wait for a GPU
        total = distributed.total(total)
        finite = math.isfinite(total) and (self.scaler.is_enabled() or math.isfinite(length))
        if finite:
            self.scaler.step(self.optimiser)  # the scaler itself passes over an overflow
        self.scaler.update()
        return total, finite

    def _weight(self, batch: Batch) -> float:
        """The share of a batch that this process has of it: the loss is a mean over patches."""
        if distributed.world_size() == 1:
            return 1.0
        assert self.settings.batch_size is not None  # else there were no patches
        return len(batch.case_ids) / self.settings.batch_size

    def _local(self, local: bool) -> AbstractContextManager[Any]:
        """Where `local`, leave the gradients of the block's passes in this process for now."""
        if local and isinstance(self.replica, DistributedDataParallel):
            return self.replica.no_sync()
        return nullcontext()

    def _in_layout(self, network: nn.Module) -> nn.Module:
        """The network on the device, its features in a CPU's fastest layout."""
        self.layout = torch.contiguous_format
        if self.device.type == "cpu":
            self.layout = memory_layout.fastest_layout(network)
            memory_layout.keep_gradients_dense(network, self.layout)
        network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        return network

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the latest update; where parts have their own, the largest."""
        return float(self.optimiser.param_groups[0]["lr"])

    def evaluated(self, images: Iterable[Tensor]) -> nn.Module:
        """The network that is validated and kept (the average where there is one), in eval mode.

        Args:
            images: (B, 1, X, Y, Z) training patches, from which an average gets its running
                statistics; they are not drawn where there is no average.
        """
        if self.average is None or not self.average.n_averaged:
            distributed.share_buffers(self.network)
            return self.network.eval()
        network = self.average.module
        frozen = None if self.frozen is None else network.get_submodule(self.frozen)
        reestimate_statistics(network, images, lambda image: self.forward(network, image), frozen)
        return network

    @torch.no_grad()
    def forward(self, network: Callable[[Tensor], Tensor], patch: Tensor) -> Tensor:
        """Logits (B, C, X, Y, Z) float32 of `network`, at the precision of training.

        The background's is 0 where each class has a sigmoid of its own, as in inference.
        """

        def compute(x: Tensor) -> Tensor:
            with self._autocast():
                logits: Tensor = network(x)  # (B, C, X, Y, Z)
            return logits.float()

        return (independent(compute) if self.sigmoid else compute)(patch)

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "taken": self.taken,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; what does not fit raises an error of torch or Python."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.slow_down(state.get("taken", ()))
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
