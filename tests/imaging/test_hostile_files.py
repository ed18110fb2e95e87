"""What strangers made is fed to every loader: one clear line that names the file, and no code runs.

Each loader's own tests hold what only it can meet; here are the things that all of them share.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attunet3d.cohort import results
from attunet3d.core import DataError, FileError, ModelError, SettingsError
from attunet3d.core.config import Config
from attunet3d.core.errors import UserError
from attunet3d.core.text import read_json
from attunet3d.datasets import nnunet_splits
from attunet3d.datasets.listing import list_cases
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging.volume import read_label, read_volume
from attunet3d.models import conversion
from attunet3d.models.build import build_network
from attunet3d.models.checkpoint import ABOUT, load_model, load_state, save_model
from attunet3d.training.cached_case import load_case

LOADERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "scan": ("a.nii.gz", read_volume),
    "label": ("a.nii", read_label),
    "other scan": ("a.nrrd", read_volume),
    "metaimage": ("a.mha", read_volume),
    "manifest": ("m.json", Manifest.load),
    "config": ("c.yaml", Config.load),
    "run's config": ("config.json", Config.load),
    "model": ("m.safetensors", load_model),
    "state": ("last.pt", load_state),
    "authors' weights": ("w.pth", conversion.load_weights),
    "sidecar": ("a.json", results.read_sidecar),
    "splits": ("splits_final.json", lambda path: nnunet_splits.read_splits(path, ["a"])),
}
MB = 1 << 20


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


def torch_zip(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def torch_legacy(value: dict[str, Canary]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def numpy_pickle(value: Canary) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], object), allow_pickle=True)
    return buffer.getvalue()


def tar_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zip_with(**entries: Any) -> bytes:
    """A zip as torch writes them, of the entries given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", data)
    return buffer.getvalue()


SINGING: dict[
    str, Callable[[Canary], bytes]
] = {  # a canary → bytes of a file that would let it sing
    "pickle": pickle.dumps,
    "old pickle": lambda canary: pickle.dumps(canary, 0),
    "torch zip": lambda canary: torch_zip({"payload": canary, "sha256": ""}),
    "torch legacy": lambda canary: torch_legacy({"payload": canary}),
    "torch tar": lambda canary: tar_of(pickle.dumps(canary)),
    "bare zip": lambda canary: zip_with(data_pkl=pickle.dumps(canary), version=b"3"),
    "torchscript": lambda canary: zip_with(
        constants_pkl=pickle.dumps(canary), data_pkl=pickle.dumps(canary), version=b"3"
    ),
    "numpy": numpy_pickle,
    "gzipped pickle": lambda canary: gzip.compress(pickle.dumps(canary)),
    "yaml": lambda canary: f"!!python/object/apply:builtins.open ['{canary.path}', 'w']".encode(),
    "yaml value": lambda canary: (
        f"training: !!python/object/new:os.system ['touch {canary.path}']".encode()
    ),
    "expression": lambda canary: (
        f"""{{"training": {{"steps": "$__import__('os').system('touch {canary.path}')"}}}}"""
    ).encode(),
}
HOSTILE = {
    "nothing": b"",
    "zeros": bytes(4096),
    "text": b"a scan, promised",
    "noise": np.random.default_rng(0).bytes(4096),
    "deep JSON": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep enough to be read": b'{"name": ' + b"[" * 700 + b"]" * 700 + b"}",
    "key twice": b'{"training": {}, "labels": {"0": "a"}, "files": {}, "training": {}}',
    "NaN": b'{"training": NaN}',
    "long number": b'{"training": ' + b"9" * 5000 + b"}",
    "long hexadecimal": b"training: 0x" + b"F" * 50_000,
    "lone surrogate": b'{"name": "\\ud800"}',
    "latin": b'{"name": "\xe9"}',
    "control characters": b'{"a\x1b[2J\\u001b]0;owned\\u0007": 1}',
    "sexagesimal": b"training: " + b"1:" * 5000 + b"1.0",
    "no date": b"training: 2020-99-99",
    "empty tag": b"training: !!int ''",
    "zip bomb": b"",  # made below: a kilobyte that claims to unpack to a gigabyte
    "safetensors header beyond the file": struct.pack("<Q", 1 << 60) + b"{}",
    "safetensors of nothing": struct.pack("<Q", 2) + b"{}",
}
with io.BytesIO() as _buffer:
    with zipfile.ZipFile(_buffer, "w", zipfile.ZIP_DEFLATED) as _archive:
        _archive.writestr("archive/data.pkl", bytes(16 * MB))
    HOSTILE["zip bomb"] = _buffer.getvalue()
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def refused(load: Callable[..., Any], path: Path, kind: type[Exception] = UserError) -> str:
    """What the loader says: a line that names the file and says little else."""
    with pytest.raises(kind) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable(), repr(message)  # hence one line, and nothing a terminal obeys
    assert len(message) < len(str(path)) + 500
    return message


