"""Weights with all that makes them a model, and the state of a run; loading either runs no code.

A model is a safetensors file: the weights, and as JSON in its header the configuration and the
labels. A run's state (`last.pt`) is a torch file read with `weights_only=True` alone; it carries
its own SHA-256, and the one before it is kept as `previous.pt`.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from attunet3d import atomic
from attunet3d.config import Config, ConfigError
from attunet3d.errors import UserError
from attunet3d.network import AttentionUNet3D, NetworkError

FORMAT = "attunet3d 1"
ABOUT = "attunet3d"  # the header's entry
MODEL, STATE, PREVIOUS = "model.safetensors", "last.pt", "previous.pt"
LARGEST_HEADER = 16 << 20
LARGEST_FILE = 16 << 30
MOST_LEVELS, MOST_CHANNELS = 12, 1 << 16


class CheckpointError(UserError):
    """A file is no sound model or state."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model.

    Args:
        network: In eval mode, on the CPU.
        config: Resolved settings of the run that made it.
        labels: Name of each label value; class c is the c-th smallest value.
        fingerprint: SHA-256 of the file, in hex.
        path: The file.
    """

    network: AttentionUNet3D
    config: Config
    labels: dict[int, str]
    fingerprint: str
    path: Path


def save_model(
    path: Path,
    state_dict: Mapping[str, Tensor],
    config: Config,
    labels: Mapping[int, str],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model.

    Args:
        path: `….safetensors`.
        state_dict: Of an `AttentionUNet3D`.
        config: Resolved settings.
        labels: Name of each label value, background included.
        notes: What else shall be known of it, as plain values.

    Raises:
        WriteError: The disk is full or the folder read-only; the old file stands.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    about = {
        "format": FORMAT,
        "config": config.to_dict(),
        "labels": {str(value): name for value, name in sorted(labels.items())},
        "notes": dict(notes or {}),
    }
    # One entry: safetensors writes several in an order that changes from run to run.
    data = safetensors.torch.save(tensors, {ABOUT: json.dumps(about)})
    atomic.write_bytes(Path(path), data)


def load_model(path: Path) -> Checkpoint:
    """Read a model; nothing in the file is run, and no memory is taken that it does not fill.

    Args:
        path: A `.safetensors` file, or a run's folder.

    Raises:
        CheckpointError: It is none, damaged, or its weights are not those of its configuration.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    data = _bytes(path)
    metadata, tensors = _parse(path, data)
    try:
        about = json.loads(metadata.get(ABOUT, "{}"))
        if about.get("format") != FORMAT:
            raise CheckpointError(f"has format {about.get('format')!r}, must be {FORMAT!r}")
        config = Config.from_dict(about["config"])
        labels = _labels(about["labels"])
        network = _network(config, len(labels), tensors)
    except (CheckpointError, ConfigError, NetworkError) as error:
        raise CheckpointError(f"{path}: {error}; this is no model of attunet3d") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: its settings or labels cannot be read") from None
    return Checkpoint(network, config, labels, hashlib.sha256(data).hexdigest(), path)


def _bytes(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: a model is a run folder or a .safetensors file; pickled weights are not"
            " loaded (those of the authors' network: attunet3d convert-weights)"
        )
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such model; train first, or check the path")
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path}: larger than {LARGEST_FILE >> 30} GiB; this is no model")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(path: Path, data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LARGEST_HEADER, len(data) - 8):
        raise CheckpointError(f"{path}: is no safetensors file, or was cut off; copy it again")
    try:
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, AttributeError, KeyError, RecursionError):
        raise CheckpointError(f"{path}: the safetensors file is damaged; copy it again") from None
    return metadata, tensors


def _labels(values: Any) -> dict[int, str]:
    labels = {int(value): str(name) for value, name in dict(values).items()}
    if len(labels) < 2 or min(labels) != 0 or max(labels) > 255:
        raise CheckpointError(f"labels {sorted(labels)} must be 0 (background) and some up to 255")
    return dict(sorted(labels.items()))


def _network(config: Config, classes: int, tensors: dict[str, Tensor]) -> AttentionUNet3D:
    channels = config.network.channels
    if len(channels) > MOST_LEVELS or max(channels) > MOST_CHANNELS:
        raise CheckpointError(f"network.channels {channels}: too many")
    with torch.device("meta"):  # takes no memory, whatever the configuration claims
        network = AttentionUNet3D.from_config(config.network, 1, classes)
    for name, wanted in network.state_dict().items():
        found = tensors.get(name)
        if found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            have = None if found is None else tuple(found.shape)
            raise CheckpointError(f"weights {name} must be {tuple(wanted.shape)}, got {have}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise CheckpointError(f"weights {name} hold NaN or infinities")
    extra = sorted(tensors.keys() - network.state_dict().keys())
    if extra:
        raise CheckpointError(f"weights {extra[0]} belong to another network")
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a run's state; the one before stays as `previous.pt` beside it.

    Raises:
        WriteError: The disk is full or the folder read-only.
    """
    inner = io.BytesIO()
    torch.save(dict(state), inner)
    payload = inner.getbuffer()
    outer = io.BytesIO()
    content = {
        "sha256": hashlib.sha256(payload).hexdigest(),
        "payload": torch.frombuffer(payload, dtype=torch.uint8),
    }
    torch.save(content, outer)
    if path.is_file():
        os.replace(path, path.with_name(PREVIOUS))
    atomic.write_bytes(path, outer.getbuffer())


def load_state(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run's state, or the one before it where it is torn or missing.

    Returns:
        The state, and a warning where it is the one before.

    Raises:
        CheckpointError: Neither can be read.
    """
    try:
        return _state(path), []
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if not previous.is_file():
            raise
        return _state(previous), [f"{error}; going on from {previous}"]


def _state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such state; start the run without --resume")
    try:
        with zipfile.ZipFile(path) as entries:
            infos = entries.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in infos)
        if not stored or sum(entry.file_size for entry in infos) > path.stat().st_size:
            raise CheckpointError(f"{path}: its parts do not fit into it; it is hostile or damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        payload = content["payload"].numpy().tobytes()
        if hashlib.sha256(payload).hexdigest() != content["sha256"]:
            raise CheckpointError(f"{path}: the checksum is wrong; the file is damaged")
        state: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    except CheckpointError:
        raise
    except Exception as error:  # torch raises a dozen kinds, some with advice to load unsafely
        raise CheckpointError(
            f"{path}: is no state of a run, or was cut off ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no state of a run")
    return state
