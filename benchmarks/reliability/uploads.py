"""What strangers send to the service: right answers, clear refusals, and no harm.

    python -m benchmarks.reliability.uploads FOLDER [--small]

Sound scans, the files of the corpora (and of a folder of hostile ones), ZIP bombs, archives whose
paths lead outside, clients that hardly send and clients that go away are sent to `attunet3d serve`.
Harm is: the server ends or answers 5xx, takes more than 2 GB, writes outside of a job's folder,
leaves a place in the queue taken, leaks a name, or does not serve a sound scan meanwhile.
"""

import gzip
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import psutil

from benchmarks.reliability import inputs
from benchmarks.reliability.bombs import zeros
from benchmarks.reliability.corpus_files import load_index
from benchmarks.reliability.corpus_recipes import make_corpus
from benchmarks.reliability.fork_server import ENVIRONMENT
from benchmarks.reliability.model import make_model
from benchmarks.reliability.rows import row
from benchmarks.reliability.s3_server import HOST, free_port

SHAPE = (36, 32, 24)
MOST_MB = 2000
SLIPS = ("../../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil")
GIGABYTE = 1 << 30


@dataclass
class Service:
    """A running `attunet3d serve`, and what was noticed."""

    client: httpx.Client
    process: psutil.Process
    folder: Path
    said: Path
    peak_mb: float = 0.0
    harm: list[str] = field(default_factory=list)

    def outcome(self, content: bytes) -> tuple[str, str, str]:
        """What becomes of an upload: "done", "failed" or "refused"; the words; the job's id."""
        answer = self.client.post("/jobs", content=content)
        self.look(answer.status_code)
        if answer.status_code != 201:
            return "refused", answer.text, ""
        job = answer.json()
        while job["state"] in ("queued", "running"):
            time.sleep(0.02)
            job = self.client.get(f"/jobs/{job['id']}").json()
        return job["state"], job["error"] or "", job["id"]

    def look(self, status: int = 200) -> None:
        """Notice a server's error, and how much memory its processes take."""
        if status >= 500:
            self.harm.append(f"status {status}")
        memory = 0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                memory = max(memory, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        self.peak_mb = max(self.peak_mb, memory / 1e6)

    def is_right(self, number: int) -> bool:
        """Whether a sound scan gets its own answer."""
        content, inside = scan_of(number)
        state, _, job = self.outcome(content)
        if state != "done":
            return False
        answer = self.client.get(f"/jobs/{job}/label-map")
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        return bool(((np.asarray(image.dataobj) > 0) == inside).all())


def run(folder: Path, small: bool, adversarial: Path | None = None) -> dict[str, Any]:
    """Send everything, and return rows of what was sent and what came of it."""
    corpora = [folder / "corpus"]
    make_corpus(corpora[0], True)
    corpora += [adversarial] if adversarial is not None else []
    tried, wrong = 0, []
    with _service(folder) as service:
        for corpus in corpora:
            for entry in load_index(corpus):
                path = corpus / entry.file
                if path.suffix in (".hdr", ".img") or ".hdr" in path.suffixes or path.is_dir():
                    continue  # one file of two, which cannot be sent
                tried += 1
                if fault := _fault(service, entry, path.read_bytes()):
                    wrong.append(f"{corpus.name}/{entry.file}: {fault}")
        hostile, taken = dict(_hostile(small)), []
        for name, content in hostile.items():
            state, _, _ = service.outcome(content)
            taken += [f"{name}: done"] * (state == "done")
        clients = _bad_clients(service, 4 if small else 40)
        sound = 4 if small else 40
        right = sum(map(service.is_right, range(sound)))
        _look_around(service, folder)
    harm = service.harm + [f"{service.peak_mb:.0f} MB"] * (service.peak_mb > MOST_MB)
    return {
        "rows": [
            row("uploads: files of the corpora", tried, len(wrong), "done or refused as due"),
            row(
                "uploads: bombs, slips, torn files", len(hostile), len(taken), "none gives a result"
            ),
            row("uploads: clients that hang or go away", clients, 0, "others are served meanwhile"),
            row("uploads: sound scans in between", sound, sound - right, "their own label map"),
            row(
                "uploads that did harm",
                tried + len(hostile) + clients + sound,
                len(harm),
                f"peak {service.peak_mb:.0f} MB of a process",
            ),
        ],
        "troubles": wrong + taken + harm,
    }


def scan_of(number: int) -> tuple[bytes, Any]:
    """A ball of 400 HU in 0 HU whose place and size belong to this number alone; and its mask."""
    rng = np.random.default_rng(number)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    middle = rng.uniform(10, np.array(SHAPE) - 10)
    inside = np.linalg.norm(index - middle, axis=-1) < rng.uniform(4, 8)
    image = nibabel.Nifti1Image(
        np.where(inside, 400, 0).astype(np.int16), np.diag([-2.0, -2, 2, 1])
    )
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes()), inside