@pytest.mark.parametrize("song", SINGING)
@pytest.mark.parametrize("loader", LOADERS)
def test_no_code_runs_whoever_loads_it(tmp_path: Path, loader: str, song: str) -> None:
    name, load = LOADERS[loader]
    data = SINGING[song](Canary(tmp_path / "sung"))
    (tmp_path / name).write_bytes(data)
    refused(load, tmp_path / name)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("loader", LOADERS)
def test_whatever_it_is_a_clear_line_comes_back(tmp_path: Path, loader: str, content: str) -> None:
    name, load = LOADERS[loader]
    (tmp_path / name).write_bytes(HOSTILE[content])
    refused(load, tmp_path / name)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, loader: str) -> None:
    name, load = LOADERS[loader]
    refused(load, tmp_path / "none" / name)
    (tmp_path / "ring" / name).parent.mkdir()
    (tmp_path / "ring" / name).symlink_to(name)
    refused(load, tmp_path / "ring" / name)
    os.mkfifo(tmp_path / name)  # who opens it as a file waits for ever
    said = []
    thread = threading.Thread(
        target=lambda: said.append(refused(load, tmp_path / name)), daemon=True
    )
    thread.start()
    thread.join(20)
    assert said


@pytest.mark.parametrize("loader", ["manifest", "config", "model", "state", "sidecar", "splits"])
def test_what_is_far_too_large_is_not_read(tmp_path: Path, loader: str) -> None:
    name, load = LOADERS[loader]
    with (tmp_path / name).open("wb") as file:
        file.truncate(4 << 30)  # takes no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(load, tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ALIASES,
        ALIASES + "network: *a11",
        "network: &n {gate: single}\ntraining: *n",
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)),
        "network: &n\n  gate: *n",
    ],
    ids=["bomb", "used bomb", "plain alias", "merge bomb", "ring"],
)
def test_aliases_are_refused_so_none_can_explode(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert "alias" in refused(Config.load, tmp_path / "c.yaml", SettingsError)


def test_a_setting_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  steps: 10\n  seed: 1\n  steps: 20\n")
    assert "twice" in refused(Config.load, tmp_path / "c.yaml", SettingsError)


@pytest.mark.parametrize("text", ["$x", "${HOME}", "$(id)", "`id`", "%(a)s", "@training.steps"])
def test_expressions_are_text_and_no_number(text: str) -> None:
    with pytest.raises(SettingsError, match=r"must be a whole number, got") as caught:
        Config.from_dict({"training": {"steps": text}})
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 9000, "1:" * 900 + "1.0", "!!int ''"])
def test_numbers_beyond_all_bounds_given_by_hand_are_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Config().with_overrides([f"training.steps={text}"])


# --- lists of cases ------------------------------------------------------------------------------


