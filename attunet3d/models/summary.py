"""What a configuration or a model is, in words and numbers."""

from dataclasses import replace

import torch

from attunet3d.core import Config, NetworkConfig, Size, as_table, changed_settings
from attunet3d.models.build import Network, build_network
from attunet3d.models.checkpoint import Checkpoint
from attunet3d.models.layer_table import layer_table, layer_text
from attunet3d.models.mean_network import MeanNetwork
from attunet3d.models.memory import training_bytes

USUAL_PATCH: Size = (96, 96, 96)  # looked at where the settings leave the size to the plan


def config_summary(config: Config, classes: int = 2) -> str:
    """The settings that differ from the defaults, and the network's layers for one patch.

    Args:
        config: With or without gaps.
        classes: Of the network, background included.
    """
    changed = changed_settings(Config(), config)
    settings = [(name, _text(new), _text(old)) for name, (old, new) in changed.items()]
    if settings:
        rows = as_table([("setting", "value", "default"), *settings])
    else:
        rows = "all settings are the defaults"
    patch = config.training.patch_size or config.inference.window
    words = "" if patch else " (the plan chooses the size)"
    words += " (sizes below: one slice's)" if config.network.form.startswith("2d") else ""
    return f"{rows}\n\n{network_summary(config.network, classes, patch or USUAL_PATCH, words)}"


def network_summary(config: NetworkConfig, classes: int, patch: Size, words: str = "") -> str:
    """The layers of a network, and the memory of a training step, for one patch."""
    network = network_without_weights(config, classes)
    strides = config.strides or ((2, 2, 2),) * (len(config.channels) - 1)
    needed = training_bytes(replace(config, strides=strides), 1, patch, classes)
    size = "×".join(map(str, patch))
    return (
        f"network of {classes} classes for one patch of {size} voxels{words}; training takes"
        f" about {needed / 1e9:.1f} GB\n{layer_text(layer_table(network, patch))}"
    )


def network_without_weights(config: NetworkConfig, classes: int) -> Network:
    """The network on torch's meta device, where tensors have shapes only."""
    with torch.device("meta"):
        return build_network(config, 1, classes)


def model_summary(model: Checkpoint) -> str:
    """Labels, checksum, settings and layers of a trained model, or of an ensemble's members."""
    labels = ", ".join(f"{value} {name}" for value, name in sorted(model.labels.items()))
    head = f"labels: {labels}\nSHA-256: {model.checksum}\n"
    if isinstance(model.network, MeanNetwork):
        head = f"the mean of {len(model.network.members)} networks\n{head}"
    return f"{head}\n{config_summary(model.config, len(model.labels))}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
