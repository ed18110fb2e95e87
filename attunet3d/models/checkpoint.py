"""Weights with all that makes them a model, and the state of a run; loading either runs no code.

A model is a safetensors file: the weights, and as JSON in its header the configuration and the
labels. A run's state (`last.pt`) is a torch file read with `weights_only=True` alone; it carries
its own SHA-256, and the one before it is kept as `previous.pt`. At every moment at least one of
the two is whole, on a disk that fills up and under SIGKILL, too.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from attunet3d.core import (
    Config,
    ModelError,
    SettingsError,
    is_name,
    known_notes,
    parse_json,
    whole_file,
)
from attunet3d.models.build import Network, build_network

FORMAT = "attunet3d 1"
ABOUT = "attunet3d"  # the header's entry
MODEL, STATE, PREVIOUS, DAMAGED = "model.safetensors", "last.pt", "previous.pt", "damaged.pt"
LARGEST_HEADER = 16 << 20
DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # of weights and of counters
MOST_LEVELS = 12
OTHER = "give a model that attunet3d train or convert-weights wrote"  # the cure of a wrong file


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model."""

    network: Network
    """In eval mode, on the CPU."""
    config: Config
    """Resolved settings of the run that made it."""
    labels: dict[int, str]
    """Name of each label value; class c is the c-th smallest value."""
    checksum: str
    """SHA-256 of the file, in hex."""
    path: Path
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, as `save_model` took them."""


def save_model(
    path: Path,
    state_dict: Mapping[str, Tensor],
    config: Config,
    labels: Mapping[int, str],
    notes: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a model.

    Args:
        path: `….safetensors`.
        state_dict: Of the network that `config` describes.
        config: Resolved settings.
        labels: Name of each label value, background included.
        notes: Further facts, as plain values.
        check: As of `whole_file.replacing`.

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
    whole_file.write_bytes(Path(path), data, check)


def load_model(path: Path) -> Checkpoint:
    """Read a model; nothing in the file is run, and no memory is taken that it does not fill.

    Args:
        path: A `.safetensors` file, or a run's folder.

    Raises:
        ModelError: It is not a model, is damaged, or its weights do not fit its configuration.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    if path.suffix != ".safetensors":
        raise ModelError(
            "a model is a run folder or a .safetensors file; pickled weights are not loaded",
            path=path,
            cure="for published weights: attunet3d convert-weights",
        )
    try:
        return read_model(path)
    except ModelError as error:
        raise error.within(path) from None


