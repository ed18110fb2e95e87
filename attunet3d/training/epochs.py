"""Epochs: what `training.epochs` means in steps, and the line of a table that each one ends with.

Nothing else counts epochs. They are turned into steps when a run begins, so that a step remains a
function of the state before it and of its number.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attunet3d.core import Config, SettingsError

COUNTED = ("training.steps", "training.validate_every", "training.step_size")  # by epochs


def in_steps(config: Config, cases: int) -> Config:
    """The configuration with steps that `training.epochs` gives; without epochs as it is.

    Args:
        config: With a batch size.
        cases: Number of training cases.

    Example:
        >>> config = Config().with_overrides(["training.epochs=10", "training.batch_size=2"])
        >>> found = in_steps(config, cases=5).training  # 3 batches hold a patch of each
        >>> found.steps, found.validate_every, found.step_size
        (30, 3, 90)
    """
    training = config.training
    if not training.epochs:
        return config
    assert training.batch_size is not None
    epoch = math.ceil(
        cases * training.epoch_patches / (training.batch_size * training.accumulation)
    )
    counts = (training.epochs, 1, training.step_epochs)
    return config.replaced(
        {name: count * epoch for name, count in zip(COUNTED, counts, strict=True)}
    )


def refuse_steps(config: Config, settings: Sequence[str]) -> None:
    """Refuse `--set` of what the epochs of a configuration give.

    Raises:
        SettingsError: Of the first such setting.
    """
    for setting in settings if config.training.epochs else ():
        name = setting.partition("=")[0].strip()
        if name in COUNTED:
            raise SettingsError(
                f"--set {setting:.200}: training.epochs={config.training.epochs} gives {name}",
                value=setting,
                cure="set training.epochs or training.step_epochs, or training.epochs=0 as well",
            )


def epoch_line(rows: Sequence[Mapping[str, Any]], config: Config) -> str:
    """What a person reads of the epoch that just ended; metrics.csv has it all.

    Args:
        rows: Of metrics.csv, to the row of this epoch's validation.
        config: In steps.

    Example:
        >>> config = Config().with_overrides(["training.epochs=3", "training.batch_size=1"])
        >>> row = {"step": 8, "loss": 0.5, "seconds": 2, "accuracy": 0.99, "iou": 0.6}
        >>> epoch_line([row | {"dice_network_grid": 0.75}], in_steps(config, cases=4))
        'epoch   2/3    loss 0.5000  accuracy 0.9900  IoU 0.6000  Dice 0.7500      2.0 s'
    """
    size, last = config.training.validate_every, rows[-1]
    step = int(last["step"])
    here = [row for row in rows if step - size < int(row["step"]) <= step]
    before = [step - size, *(int(row["step"]) for row in here)]
    loss = math.fsum(  # each row holds the mean since the one before
        float(row["loss"]) * (int(row["step"]) - start)
        for row, start in zip(here, before, strict=False)
    )
    seconds = math.fsum(float(row["seconds"]) for row in here)
    epoch = f"{step // size}/{config.training.epochs}"
    numbers = {"loss": loss / size, "accuracy": last["accuracy"], "IoU": last["iou"]}
    numbers["Dice"] = last["dice_network_grid"]
    words = [f"{name} {'–':>6}" if v is None else f"{name} {v:.4f}" for name, v in numbers.items()]
    return "  ".join([f"epoch {epoch:>5}  ", *words, f"{seconds:7.1f} s"])
