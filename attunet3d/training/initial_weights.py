"""A start from the weights of another model, instead of random ones."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from attunet3d.models import Network, checkpoint, transfer_weights
from attunet3d.training.calibration import divide_logits_
from attunet3d.training.step import TrainingStep

_log = logging.getLogger(__name__)


def take_weights(update: TrainingStep, labels: Mapping[int, str], model: Path) -> tuple[int, ...]:
    """Take the weights of another model where they fit, heads by the names of labels; slow them.

    A finished run has divided the logits by a temperature (see `calibration`). That is undone, so
    that training goes on from the weights with which the other one ended.

    Args:
        update: Its network gets the weights; those in which nothing is new then learn more slowly.
        labels: What its output channels mean.
        model: A run folder or a checkpoint.

    Returns:
        The classes, background left out, whose heads were taken.

    Raises:
        ModelError: It is not a model.
    """
    other = checkpoint.load_model(model)
    temperature = other.notes.get("temperature", 1)
    if isinstance(temperature, (int, float)) and temperature > 0:
        divide_logits_(other.network, 1 / temperature)
    network = cast("Network", update.network)
    taken = transfer_weights(network, labels, other.network.state_dict(), other.labels)
    _log.info("%s: took %s", other.path, taken.taken)
    if taken.new:
        _log.warning("%s: not taken: %s", other.path, taken.new)
    names = [labels[value] for value in sorted(labels)]
    update.slow_down(taken.entries)
    return tuple(index for index, name in enumerate(names) if index and name in taken.labels)
