"""Scans and results on an S3 server over HTTP, through connections that are cut or slow."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from attunet3d.cohort import object_store
from attunet3d.cohort.object_store import ObjectStore
from attunet3d.core import WriteError
from benchmarks.reliability.s3_server import BUCKET, Proxy, S3Server, environment
from tests.cohort.conftest import CASES, maps

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "s3fs"))), reason="the extra [s3] is missing"
)
LARGE = f"s3://{BUCKET}/parts/large"


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


def test_a_network_that_fails_midway_leaves_nothing_torn_and_the_next_call_goes_on(
    folder: Path, server: S3Server
) -> None:
    scans = sum(path.stat().st_size for path in (folder / "scans").iterdir())
    model = (folder / "model.safetensors").stat().st_size
    with Proxy(server.port, budget=scans + model + 40_000) as proxy:
        status, said = infer_s3(proxy.port, "cut")
    assert proxy.was_cut
    assert status in (1, 2), said
    before = finished(server, "cut", maps(folder / "alone"))
    assert before < CASES
    for key in ("cut/scan_0.nii.gz", "cutting/a"):  # parts that a killed call has left
        server.begin_upload(key)
    status, said = infer_s3(server.port, "cut")
    assert status == 1
    assert finished(server, "cut", maps(folder / "alone")) == CASES
    assert server.unfinished() == ["cutting/a"]
    assert not [name for name in server.objects("cut") if name.startswith(".")]


def test_connections_that_are_cut_now_and_then_and_slow_answers_cost_only_time(
    folder: Path, server: S3Server
) -> None:
    with Proxy(server.port, connection=20_000, cuts=4, delay_s=0.002) as proxy:
        status, said = infer_s3(proxy.port, "slow")
    assert proxy.was_cut == 4
    assert status == 1, said
    assert f"{CASES} done, 1 failed" in said
    assert finished(server, "slow", maps(folder / "alone")) == CASES


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ObjectStore]]:
    """Makes stores that reach the server at a port, with a file of three parts as `s3://…/large`."""
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)  # the least that S3 takes
    monkeypatch.setattr(object_store, "IN_PARTS", 10 << 20)
    content = np.random.default_rng(0).bytes(14 << 20)

    def make(port: int) -> ObjectStore:
        s3fs.S3FileSystem.clear_instance_cache()  # it keeps connections to the port before
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        store = ObjectStore(tmp_path)
        path = store.path(LARGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return store

    yield make
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_upload_in_parts_outlives_cut_connections_and_slow_answers(
    server: S3Server, large: Callable[..., ObjectStore]
) -> None:
    with Proxy(server.port, connection=4 << 20, cuts=3, delay_s=0.01, chunk=1 << 16) as proxy:
        store = large(proxy.port)
        store.send(store.path(LARGE))
    assert proxy.was_cut == 3
    assert server.get("parts/large") == store.path(LARGE).read_bytes()
    assert "parts/large" not in server.unfinished()


def test_an_upload_in_parts_that_fails_shows_nothing_and_leaves_nothing_for_long(
    server: S3Server, large: Callable[..., ObjectStore], caplog: pytest.LogCaptureFixture
) -> None:
    server.delete("parts/large")
    with Proxy(server.port, budget=12 << 20, chunk=1 << 16) as proxy:
        store = large(proxy.port)
        with pytest.raises(WriteError, match=f"{LARGE}: cannot be written"):
            store.send(store.path(LARGE))
    assert not store.has(store.path(LARGE))
    assert server.objects("parts") == {}
    assert "parts of earlier uploads may be left" in caplog.text  # the network was gone
    assert "parts/large" in server.unfinished()
    large(server.port).sweep(f"s3://{BUCKET}/parts")
    assert "parts/large" not in server.unfinished()


@pytest.mark.parametrize("came", [True, False])
def test_parts_whose_completion_fails_count_if_they_came_and_are_discarded_else(
    server: S3Server,
    large: Callable[..., ObjectStore],
    monkeypatch: pytest.MonkeyPatch,
    came: bool,
) -> None:
    server.delete("parts/large")
    store = large(server.port)
    kind = type(fsspec.core.url_to_fs(LARGE, use_listings_cache=False)[0])
    call_s3 = kind._call_s3

    async def refuse(self: object, method: str, *rest: object, **options: object) -> object:
        if method != "complete_multipart_upload" or came:
            answer = await call_s3(self, method, *rest, **options)
        if method == "complete_multipart_upload":
            raise PermissionError("no answer")
        return answer

    monkeypatch.setattr(kind, "_call_s3", refuse)
    if came:
        store.send(store.path(LARGE))
    else:
        with pytest.raises(WriteError, match="no answer"):
            store.send(store.path(LARGE))
    assert store.has(store.path(LARGE)) == came
    assert set(server.objects("parts")) == ({"large"} if came else set())
    assert "parts/large" not in server.unfinished()