def read_model(path: Path) -> Checkpoint:
    """As `load_model`, of a file of any name, which its errors leave out."""
    try:
        header, start, size = _header(path)
        about = json.loads(header.pop("__metadata__", {}).get(ABOUT, "{}"))
        if about.get("format") != FORMAT:
            rule = f"has format {about.get('format')!r:.80}, must be {FORMAT!r}"
            raise ModelError(f"{rule}; this is not a model of attunet3d", cure=OTHER)
        config = Config.from_dict(about["config"])
        labels = _labels(about["labels"])
        notes = dict(about.get("notes") or {})
        known_notes(notes)
        network = _network(config, len(labels))
        weights_bytes = _compare(network, header)
        if start + weights_bytes != size:
            rule = f"has {size} bytes, must have {start + weights_bytes}"
            raise ModelError(rule, value=size, cure="copy it again")
        data = path.read_bytes()
        _fill(network, data)
    except ModelError:
        raise
    except SettingsError as error:
        raise ModelError(error, value=error.value, cure=OTHER) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
        raise ModelError("its settings or labels cannot be read", cure=OTHER) from None
    checksum = hashlib.sha256(data).hexdigest()
    return Checkpoint(network, config, labels, checksum, path, notes)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header of a safetensors file, where the weights start, and the size of the file."""
    if not path.is_file():
        raise ModelError("no such model", cure="train first, or check the path")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise ModelError("is not a safetensors file, or was cut off", cure="copy it again")
        text = file.read(length)
    try:
        header = dict(parse_json(text))
    except (TypeError, ValueError):
        raise ModelError("the safetensors file is damaged", cure="copy it again") from None
    return header, 8 + length, size


def _labels(values: Any) -> dict[int, str]:
    labels = {int(value): name for value, name in dict(values).items()}
    for name in labels.values():
        if not is_name(name):
            rule = f"label {name!r:.80} must be short text on one line"
            raise ModelError(rule, value=name, cure="name it otherwise")
    if len(labels) < 2 or min(labels) != 0 or max(labels) > 255:
        rule = f"labels {sorted(labels)!s:.80} must be 0 (background) and some up to 255"
        raise ModelError(rule, value=labels, cure=OTHER)
    return dict(sorted(labels.items()))


def _network(config: Config, classes: int) -> Network:
    channels = config.network.channels
    if len(channels) > MOST_LEVELS:
        raise ModelError(f"network.channels {channels!s:.80}: too many", cure=OTHER)
    with torch.device("meta"):  # takes no memory, whatever the configuration claims
        network = build_network(config.network, 1, classes)
    return network.eval()


def _compare(network: Network, header: Mapping[str, Any]) -> int:
    """Require the weights of the network by name, shape and type; return their bytes."""
    size = 0
    for name, wanted in network.state_dict().items():
        found = header.get(name, {})
        have = [found.get("dtype"), found.get("shape")] if found else None
        want = [DTYPES.get(wanted.dtype), list(wanted.shape)]
        if have != want:
            raise ModelError(f"weights {name} must be {want}, got {have!s:.80}", cure=OTHER)
        size += wanted.numel() * wanted.element_size()
    extra = sorted(header.keys() - network.state_dict().keys())
    if extra:
        raise ModelError(f"weights {extra[0]:.80} belong to another network", cure=OTHER)
    return size


def _fill(network: Network, data: bytes) -> None:
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError:
        raise ModelError("the safetensors file is damaged", cure="copy it again") from None
    for name, found in tensors.items():
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise ModelError(f"weights {name} hold NaN or infinities", cure="give other weights")
    network.load_state_dict(tensors, assign=True)


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

    def make_way(_: Path) -> None:  # only once the new state is on the disk
        if path.is_file():
            os.replace(path, path.with_name(PREVIOUS))

    whole_file.write_bytes(path, outer.getbuffer(), make_way)


def load_state(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run's state, or the previous one where it is torn or missing.

    A torn state is renamed to `damaged.pt`; otherwise the next save would replace the previous
    state, which is whole, by it.

    Returns:
        The state, and a warning where it is the one before.

    Raises:
        ModelError: Neither can be read.
    """
    try:
        return _state(path), []
    except ModelError as error:
        previous = path.with_name(PREVIOUS)
        if not previous.is_file():
            raise
        try:
            state = _state(previous)
        except ModelError as another:
            cure = "start the run again"
            raise ModelError(f"{error}; and {another}", cure=cure) from None
        with contextlib.suppress(OSError):  # missing, or a folder that is only read
            os.replace(path, path.with_name(DAMAGED))
        return state, [f"{error}; continuing from {previous}"]


def _state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError("no such state", path=path, cure="start the run without --resume")
    try:
        with path.open("rb") as file:
            content = _load_within(file)
            size = os.fstat(file.fileno()).st_size
        array = content["payload"].numpy()
        if array.nbytes > size:  # one byte, declared to stand for many
            raise ModelError("its parts do not fit into it; it is hostile or damaged")
        payload = array.tobytes()
        if hashlib.sha256(payload).hexdigest() != content["sha256"]:
            raise ModelError("the checksum is wrong; the file is damaged")
        state = _load_within(io.BytesIO(payload))
    except ModelError as error:
        raise error.within(path) from None
    except Exception as error:  # torch raises a dozen kinds, some with advice to load unsafely
        rule = f"is not the state of a run, or was cut off ({type(error).__name__})"
        raise ModelError(rule, path=path) from None
    if not isinstance(state, dict):
        raise ModelError("is not the state of a run", path=path)
    return state


def _load_within(file: BinaryIO) -> Any:
    """Load what torch saved; torch compresses nothing, so no part is larger than the file."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as entries:
        infos = entries.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in infos)
    if not stored or sum(entry.file_size for entry in infos) > size:
        raise ModelError("its parts do not fit into it; it is hostile or damaged")
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):  # they advise to load unsafely
        return torch.load(file, map_location="cpu", weights_only=True)
