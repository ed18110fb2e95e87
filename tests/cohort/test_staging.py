"""Scans and results in object stores: nothing torn counts as done, and the next call goes on."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import SimpleITK

from attunet3d.cohort.object_store import ObjectStore, is_url
from attunet3d.core import DataError, FileError, SettingsError, WriteError
from attunet3d.pipelines import infer
from tests.cohort.conftest import CASES, maps


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
    for name, content in maps(folder / "alone").items():
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


@pytest.mark.parametrize(
    ("ending", "other"), [("mhd", "raw"), ("mhd", "zraw"), ("nhdr", "raw"), ("hdr", "img")]
)
def test_voxels_in_a_file_of_their_own_are_fetched_with_their_header(
    folder: Path, memory: fsspec.AbstractFileSystem, tmp_path: Path, ending: str, other: str
) -> None:
    image = SimpleITK.ReadImage(str(folder / "scans" / "scan_0.nii.gz"))
    SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"), useCompression=other == "zraw")
    for path in tmp_path.iterdir():
        memory.pipe_file(f"/pairs/{path.name}", path.read_bytes())
    case = {"id": "one", "image": f"a.{ending}"}
    content = {"name": "two", "labels": {"0": "background", "1": "noise"}, "test": [case]}
    memory.pipe_file("/pairs/cases.json", json.dumps(content).encode())
    assert call(MEMORY[0], "memory://pairs/cases.json", MEMORY[2]) == 0
    assert memory.exists("/out/labels/one.nii.gz")
    memory.rm_file(f"/pairs/a.{other}")
    assert call(MEMORY[0], "memory://pairs/cases.json", "memory://out/torn") == 1
    failure = json.loads(memory.cat_file("/out/torn/failures.json"))["one"]
    assert failure.startswith(f"memory://pairs/a.{ending}")


def test_an_error_keeps_its_value_and_cure_and_names_the_url(
    memory: fsspec.AbstractFileSystem,
) -> None:
    memory.pipe_file("/in/cases.json", b"[]")
    with pytest.raises(DataError, match=r"^memory://in/cases\.json: ") as caught:
        call(MEMORY[0], "memory://in/cases.json", MEMORY[2])
    assert str(caught.value.path) == "memory://in/cases.json"
    assert caught.value.cure is not None
    assert caught.value.cure in str(caught.value)


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
    memory.pipe_file("/in/pair.mhd", b"ElementDataFile = pair.raw\n")
    memory.pipe_file("/in/pair.raw", b"voxels")

    def refuse(self: fsspec.AbstractFileSystem, there: str, here: str) -> None:
        if there.endswith(("scan_1.nii.gz", "pair.raw")):
            raise PermissionError("403 Forbidden")
        get(self, there, here)

    monkeypatch.setattr(type(memory), "get_file", refuse)
    assert call(*MEMORY) == 1
    failures = json.loads(memory.cat_file("/out/labels/failures.json"))
    assert set(failures) == {"pair", "scan_1", "text"}
    assert "memory://in/pair.raw: cannot be fetched (403 Forbidden)" in failures["pair"]
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
