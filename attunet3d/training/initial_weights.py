"""A start from the weights of another model, instead of random ones."""

import logging
from collections.abc import Mapping
from pathlib import Path

from attunet3d.models import Network, checkpoint, transfer_weights

_log = logging.getLogger(__name__)


def take_weights(network: Network, labels: Mapping[int, str], model: Path) -> tuple[int, ...]:
    """Take the weights of another model where they fit; heads by the names of labels.

    Args:
        network: Gets the weights.
        labels: What its output channels mean.
        model: A run folder or a checkpoint.

    Returns:
        The classes, background left out, whose heads were taken.

    Raises:
        ModelError: It is not a model.
    """
    other = checkpoint.load_model(model)
    taken = transfer_weights(network, labels, other.network.state_dict(), other.labels)
    _log.info("%s: took %s", other.path, taken.taken)
    if taken.new:
        _log.warning("%s: not taken: %s", other.path, taken.new)
    names = [labels[value] for value in sorted(labels)]
    return tuple(index for index, name in enumerate(names) if index and name in taken.labels)
