"""How a training ended: its model, state and numbers, as checksums to be held against another's."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attunet3d.models import load_state
from attunet3d.training import read_rows

CLOCK = ("seconds", "waiting", "validation_seconds")  # columns that no two runs share


@dataclass(frozen=True)
class RunState:
    """All that must come out the same."""

    model: str  # SHA-256 of model.safetensors
    state: str  # SHA-256 of all tensors and numbers in last.pt
    rows: list[Any]  # of metrics.csv, seconds left out


def run_state(run_dir: Path) -> RunState:
    """How the run in this folder ended."""
    state, warnings = load_state(run_dir / "last.pt")
    assert not warnings, warnings
    digest = hashlib.sha256()
    _add(digest, state)
    rows = [row | dict.fromkeys(CLOCK, "") for row in read_rows(run_dir / "metrics.csv")]
    model = hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest()
    return RunState(model, digest.hexdigest(), rows)


def _add(digest: Any, value: Any) -> None:
    """Add a tree of plain values and tensors, with names and types."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, part in value.items():
            digest.update(repr(key).encode())
            _add(digest, part)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())