def test_expressions_in_a_manifest_are_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/etc")
    values = {"name": "$HOME", "labels": {"0": "${bg}", "1": "$@liver"}}
    entry = {"id": "$x", "image": "$HOME/a.nii.gz", "label": "~/b.nii.gz", "group": "$(id)"}
    (tmp_path / "m.json").write_text(json.dumps(values | {"training": [entry]}))
    found = Manifest.load(tmp_path / "m.json")
    (case,) = found.training
    root = tmp_path.resolve()
    assert (case.image, case.label) == (root / "$HOME" / "a.nii.gz", root / "~" / "b.nii.gz")
    assert (found.name, found.labels[1], case.group) == ("$HOME", "$@liver", "$(id)")


def test_a_key_that_comes_twice_among_many_is_found_in_one_pass(tmp_path: Path) -> None:
    keys = [f'"{number}": 0' for number in range(300_000)]
    (tmp_path / "m.json").write_text("{" + ", ".join([*keys, keys[-1]]) + "}")
    assert "duplicate key '299999'" in refused(read_json, tmp_path / "m.json")


@pytest.mark.parametrize(
    "values",
    [
        {"name": ["x"] * 1000},
        {"name": {"a": 1}},
        {"licence": ["x"]},
        {"source": {"a": 1}},
        {"labels": {"0": "background", "1": "a\x1b[2J"}},
        {"labels": {"0": "background", "1": "a\nb"}},
        {"labels": {"0": "background", "1": ""}},
        {"labels": {"0": "background", "1": "x" * 10_000}},
        {"labels": {"x" * 10_000: [1, 2]}},
        {"modality": {"0": ["CT"] * 1000}},
        {"training": [{"image": "a.nii.gz", "group": "a\x1b[2J"}]},
        {"training": [{"image": "a.nii.gz", "id": ["x"] * 1000}]},
        {"training": [{"image": "x" * 10_000}]},
    ],
)
def test_names_are_short_plain_text(tmp_path: Path, values: dict[str, Any]) -> None:
    whole = {"labels": {"0": "background", "1": "liver"}, "training": []} | values
    (tmp_path / "m.json").write_text(json.dumps(whole))
    refused(Manifest.load, tmp_path / "m.json", DataError)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "7", '{"training": 7}', '{"training": [7]}', '{"training": {"a": 1}}'),
        *('{"training": [{"label": "../secret.nii.gz"}]}', '{"training": [{"label": 7}]}'),
        '{"channel_names": {"0": "CT"}, "dataset": {"../x": {"images": ["a.nii.gz"]}}}',
    ],
)
def test_a_data_sets_description_is_held_to_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(text)
    refused(list_cases, tmp_path / "data")


# --- models --------------------------------------------------------------------------------------

CONFIG = Config().with_overrides(["network.channels=[4, 8]", "network.gate=single"])


