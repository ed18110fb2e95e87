"""Models and states come back as they were; nothing hostile or torn is taken, and no code runs."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from attunet3d.core import ModelError, WriteError
from attunet3d.core.config import Config
from attunet3d.models.build import Network, build_network
from attunet3d.models.checkpoint import (
    ABOUT,
    FORMAT,
    load_model,
    load_state,
    save_model,
    save_state,
)

CONFIG = Config().with_overrides(["network.channels=[4, 8]", "network.gate=single"])
LABELS = {0: "background", 3: "pancreas"}


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return build_network(CONFIG.network, 1, 2).eval()


def full_disk(_: object) -> None:
    raise OSError(28, "full")


def hostile(path: Path, network: Network, **changes: Any) -> Path:
    """A model file with some of its metadata changed."""
    about = {"format": FORMAT, "config": CONFIG.to_dict(), "labels": LABELS} | changes
    data = safetensors.torch.save(dict(network.state_dict()), {ABOUT: json.dumps(about)})
    path.write_bytes(data)
    return path


def test_a_model_comes_back_with_its_logits_settings_and_labels(
    tmp_path: Path, network: Network
) -> None:
    save_model(tmp_path / "model.safetensors", network.state_dict(), CONFIG, LABELS, {"step": 7})
    found = load_model(tmp_path)
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(found.network(x), network(x))
    assert found.config == CONFIG
    assert found.labels == LABELS
    assert not found.network.training
    assert len(found.checksum) == 64
    assert found.checksum == load_model(tmp_path / "model.safetensors").checksum


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "format 'other'"),
        ({"config": {"network": {"channels": [8, 16]}}}, "must be"),
        ({"config": {"network": {"channels": [2**40, 8]}}}, "a whole number <= 4096"),
        ({"config": {"networks": {}}}, "unknown setting"),
        ({"config": None}, "must be a mapping of settings"),
        ({"labels": {}}, "labels"),
        ({"labels": 3}, "cannot be read"),
        ({"labels": {"0": "a", "999": "b"}}, "labels"),
        ({"labels": {"0": "a", "1": "b", "2": "c"}}, "must be"),
        ({"notes": {"doubt": {"weights": {"cut": "x"}}}}, "doubt must be weights by name"),
        ({"notes": {"label_ranges": {"liver": {"ml": [1]}}}}, "label_ranges must be"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(
    tmp_path: Path, network: Network, changes: dict[str, Any], words: str
) -> None:
    path = hostile(tmp_path / "m.safetensors", network, **changes)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_weights_that_are_not_numbers_or_of_another_network_are_refused(
    tmp_path: Path, network: Network
) -> None:
    state = dict(network.state_dict())
    name = next(iter(state))
    path = tmp_path / "m.safetensors"
    save_model(path, state | {name: torch.full_like(state[name], torch.nan)}, CONFIG, LABELS)
    with pytest.raises(ModelError, match="NaN"):
        load_model(path)
    save_model(path, state | {"other": torch.zeros(1)}, CONFIG, LABELS)
    with pytest.raises(ModelError, match="another network"):
        load_model(path)
    save_model(path, {k: v for k, v in state.items() if k != name}, CONFIG, LABELS)
    with pytest.raises(ModelError, match="got None"):
        load_model(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"\xff" * 16,
        (2**60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{{{",
    ],
)
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(ModelError):
        load_model(tmp_path / "m.safetensors")


def test_every_cut_of_a_model_is_refused(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, network.state_dict(), CONFIG, LABELS)
    whole = path.read_bytes()
    for keep in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError):
            load_model(path)


def test_errors_of_a_model_keep_their_value_and_cure(tmp_path: Path, network: Network) -> None:
    path = hostile(tmp_path / "m.safetensors", network, format="other")
    with pytest.raises(ModelError, match="this is not a model of attunet3d; give a model"):
        load_model(path)
    size = hostile(path, network).stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: has {size - 1} bytes, must have {size}; copy it again"
    found = caught.value
    assert (found.path, found.value, found.cure) == (path, size - 1, "copy it again")


def test_missing_and_pickled_models_are_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="convert-weights"):
        load_model(tmp_path / "weights.pth")


class Canary:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("wrap", ["pickle", "torch"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, wrap: str) -> None:
    canary, path = tmp_path / "sung", tmp_path / "last.pt"
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"payload": Canary(canary), "sha256": ""}, path)
    with pytest.raises(ModelError) as caught:
        load_state(path)
    assert not canary.exists()
    assert "weights_only" not in str(caught.value)


def test_a_state_comes_back_and_the_one_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_state(path, {"step": step, "weights": torch.full((3,), float(step))})
    state, warnings = load_state(path)
    assert (state["step"], warnings) == (2, [])
    assert torch.equal(state["weights"], torch.full((3,), 2.0))
    assert load_state(tmp_path / "previous.pt")[0]["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_torn_state_gives_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_state(path, {"step": step, "weights": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    state, warnings = load_state(path)
    assert state["step"] == 1
    assert len(warnings) == 1
    assert "previous.pt" in warnings[0]


def test_a_torn_state_never_takes_the_place_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    path.write_bytes(path.read_bytes()[:-9])
    assert load_state(path)[0]["step"] == 1
    assert (tmp_path / "damaged.pt").is_file()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WriteError, match="full"):
        save_state(path, {"step": 3})
    assert load_state(path)[0]["step"] == 1


def test_a_full_disk_leaves_both_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WriteError, match="full"):
        save_state(path, {"step": 3})
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_loading_a_model_leaves_the_compiler_of_torch_alone(
    tmp_path: Path, network: Network
) -> None:
    save_model(tmp_path / "m.safetensors", network.state_dict(), CONFIG, LABELS)
    code = (
        "import sys\nfrom pathlib import Path\nfrom attunet3d.models.checkpoint import load_model\n"
        "before = 'torch._dynamo' in sys.modules\nload_model(Path(sys.argv[1]))\n"
        "print(before, 'torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_two_torn_states_are_told_in_one_line(tmp_path: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"last\.pt.*previous\.pt.*again"):
        load_state(tmp_path / "last.pt")


def test_a_state_that_unpacks_beyond_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(ModelError, match="do not fit"):
        load_state(tmp_path / "last.pt")


def test_without_a_state_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without --resume"):
        load_state(tmp_path / "last.pt")