@contextmanager
def _service(folder: Path) -> Iterator[Service]:
    model, port, said = make_model(folder / "model"), free_port(), folder / "said.txt"
    command = [sys.executable, "-m", "attunet3d", "serve", str(model), "--device", "cpu"]
    command += ["--port", str(port), "--folder", str(folder / "served")]
    with said.open("wb") as file, httpx.Client(base_url=f"http://{HOST}:{port}", timeout=120) as c:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT}
        )
        try:
            for _ in range(3000):
                try:
                    c.get("/health").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            service = Service(c, psutil.Process(process.pid), folder / "served", said)
            yield service
            if process.poll() is not None:
                service.harm.append(f"the server ended with {process.poll()}")
        finally:
            process.terminate()
            process.wait()


def _fault(service: Service, entry: Any, content: bytes) -> str | None:
    """What is not as it should be with a file of a corpus."""
    state, words, job = service.outcome(content)
    texts = words + service.said.read_text(encoding="utf-8", errors="replace")
    if job and state == "done":
        texts += service.client.get(f"/jobs/{job}/sidecar").text
    if any(secret in texts for secret in entry.must_not_leak):
        service.harm.append(f"{entry.file}: leaks")
    if "internal error" in words or "the process that segmented it ended" in words:
        return words
    due = {"refuse": {"refused", "failed"}}.get(entry.expect, {"done"})
    return None if state in due or entry.either else f"{state}: {words}"


def _zipped(members: Iterator[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def _hostile(small: bool) -> Iterator[tuple[str, bytes]]:
    """Uploads of which nothing may come."""
    for name in SLIPS:
        yield f"slip {name}", _zipped(iter([(name, b"x" * 400), ("b", b"y" * 400)]))
    bomb = _zipped((f"{n}", bytes(GIGABYTE // 8)) for n in range(2 if small else 40))
    yield "zip bomb", bomb
    yield "zip bomb in a zip", _zipped(iter([("bomb.zip", bomb)]))
    yield "gzip bomb", zeros(GIGABYTE * (1 if small else 4))
    yield "many members", _zipped((str(n), b"") for n in range(20_001))
    yield "torn archive", bomb[: len(bomb) // 2]
    yield "empty archive", _zipped(iter([]))
    yield "empty", b""
    yield "text", b"hello"
    content = scan_of(1)[0]
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"scan cut at {share}", content[: int(share * len(content))]


def _bad_clients(service: Service, count: int) -> int:
    """Clients that promise much and send little, at once; sound scans get their answers."""
    url, stop = service.client.base_url, threading.Event()
    room = service.client.get("/ready").json()["room"]

    def hang(number: int) -> None:
        with socket.create_connection((url.host, int(url.port or 80))) as connection:
            head = "POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
            connection.sendall(head.encode()[: 20 if number % 3 == 0 else None])
            for _ in range(number % 5):
                if stop.wait(0.5):
                    return
                connection.sendall(b"x")
            stop.wait(3 if number % 2 else 25)  # goes away, or says nothing for too long

    with ThreadPoolExecutor(count) as pool:
        at_once = max(1, room - 4)  # those that wait have a place each
        for first in range(0, count, at_once):
            waiting = [pool.submit(hang, n) for n in range(first, min(count, first + at_once))]
            if not service.is_right(1000 + first):
                service.harm.append("a sound scan was not served beside clients that hang")
            for client in waiting:
                try:
                    client.result(60)
                except OSError:  # cut off, as it should be
                    continue
    ends = time.monotonic() + 60
    while service.client.get("/ready").json()["room"] != room:
        if time.monotonic() > ends:
            service.harm.append("places in the queue stay taken")
            break
        time.sleep(0.1)
    return count


def _look_around(service: Service, folder: Path) -> None:
    """Notice files where none should be."""
    service.look(service.client.get("/health").status_code)
    inside = {"model", "served", "corpus", "said.txt"}
    strange = [path.name for path in folder.iterdir() if path.name not in inside]
    strange += [str(path) for path in (Path("/tmp/evil"), folder.parent / "evil") if path.exists()]
    strange += [p.name for p in service.folder.iterdir() if p.name != "jobs" and p.name[0] != "."]
    service.harm += [f"{name}: lies where it should not" for name in strange]


if __name__ == "__main__":
    inputs.main(run, __doc__)
