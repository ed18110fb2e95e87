"""Optimisers, learning-rate schedules and the moving average of weights, by name, from torch."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from attunet3d.core import TrainingConfig

POWER = 0.9  # of the polynomial decay (Isensee et al. 2021)
ONE_CYCLE_RISE = 0.25  # share of the steps in which the rate rises


def build_optimiser(
    parameters: Iterable[nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam, or AdamW (decoupled weight decay)."""
    rate, decay, parameters = config.learning_rate, config.weight_decay, list(parameters)
    fused = all(part.is_cuda for part in parameters) or None  # one kernel instead of hundreds
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=fused)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused)
    momentum, nesterov = config.momentum, config.momentum > 0
    return torch.optim.SGD(
        parameters, rate, momentum, weight_decay=decay, nesterov=nesterov, fused=fused
    )


def build_schedule(
    optimiser: torch.optim.Optimizer, config: TrainingConfig
) -> lr_scheduler.LRScheduler:
    """The learning rate over the steps; `step()` it once after each update.

    "polynomial" and "cosine" fall to 0 at the last step, "step" falls by `step_gamma` every
    `step_size` steps (StepLR), "one_cycle" rises and falls (OneCycleLR); the others start with
    `warmup_steps` of linear rise.
    """
    total = config.steps
    if config.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, total_steps=total + 1, pct_start=ONE_CYCLE_RISE
        )
    main: lr_scheduler.LRScheduler
    if config.schedule == "polynomial":
        main = lr_scheduler.PolynomialLR(optimiser, total, POWER)
    elif config.schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimiser, total)
    elif config.schedule == "step":
        main = lr_scheduler.StepLR(optimiser, config.step_size, config.step_gamma)
    else:
        main = lr_scheduler.ConstantLR(optimiser, 1.0)
    if not config.warmup_steps:
        return main
    rise = lr_scheduler.LinearLR(
        optimiser, 1 / (config.warmup_steps + 1), total_iters=config.warmup_steps
    )
    return lr_scheduler.ChainedScheduler([main, rise], optimiser)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module, decay: float) -> None:
    """Take the weights of `network` into their moving average.

    Like `AveragedModel.update_parameters`, but without its synchronisation with the GPU. Buffers
    are left alone: see `batch_norm.reestimate_statistics`.
    """
    ours: list[torch.Tensor] = list(average.module.parameters())
    theirs: list[torch.Tensor] = list(network.parameters())
    if average.n_averaged == 0:
        torch._foreach_copy_(ours, theirs)
    else:
        torch._foreach_lerp_(ours, theirs, 1 - decay)
    average.n_averaged += 1


def moving_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights; None for a decay of 0."""
    if not decay:
        return None
    return AveragedModel(network)
