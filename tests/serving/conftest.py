"""A service in a process of its own, scans whose answer is known, and a browser."""

import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import psutil
import pytest
from httpx import Response
from pydicom import Dataset

from attunet3d.core import Mask
from benchmarks.reliability.model import make_model
from tests.evaluation.conftest import browser as browser
from tests.evaluation.conftest import tab as tab
from tests.imaging.source_series import make_series
from tests.known_network import write_scan

ROOT = Path(__file__).parents[2]
TOKEN = "a token of this test"
SHAPE = (36, 32, 24)


def scan_of(number: int, folder: Path) -> tuple[bytes, Mask]:
    """A ball of 400 HU in 0 HU whose place and size belong to this number alone."""
    rng = np.random.default_rng(number)
    middle = rng.uniform(10, np.array(SHAPE) - 10)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    inside = np.linalg.norm(index - middle, axis=-1) < rng.uniform(4, 8)
    array = np.where(inside, 400, 0).astype(np.int16)
    return write_scan(folder / f"scan{number}.nii.gz", array).read_bytes(), inside


def zipped_series() -> tuple[bytes, list[Dataset]]:
    """A DICOM series as an archive, and its slices."""
    stream = io.BytesIO()
    slices, _ = make_series("axial")
    with zipfile.ZipFile(stream, "w") as archive:
        for number, slice_ in enumerate(slices):
            part = io.BytesIO()
            slice_.save_as(part, enforce_file_format=True)
            archive.writestr(f"PAT/{number}.dcm", part.getvalue())
    return stream.getvalue(), slices


class Server:
    """`attunet3d serve` in a process of its own."""

    def __init__(self, model: Path, folder: Path, *options: Any, token: Any = TOKEN) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "attunet3d", "serve", str(model), "--device", "cpu"]
        command += ["--port", str(port), "--folder", str(folder), *options]
        env = os.environ | {"PYTHONPATH": str(ROOT), "ATTUNET3D_TOKEN": token}
        self.log = folder.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)
        ends = time.monotonic() + 120
        while True:
            try:
                self.client.get("/health").raise_for_status()
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.said()
                assert time.monotonic() < ends, self.said()
                time.sleep(0.1)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def submit(self, content: bytes) -> Response:
        return self.client.post("/jobs", content=content)

    def wait(self, job_id: str) -> dict[str, Any]:
        while (job := self.client.get(f"/jobs/{job_id}").json())["state"] in ("queued", "running"):
            time.sleep(0.05)
        found: dict[str, Any] = job
        return found

    def label_map(self, job_id: str) -> Mask:
        answer = self.client.get(f"/jobs/{job_id}/label-map").raise_for_status()
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        return np.asarray(image.dataobj) > 0

    def peak_mb(self) -> float:
        """The most memory that one of its processes ever took."""
        own = psutil.Process(self.process.pid)
        texts = [
            Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            for process in [own, *own.children(recursive=True)]
        ]
        return max(int(text.split("VmHWM:")[1].split()[0]) / 1e3 for text in texts)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.client.close()
        return status


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(model, tmp_path_factory.mktemp("serve") / "jobs", "--waiting", "60")
    yield running
    running.stop()
