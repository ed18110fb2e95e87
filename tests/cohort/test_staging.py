"""Scans and results in object stores: nothing torn counts as done, and the next call goes on."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from attunet3d.cohort.object_store import ObjectStore, is_url
from attunet3d.core import DataError, FileError, SettingsError, WriteError
from attunet3d.pipelines import infer
from benchmarks.reliability.s3_server import BUCKET, Proxy, S3Server, environment
from tests.cohort.conftest import write_and_segment

CASES = 4
needs_s3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "s3fs"))), reason="the extra [s3] is missing"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, scans of which one cannot be read, and what a call makes of them here."""
    return write_and_segment(tmp_path_factory.mktemp("here"), CASES)


@pytest.fixture
def memory(folder: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """The store of this process, with the scans in it."""
    system = fsspec.filesystem("memory")
    for path in (folder / "scans").iterdir():
        system.pipe_file(f"/in/{path.name}", path.read_bytes())
    system.pipe_file("/model/run.safetensors", (folder / "model.safetensors").read_bytes())
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "alone").glob("*.nii.gz")}


def call(*arguments: str) -> int:
    status: int = infer.main([*arguments, "--device", "cpu"])
    return status


MEMORY = "memory://model/run.safetensors", "memory://in", "memory://out/labels"


def test_results_are_those_of_a_call_here_and_what_is_missing_is_done(
    folder: Path, memory: fsspec.AbstractFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*MEMORY) == 1
    names = {name.removeprefix("/out/labels/") for name in memory.find("/out")}
    assert names == {path.name for path in (folder / "alone").iterdir()}
    for name, content in maps(folder).items():
        assert memory.cat_file(f"/out/labels/{name}") == content
    failures = json.loads(memory.cat_file("/out/labels/failures.json"))
    assert failures["text"].startswith("memory://in/text.nii.gz: is not a NIfTI file")
    table = memory.cat_file("/out/labels/statistics.csv").decode()
    assert len({line.split(",")[0] for line in table.splitlines()[1:]}) == CASES
    kept = memory.cat_file("/out/labels/scan_1.json")
    memory.rm_file("/out/labels/scan_2.json")
    memory.rm_file("/in/text.nii.gz")
    assert call(*MEMORY) == 0
    assert f"memory://out/labels: 1 done, {CASES - 1} already done" in capsys.readouterr().err
    assert memory.cat_file("/out/labels/scan_1.json") == kept
    assert memory.exists("/out/labels/scan_2.json")
    assert not memory.exists("/out/labels/failures.json")


def test_a_manifest_in_a_store_names_scans_beside_it(memory: fsspec.AbstractFileSystem) -> None:
    case = {"id": "one", "image": "scan_0.nii.gz"}
    content = {"name": "two", "labels": {"0": "background", "1": "noise"}, "test": [case]}
    memory.pipe_file("/in/cases.json", json.dumps(content).encode())
    assert call(MEMORY[0], "memory://in/cases.json", MEMORY[2]) == 0
    assert [name for name in memory.find("/out") if name.endswith("gz")] == [
        "/out/labels/one.nii.gz"
    ]


