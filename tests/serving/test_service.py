"""The service over HTTP, with real worker processes and a model whose answer is known."""

import io
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest

from attunet3d.cohort import ModelOptions
from attunet3d.core import SettingsError
from attunet3d.serving import ServerOptions, serve
from tests.serving.conftest import TOKEN, Server, scan_of, zipped_series

CLIENTS = 50
MOST_MB = 2000  # of any process of the service


def test_fifty_clients_at_once_each_get_their_own_answer(server: Server, tmp_path: Path) -> None:
    scans = [scan_of(number, tmp_path) for number in range(CLIENTS)]
    together = threading.Barrier(CLIENTS)

    def one(scan: Any) -> Any:
        content, inside = scan
        together.wait()
        answer = server.submit(content)
        assert answer.status_code == 201, answer.text
        job = server.wait(answer.json()["id"])
        assert job["state"] == "done", job
        return job["id"], bool((server.label_map(job["id"]) == inside).all())

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one, scans))
    assert len({job_id for job_id, _ in answers}) == CLIENTS
    assert all(right for _, right in answers)
    assert server.peak_mb() < MOST_MB


def test_sidecar_report_and_states_are_there(server: Server, tmp_path: Path) -> None:
    content, inside = scan_of(77, tmp_path)
    job_id = server.submit(content).json()["id"]
    assert server.wait(job_id)["state"] == "done"
    sidecar = server.client.get(f"/jobs/{job_id}/sidecar").json()
    assert sidecar["volumes"]["ball"]["voxels"] == np.count_nonzero(inside)
    report = server.client.get(f"/jobs/{job_id}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert 'id="case-0"' in report.text
    assert server.client.get(f"/jobs/{job_id}/dicom-seg").status_code == 409
    assert server.client.delete(f"/jobs/{job_id}").json()["state"] == "done"
    assert server.client.get(f"/jobs/{job_id}").status_code == 404


def test_the_token_is_asked_for(server: Server) -> None:
    with httpx.Client(base_url=server.client.base_url) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/ready").status_code == 200
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            assert stranger.post("/jobs", content=b"x", headers=wrong).status_code == 401
            assert stranger.get("/metrics", headers=wrong).status_code == 401


@pytest.mark.parametrize("content", [b"", b"no scan", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_scan_is_refused_and_leaves_nothing(server: Server, content: bytes) -> None:
    before = server.client.get("/ready").json()["room"]
    assert server.submit(content).status_code == 422
    assert server.client.get("/ready").json()["room"] == before


def test_a_scan_that_cannot_be_read_fails_without_our_paths(server: Server) -> None:
    job_id = server.submit(b"\x1f\x8b" + bytes(300)).json()["id"]
    job = server.wait(job_id)
    assert job["state"] == "failed"
    assert job["error"].startswith("scan.nii.gz")
    assert server.client.get(f"/jobs/{job_id}/label-map").status_code == 409


def test_a_client_that_goes_away_leaves_its_place(server: Server) -> None:
    before = server.client.get("/ready").json()["room"]
    address = server.client.base_url
    with socket.create_connection((address.host, address.port)) as connection:
        head = f"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + bytes(1000))
    ends = time.monotonic() + 20
    while server.client.get("/ready").json()["room"] != before:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_metrics_count_uploads_and_jobs(server: Server) -> None:
    text = server.client.get("/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts['attunet3d_uploads_total{outcome="taken"}']) >= CLIENTS
    assert float(counts['attunet3d_jobs{state="done"}']) >= CLIENTS


def test_a_full_queue_answers_429_and_when_to_try_again(model: Path, tmp_path: Path) -> None:
    server = Server(model, tmp_path / "jobs", "--waiting", "0")
    answer = server.submit(b"x")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
    assert server.client.get("/ready").status_code == 503
    server.stop()


def test_a_stopped_server_hands_its_jobs_to_the_next(model: Path, tmp_path: Path) -> None:
    first = Server(model, tmp_path / "jobs")
    scans = [scan_of(number, tmp_path) for number in range(200, 206)]
    ids = [first.submit(content).json()["id"] for content, _ in scans]
    assert first.stop() in (0, 143, -signal.SIGTERM)
    states = [
        json.loads(path.read_text())["state"] for path in (tmp_path / "jobs").rglob("job.json")
    ]
    assert len(states) == len(ids)
    assert set(states) <= {"done", "queued"}
    second = Server(model, tmp_path / "jobs")
    for job_id, (_, inside) in zip(ids, scans, strict=True):
        assert second.wait(job_id)["state"] == "done"
        assert (second.label_map(job_id) == inside).all()
    second.stop()


def test_a_killed_worker_costs_its_job_and_no_other(model: Path, tmp_path: Path) -> None:
    server = Server(model, tmp_path / "jobs")
    content, inside = scan_of(300, tmp_path)
    first = server.submit(content).json()["id"]
    assert server.wait(first)["state"] == "done"
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    for child in children.read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    second = server.submit(content).json()["id"]
    assert "ended" in (server.wait(second)["error"] or "ended")
    third = server.submit(content).json()["id"]
    assert server.wait(third)["state"] == "done"
    assert (server.label_map(third) == inside).all()
    server.stop()


def test_other_machines_need_a_token() -> None:
    with pytest.raises(SettingsError, match="without a token"):
        serve(ModelOptions(models=["run"]), ServerOptions(host="0.0.0.0"))


def test_a_series_is_taken_as_an_archive_and_no_log_names_its_patient(server: Server) -> None:
    content, slices = zipped_series()
    job_id = server.submit(content).json()["id"]
    job = server.wait(job_id)
    assert job["state"] == "done", job
    assert job["results"] == ["label-map", "sidecar", "dicom-seg", "report"]
    assert server.label_map(job_id).shape == (slices[0].Columns, slices[0].Rows, len(slices))
    seg = pydicom.dcmread(io.BytesIO(server.client.get(f"/jobs/{job_id}/dicom-seg").content))
    assert seg.Modality == "SEG"
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
    said = server.said()
    assert re.search(f"job={job_id} state=done seconds=[0-9.]+$", said, re.MULTILINE)
    for tag in ("Doe", "Jane", "4711", "PAT"):  # of the series' patient, and of the archive
        assert tag not in said
