"""A start from the weights of another model, instead of random ones."""

import logging
from collections.abc import Mapping
from pathlib import Path

from attunet3d.models import Network, checkpoint, transfer_weights
from attunet3d.training.calibration import divide_logits_

_log = logging.getLogger(__name__)


def take_weights(
    network: Network, labels: Mapping[int, str], model: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Take the weights of another model where they fit; heads by the names of labels.

    A finished run has divided the logits by a temperature (see `calibration`). That is undone, so
    that training goes on from the weights with which the other one ended.

    Args:
        network: Gets the weights.
        labels: What its output channels mean.
        model: A run folder or a checkpoint.

    Returns:
        The classes, background left out, whose heads were taken, and the names of the entries in
        which nothing is new.

    Raises:
        ModelError: It is not a model.
    """
    other = checkpoint.load_model(model)
    temperature = other.notes.get("temperature", 1)
    if isinstance(temperature, (int, float)) and temperature > 0:
        divide_logits_(other.network, 1 / temperature)
    taken = transfer_weights(network, labels, other.network.state_dict(), other.labels)
    _log.info("%s: took %s", other.path, taken.taken)
    if taken.new:
        _log.warning("%s: not taken: %s", other.path, taken.new)
    names = [labels[value] for value in sorted(labels)]
    classes = (index for index, name in enumerate(names) if index and name in taken.labels)
    return tuple(classes), taken.entries