def weights() -> dict[str, torch.Tensor]:
    return build_network(CONFIG.network, 1, 2).state_dict()


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the weights' bytes of a sound model."""
    save_model(path, weights(), CONFIG, {0: "background", 1: "liver"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: dict[str, Any] | bytes, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def overlap(header: dict[str, Any], names: list[str]) -> None:
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def gap(header: dict[str, Any], names: list[str]) -> None:
    for name in names:
        header[name]["data_offsets"] = [8 + end for end in header[name]["data_offsets"]]


def beyond(header: dict[str, Any], names: list[str]) -> None:
    header[names[-1]]["data_offsets"][1] = 1 << 62


def backwards(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["data_offsets"].reverse()


def negative(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["data_offsets"][0] = -4


def huge_shape(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["shape"] = [1 << 40, 1 << 40]


def other_shape(header: dict[str, Any], names: list[str]) -> None:
    header["encoder.0.0.weight"]["shape"].reverse()


def other_type(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["dtype"] = "F16"


def no_type(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["dtype"] = ["F32"]


def entry_is_no_object(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]] = [0] * 1000


def no_metadata(header: dict[str, Any], names: list[str]) -> None:
    del header["__metadata__"]


def metadata_is_a_list(header: dict[str, Any], names: list[str]) -> None:
    header["__metadata__"] = ["x"]


def settings_are_nested(header: dict[str, Any], names: list[str]) -> None:
    header["__metadata__"][ABOUT] = "[" * 100_000


def settings_are_text(header: dict[str, Any], names: list[str]) -> None:
    header["__metadata__"][ABOUT] = '"text"'


def settings_hold_an_expression(header: dict[str, Any], names: list[str]) -> None:
    about = json.loads(header["__metadata__"][ABOUT])
    about["config"]["network"]["norm"] = "$__import__('os')"
    header["__metadata__"][ABOUT] = json.dumps(about)


def thousands_of_labels(header: dict[str, Any], names: list[str]) -> None:
    about = json.loads(header["__metadata__"][ABOUT])
    about["labels"] = {str(value): f"label {value}" for value in range(50_000)}
    header["__metadata__"][ABOUT] = json.dumps(about)


def label_commands_the_terminal(header: dict[str, Any], names: list[str]) -> None:
    about = json.loads(header["__metadata__"][ABOUT])
    about["labels"]["1"] = "\x1b[2J"
    header["__metadata__"][ABOUT] = json.dumps(about)


def infinite_label(header: dict[str, Any], names: list[str]) -> None:
    about = header["__metadata__"][ABOUT]
    header["__metadata__"][ABOUT] = about.replace('"labels": {', '"labels": 1e999, "x": {')


CHANGES = [overlap, gap, beyond, backwards, negative, huge_shape, other_shape, other_type]
CHANGES += [no_type, entry_is_no_object, no_metadata, metadata_is_a_list, settings_are_nested]
CHANGES += [settings_are_text, settings_hold_an_expression, thousands_of_labels]
CHANGES += [label_commands_the_terminal, infinite_label]


@pytest.mark.parametrize("change", CHANGES)
def test_a_models_header_is_not_taken_at_its_word(
    tmp_path: Path, change: Callable[..., Any]
) -> None:
    path = tmp_path / "m.safetensors"
    header, body = parts(path)
    change(header, sorted(header.keys() - {"__metadata__"}))
    with_header(path, header, body)
    refused(load_model, path, ModelError)


def test_a_huge_header_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header, body = parts(path)
    text = json.dumps(header).encode()
    with_header(path, text + b" " * (17 * MB), body)
    refused(load_model, path, ModelError)


def test_bytes_behind_the_weights_are_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with_header(path, *parts(path))
    load_model(path)  # sound as yet
    with path.open("r+b") as file:
        file.truncate(4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(load_model, path, ModelError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# --- states --------------------------------------------------------------------------------------


def state_of(payload: torch.Tensor, digest: str | None = None) -> bytes:
    data = payload.numpy().tobytes() if digest is None else b""
    return torch_zip({"payload": payload, "sha256": digest or hashlib.sha256(data).hexdigest()})


def test_a_payload_that_repeats_one_byte_is_not_laid_out(tmp_path: Path) -> None:
    endless = torch.zeros(1, dtype=torch.uint8).expand(1 << 40)  # a terabyte in one byte
    (tmp_path / "last.pt").write_bytes(state_of(endless, "0" * 64))
    refused(load_state, tmp_path / "last.pt", ModelError)


def test_a_bomb_within_the_payload_is_not_unpacked(tmp_path: Path) -> None:
    payload = torch.frombuffer(bytearray(HOSTILE["zip bomb"]), dtype=torch.uint8)
    (tmp_path / "last.pt").write_bytes(state_of(payload))
    assert "do not fit" in refused(load_state, tmp_path / "last.pt", ModelError)


@pytest.mark.parametrize(
    "value",
    [None, 7, [], {}, {"payload": 3, "sha256": ""}, {"payload": torch.ones(3), "sha256": ""}],
)
def test_other_things_that_torch_saved_are_no_state(tmp_path: Path, value: Any) -> None:
    (tmp_path / "last.pt").write_bytes(torch_zip(value))
    refused(load_state, tmp_path / "last.pt", ModelError)


def test_a_payload_that_would_run_code_does_not(tmp_path: Path) -> None:
    inner = torch_zip({"network": Canary(tmp_path / "sung")})
    payload = torch.frombuffer(bytearray(inner), dtype=torch.uint8)
    (tmp_path / "last.pt").write_bytes(state_of(payload))
    refused(load_state, tmp_path / "last.pt", ModelError)
    assert not (tmp_path / "sung").exists()


# --- prepared cases ------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A case as `cache` leaves it."""
    np.save(tmp_path / "image.npy", np.zeros((4, 3, 2), np.float16))
    np.save(tmp_path / "label.npy", np.zeros((4, 3, 2), np.uint8))
    np.save(tmp_path / "foreground.npy", np.zeros((0, 3), np.int32))
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.npy")}
    meta = {"case": "a", "shape": [4, 3, 2], "air": -1.0, "starts": [0, 0, 0], "bytes": sizes}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert load_case("a", tmp_path) is not None
    return tmp_path


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("name", ["meta.json", "image.npy", "foreground.npy"])
def test_a_prepared_case_with_a_strange_file_is_prepared_anew(
    prepared: Path, name: str, content: str
) -> None:
    (prepared / name).write_bytes(HOSTILE[content])
    assert load_case("a", prepared) is None


@pytest.mark.parametrize("song", SINGING)
def test_a_prepared_case_runs_no_code(prepared: Path, song: str) -> None:
    canary = prepared / "sung"
    (prepared / "image.npy").write_bytes(SINGING[song](Canary(canary)))
    case = load_case("a", prepared)
    assert case is None
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1e999, 3, 2]},
        {"shape": [-4, -3, 2]},
        {"starts": [0, 5, 0]},
        {"starts": []},
        {"starts": [-1, 0, 0]},
        {"starts": [1e999, 0]},
        {"air": 1e999},
        {"air": None},
        {"bytes": []},
    ],
)
def test_facts_that_do_not_fit_the_arrays_are_not_believed(
    prepared: Path, change: dict[str, Any]
) -> None:
    meta = json.loads((prepared / "meta.json").read_text()) | change
    (prepared / "meta.json").write_text(json.dumps(meta))
    assert load_case("a", prepared) is None


def npy(shape: str, body: bytes = b"", descr: str = "'<f2'") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


@pytest.mark.parametrize(
    "data",
    [
        npy("(1099511627776,)"),
        npy("(4, 3, 2)"),
        npy("(-1,)"),
        npy("(4, 3"),
        npy("(" * 3000 + ")" * 3000),
        npy("(4, 3, 2)", bytes(200), "'|O'"),
        npy("(4, 3, 2)", bytes(200), "'|S2147483647'"),
        npy("__import__('os').system('true')"),
    ],
    ids=["huge", "empty", "negative", "cut", "deep", "objects", "strings", "code"],
)
def test_an_array_that_claims_more_than_it_holds_is_not_taken(prepared: Path, data: bytes) -> None:
    (prepared / "image.npy").write_bytes(data)
    case = load_case("a", prepared)
    assert case is None


def test_an_array_that_is_lost_after_the_start_is_named(prepared: Path) -> None:
    case = load_case("a", prepared)
    assert case is not None
    (prepared / "image.npy").write_bytes(npy("(" * 3000 + ")" * 3000))
    with pytest.raises(FileError, match=r"case a: .*image\.npy cannot be read"):
        case.image()


def test_the_folder_of_a_model_may_hold_anything(tmp_path: Path) -> None:
    for name in ("model.safetensors", "last.pt"):
        (tmp_path / name).mkdir()
    with pytest.raises(ModelError):
        load_model(tmp_path)
    with pytest.raises(ModelError):
        load_state(tmp_path / "last.pt")


def test_a_folder_of_slices_that_are_none_is_no_series(tmp_path: Path) -> None:
    for number, data in enumerate([*HOSTILE.values(), bytes(128) + b"DICM" + b"\xff" * 64]):
        (tmp_path / f"{number}.dcm").write_bytes(data)
    refused(read_volume, tmp_path)
