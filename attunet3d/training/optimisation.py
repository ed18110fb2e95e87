"""Optimisers and the moving average of weights from torch; learning rates as plain functions.

A rate is a function of the settings and the number of the step alone. A resumed run needs no state
of a schedule, and one that is trained longer follows the schedule of its new length.
"""

from collections.abc import Collection, Iterable
from math import cos, pi
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from attunet3d.core import SettingsError, TrainingConfig

POWER = 0.9  # of the polynomial decay (Isensee et al. 2021)
RISE = 0.25  # share of the steps in which the rate of one_cycle rises
START, END = 1 / 25, 1e-4 / 25  # of one_cycle, relative to the highest rate (Smith & Topin 2017)
MOMENTUM = (0.85, 0.95)  # of one_cycle, at the highest rate and at the ends


def build_optimiser(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], config: TrainingConfig
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam, or AdamW (decoupled weight decay).

    Args:
        parameters: To update, or groups of them, see `parameter_groups`.
        config: Which one, with which numbers.
    """
    rate, decay, given = config.learning_rate, config.weight_decay, list[Any](parameters)
    each = [p for part in given for p in (part["params"] if isinstance(part, dict) else [part])]
    fused = all(part.is_cuda for part in each) or None  # one kernel instead of hundreds
    if config.optimiser == "adam":
        return torch.optim.Adam(given, rate, weight_decay=decay, fused=fused)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(given, rate, weight_decay=decay, fused=fused)
    momentum, nesterov = config.momentum, config.momentum > 0
    return torch.optim.SGD(
        given, rate, momentum, weight_decay=decay, nesterov=nesterov, fused=fused
    )


def parameter_groups(
    network: nn.Module, config: TrainingConfig, taken: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The parameters of a network, by the factor of their learning rate, the largest first.

    Args:
        network: With an attribute `encoder`, unless `encoder_rate` is 1; where that is 0, the
            encoder is left out, and gets no gradient.
        config: Has the factors.
        taken: Names of the parameters that another model gave.

    Raises:
        SettingsError: The network has no encoder.

    Example:
        >>> network = nn.ModuleDict({"encoder": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
        >>> config = TrainingConfig(encoder_rate=0.1)
        >>> [(len(g["params"]), g["factor"]) for g in parameter_groups(network, config)]
        [(2, 1.0), (2, 0.1)]
    """
    encoder_rate, groups = config.encoder_rate, dict[float, list[nn.Parameter]]()
    if encoder_rate != 1 and "encoder" not in dict(network.named_children()):
        raise SettingsError(
            f"training.encoder_rate {encoder_rate:g}: a {type(network).__name__} has no encoder",
            value=encoder_rate,
            cure="leave it (or --freeze) out",
        )
    for name, parameter in network.named_parameters():
        factor = encoder_rate if name.startswith("encoder.") else 1.0
        factor *= config.taken_rate if name in taken else 1.0
        if factor:
            groups.setdefault(factor, []).append(parameter)
        else:
            parameter.requires_grad_(False)
    found = sorted(groups.items(), reverse=True)
    return [{"params": params, "factor": factor} for factor, params in found]


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of update number `step`, counted from 0.

    "polynomial" and "cosine" would be 0 one step after the last, "step" falls by `step_gamma`
    every `step_size` steps, "one_cycle" rises and falls; the others start with `warmup_steps` of
    linear rise.

    Example:
        >>> config = TrainingConfig(learning_rate=1.0, schedule="cosine", steps=4)
        >>> [round(learning_rate(config, step), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    done = step / config.steps
    if config.schedule == "one_cycle":
        return config.learning_rate * _one_cycle(config.steps, step, START, 1.0, END)
    factor: float = {
        "polynomial": max(0.0, 1 - done) ** POWER,
        "cosine": (1 + cos(pi * done)) / 2,
        "step": config.step_gamma ** (step // config.step_size),
        "constant": 1.0,
    }[config.schedule]
    return config.learning_rate * factor * min(1.0, (step + 1) / (config.warmup_steps + 1))


def set_rate(optimiser: torch.optim.Optimizer, config: TrainingConfig, step: int) -> None:
    """Give an optimiser the rate of update number `step`; one_cycle also cycles the momentum."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(config, step) * group.get("factor", 1.0)
        if config.schedule == "one_cycle":
            low, high = MOMENTUM
            momentum = _one_cycle(config.steps, step, high, low, high)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


def _one_cycle(steps: int, step: int, start: float, top: float, end: float) -> float:
    """`start` to `top` to `end`, each way along half a cosine, as torch's `OneCycleLR`."""
    turn = max(0.0, RISE * (steps + 1) - 1)
    if step <= turn:
        begin, target, share = start, top, step / turn if turn else 1.0
    else:
        begin, target, share = top, end, (step - turn) / (steps - turn)
    return target + (begin - target) * (1 + cos(pi * share)) / 2


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module, decay: float) -> None:
    """Take the weights of `network` into their moving average.

    Like `AveragedModel.update_parameters`, but without its synchronisation with the GPU. The decay
    of update n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's moving average with
    `num_updates`: at a fixed decay of 0.999 a short training would keep the weights of its first
    steps. Buffers are left alone: see `batch_norm.reestimate_statistics`.
    """
    done = int(average.n_averaged)  # which is on the CPU
    decay = min(decay, (1 + done) / (10 + done))
    ours: list[torch.Tensor] = list(average.module.parameters())
    theirs: list[torch.Tensor] = list(network.parameters())
    if done == 0:
        torch._foreach_copy_(ours, theirs)
    else:
        torch._foreach_lerp_(ours, theirs, 1 - decay)
    average.n_averaged += 1


def moving_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights; None for a decay of 0."""
    return AveragedModel(network) if decay else None
