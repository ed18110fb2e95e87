"""Fuzzed: models, states of a run, the authors' weights, and prepared cases."""

import hashlib
import io
import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from attunet3d.core import Config, FileError
from attunet3d.models import build_network, checkpoint, conversion
from attunet3d.training import ARRAYS, load_case
from benchmarks.reliability.fuzz_input import DisagreementError, Files
from benchmarks.reliability.mutations import json_text, mutated, rezipped

SETTINGS = Config().with_overrides(["network.channels=[2, 4]", "network.gate=single"])


@cache
def weights() -> dict[str, torch.Tensor]:
    """Of a tiny network, always the same."""
    torch.manual_seed(0)
    return dict(build_network(SETTINGS.network, 1, 2).state_dict())


@cache
def model_seed() -> bytes:
    """A sound model."""
    about = {"format": checkpoint.FORMAT, "config": SETTINGS.to_dict(), "notes": {}}
    about["labels"] = {"0": "background", "1": "liver"}
    return bytes(safetensors.torch.save(weights(), {checkpoint.ABOUT: json.dumps(about)}))


def model(rng: random.Random) -> Files:
    """A spoilt safetensors file: its header, what we keep in the header, or its weights."""
    data = model_seed()
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        return {"m.safetensors": mutated(data, rng)}
    if kind == 1:
        body = mutated(body, rng)
    elif kind == 2:
        head = json_text(json.loads(head), rng)
    elif kind == 3:
        header = json.loads(head)
        about = json.loads(header["__metadata__"][checkpoint.ABOUT])
        text = json_text(about, rng).decode(errors="replace")
        header["__metadata__"][checkpoint.ABOUT] = text
        head = json.dumps(header).encode()
    else:
        head = mutated(head, rng)
    return {"m.safetensors": struct.pack("<Q", len(head)) + head + body}


def check_model(path: Path) -> None:
    """A network that computes numbers."""
    found = checkpoint.load_model(path)
    if any(not torch.isfinite(value).all() for value in found.network.parameters()):
        raise DisagreementError("weights that are no numbers")


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def state_seed() -> bytes:
    """The inner part of a sound state."""
    state = {"network": weights(), "step": 3, "best_dice": 0.5, "losses": [0.1, 2]}
    state["optimiser"] = {"state": {0: {"momentum": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return _saved(state)


def state(rng: random.Random) -> Files:
    """A spoilt state; often with a checksum that fits, so that the inner part is reached."""
    inner = rezipped(state_seed(), rng) if rng.random() < 0.6 else state_seed()
    payload = torch.frombuffer(bytearray(inner) or bytearray(1), dtype=torch.uint8)
    outer = _saved({"sha256": hashlib.sha256(inner).hexdigest(), "payload": payload})
    return {"last.pt": rezipped(outer, rng) if inner is state_seed() else outer}


def check_state(path: Path) -> None:
    """A state is a dictionary."""
    checkpoint.load_state(path)


def authors_weights(rng: random.Random) -> Files:
    """A spoilt file of `torch.save`."""
    return {"w.pth": rezipped(_saved(weights()), rng)}


def check_authors_weights(path: Path) -> None:
    """Weights by name."""
    conversion.load_weights(path)


@cache
def prepared_seed() -> tuple[tuple[str, bytes], ...]:
    """The four files of a sound prepared case."""
    shapes = ((4, 3, 2), (4, 3, 2), (2, 3))
    files: Files = {}
    for (name, dtype), shape in zip(ARRAYS.items(), shapes, strict=True):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, dtype), allow_pickle=False)
        files[name] = buffer.getvalue()
    sizes = {name: len(data) for name, data in files.items()}
    meta = {"case": "a", "shape": [4, 3, 2], "air": -1.0, "starts": [0, 0, 2], "bytes": sizes}
    return (("meta.json", json.dumps(meta).encode()), *files.items())


def prepared(rng: random.Random) -> Files:
    """A prepared case, one of its files spoilt."""
    files = dict(prepared_seed())
    name = rng.choice(list(files))
    files[name] = (
        json_text(json.loads(files[name]), rng)
        if name == "meta.json"
        else mutated(files[name], rng, files["image.npy"])
    )
    return files


def check_prepared(path: Path) -> None:
    """A case that is taken has arrays of the shapes it says; another is prepared anew."""
    found = load_case("a", path.parent)
    if found is None:
        raise FileError(f"{path}: is prepared anew")
    points, image, label = found.foreground(), found.image(), found.label()
    if image.shape != found.shape or label.shape != found.shape or points.shape[1:] != (3,):
        raise DisagreementError("arrays of other shapes than the case says")
    if found.starts[-1] != len(points):
        raise DisagreementError("other voxels than the case says")
    float(image.sum(dtype=np.float64)), int(label.sum())