def test_what_is_damaged_on_its_way_is_told_and_the_case_is_not_done(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(memory).put_file

    def cut(self: fsspec.AbstractFileSystem, here: str, there: str) -> None:
        put(self, here, there)
        if there.endswith("scan_3.nii.gz"):
            self.pipe_file(there, self.cat_file(there)[:-1])

    monkeypatch.setattr(type(memory), "put_file", cut)
    assert call(*MEMORY) == 1
    failures = json.loads(memory.cat_file("/out/labels/failures.json"))
    assert "what is there is not what was sent" in failures["scan_3"]
    assert not memory.exists("/out/labels/scan_3.json")
    monkeypatch.undo()
    assert call(*MEMORY) == 1
    assert memory.exists("/out/labels/scan_3.json")


def test_what_cannot_be_fetched_fails_alone(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = type(memory).get_file

    def refuse(self: fsspec.AbstractFileSystem, there: str, here: str) -> None:
        if there.endswith("scan_1.nii.gz"):
            raise PermissionError("403 Forbidden")
        get(self, there, here)

    monkeypatch.setattr(type(memory), "get_file", refuse)
    assert call(*MEMORY) == 1
    failures = json.loads(memory.cat_file("/out/labels/failures.json"))
    assert set(failures) == {"scan_1", "text"}
    assert "memory://in/scan_1.nii.gz: cannot be fetched (403 Forbidden)" in failures["scan_1"]


def test_no_object_leads_out_of_the_folder_of_copies(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    store = ObjectStore(tmp_path / "store")
    for url in ("s3://bucket/../../../x", "s3://..", "s3://../x"):
        with pytest.raises(DataError):
            store.path(url)
    assert store.url(store.path("s3://bucket/a/b.nii.gz")) == "s3://bucket/a/b.nii.gz"
    assert not is_url("C:\\scans")
    with pytest.raises(FileError, match="no such file or folder"):
        store.listed("memory://nothing")


def test_a_shard_needs_a_folder_of_its_own(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(SettingsError, match="which has no locks"):
        call(*MEMORY, "--shard", "1/2")


# --- S3 over HTTP ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[S3Server]:
    with S3Server() as server:
        server.put_folder("in", folder / "scans")
        server.put("model.safetensors", (folder / "model.safetensors").read_bytes())
        yield server


def infer_s3(port: int, out: str) -> tuple[int, str]:
    names = [f"s3://{BUCKET}/{name}" for name in ("model.safetensors", "in", out)]
    command = [sys.executable, "-m", "attunet3d", "infer", *names, "--device", "cpu"]
    done = subprocess.run(
        command, env=environment(port), stderr=subprocess.PIPE, encoding="utf-8", timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def finished(server: S3Server, out: str, wanted: dict[str, bytes]) -> int:
    """How many cases count as done; each must be whole."""
    objects = server.objects(out)
    sidecars = [name for name in objects if name.startswith("scan_") and name.endswith(".json")]
    for name in sidecars:
        for part, checksum in json.loads(objects[name])["files"].items():
            assert hashlib.sha256(objects[part]).hexdigest() == checksum
            assert objects[part] == wanted[part]
    return len(sidecars)


@needs_s3
def test_a_network_that_fails_midway_leaves_nothing_torn_and_the_next_call_goes_on(
    folder: Path, server: S3Server
) -> None:
    scans = sum(path.stat().st_size for path in (folder / "scans").iterdir())
    model = (folder / "model.safetensors").stat().st_size
    with Proxy(server.port, budget=scans + model + 40_000) as proxy:
        status, said = infer_s3(proxy.port, "cut")
    assert proxy.was_cut
    assert status in (1, 2), said
    before = finished(server, "cut", maps(folder))
    assert before < CASES
    status, said = infer_s3(server.port, "cut")
    assert status == 1
    assert finished(server, "cut", maps(folder)) == CASES
    assert not [name for name in server.objects("cut") if name.startswith(".")]


@needs_s3
def test_connections_that_are_cut_now_and_then_and_slow_answers_cost_only_time(
    folder: Path, server: S3Server
) -> None:
    with Proxy(server.port, connection=20_000, cuts=4, delay_s=0.002) as proxy:
        status, said = infer_s3(proxy.port, "slow")
    assert proxy.was_cut == 4
    assert status == 1, said
    assert f"{CASES} done, 1 failed" in said
    assert finished(server, "slow", maps(folder)) == CASES


def test_an_error_of_the_store_is_one_of_writing(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr(type(memory), "put_file", full)
    store = ObjectStore(tmp_path)
    path = store.path("memory://out/a")
    path.parent.mkdir(parents=True)
    path.write_text("a")
    with pytest.raises(WriteError, match="memory://out/a: cannot be written"):
        store.send(path)
