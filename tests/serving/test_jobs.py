"""The queue with workers made for the test: order, limits, cancelling, restarts."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from attunet3d.serving import AppOptions, build_app
from attunet3d.serving.jobs import Job, JobQueue, QueueFullError, QueueLimits


class Worker:
    """Segments when it is told to; records what it was given."""

    def __init__(self, go: bool = True, answer: Any = None) -> None:
        self.go, self.answer = threading.Event(), answer
        self.scans: list[str] = []
        self.killed = 0
        if go:
            self.go.set()

    def segment(
        self,
        scan: Path,
        out_dir: Path,
        limit_s: int,
        unwanted: Callable[..., Any],
        reached: Callable[[float], None],
    ) -> str | None:
        self.scans.append(scan.read_text())
        reached(0.25)
        while not self.go.wait(0.005):
            if unwanted():
                return "cancelled"
        if isinstance(self.answer, Exception):
            raise self.answer
        out_dir.mkdir(exist_ok=True)
        (out_dir / "scan.json").write_text("{}")
        found: str | None = self.answer
        return found

    def kill(self) -> None:
        self.killed += 1
        self.answer = "killed"
        self.go.set()


def submit(queue: JobQueue, content: str) -> str:
    job_id = queue.reserve()
    scan = queue.folder / job_id / "scan.nii"
    scan.write_text(content)
    return queue.submit(job_id, scan).id


def wait(queue: JobQueue, job_id: str, *states: str) -> Job:
    ends = time.monotonic() + 10
    while (job := queue.get(job_id)) is None or job.state not in states:
        assert time.monotonic() < ends, job
        time.sleep(0.002)
    return job


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    queues = []

    def start(*workers: Any, **limits: Any) -> Any:
        queue = JobQueue(tmp_path / "jobs", workers, QueueLimits(**limits))
        queue.start()
        queues.append(queue)
        return queue

    yield start
    for queue in queues:
        queue.close(0)


def test_jobs_run_in_their_order_and_end(started: Callable[..., Any]) -> None:
    worker = Worker()
    queue = started(worker)
    ids = [submit(queue, str(n)) for n in range(5)]
    for job_id in ids:
        job = wait(queue, job_id, "done")
        assert job.started is not None
        assert job.ended is not None
        assert job.submitted <= job.started <= job.ended
    assert worker.scans == list("01234")


def test_a_failure_is_told_and_the_next_job_runs(started: Callable[..., Any]) -> None:
    worker = Worker(answer="no CT")
    queue = started(worker)
    assert wait(queue, submit(queue, "a"), "failed").error == "no CT"
    worker.answer = ValueError("secret text")
    assert wait(queue, submit(queue, "b"), "failed").error == "internal error (ValueError)"
    worker.answer = None
    wait(queue, submit(queue, "c"), "done")


def test_a_full_queue_refuses_and_has_room_again(started: Callable[..., Any]) -> None:
    worker = Worker(go=False)
    queue = started(worker, waiting=2)
    running = submit(queue, "a")
    wait(queue, running, "running")
    waiting = [submit(queue, "b"), submit(queue, "c")]
    assert [queue.place(job_id) for job_id in (running, *waiting)] == [0, 0, 1]
    assert not queue.ready
    with pytest.raises(QueueFullError):
        queue.reserve()
    worker.go.set()
    wait(queue, waiting[1], "done")
    queue.release(queue.reserve())
    assert queue.room == 2


def test_a_place_that_is_given_back_leaves_no_folder(started: Callable[..., Any]) -> None:
    queue = started(Worker())
    queue.release(queue.reserve())
    assert list(queue.folder.iterdir()) == []


def test_waiting_and_running_jobs_are_cancelled_and_results_forgotten(
    started: Callable[..., Any],
) -> None:
    worker = Worker(go=False)
    queue = started(worker)
    running, waiting = submit(queue, "a"), submit(queue, "b")
    wait(queue, running, "running")
    assert queue.cancel(waiting).state == "cancelled"
    assert queue.cancel(running).state == "cancelled"
    worker.go.set()
    after = submit(queue, "c")
    wait(queue, after, "done")
    assert worker.scans == ["a", "c"]
    queue.cancel(after)
    assert queue.get(after) is None
    assert not (queue.folder / after).exists()


def test_a_restarted_queue_goes_on_with_what_was_left(started: Callable[..., Any]) -> None:
    first = Worker(go=False)
    queue = started(first)
    running, waiting = submit(queue, "a"), submit(queue, "b")
    wait(queue, running, "running")
    while queue.get(running).share != 0.25:
        time.sleep(0.002)
    queue.close(0)
    assert first.killed == 1
    states = [
        json.loads((queue.folder / n / "job.json").read_text())["state"] for n in (running, waiting)
    ]
    assert states == ["running", "queued"]
    second = Worker()
    again = started(second)
    wait(again, running, "done")
    wait(again, waiting, "done")
    assert sorted(second.scans) == ["a", "b"]


def test_a_closing_queue_waits_for_what_runs(started: Callable[..., Any]) -> None:
    worker = Worker(go=False)
    queue = started(worker)
    job_id = submit(queue, "a")
    wait(queue, job_id, "running")
    threading.Timer(0.1, worker.go.set).start()
    queue.close(10)
    assert queue.get(job_id).state == "done"
    with pytest.raises(QueueFullError):
        queue.reserve()


def test_old_results_are_forgotten(started: Callable[..., Any]) -> None:
    queue = started(Worker(), keep_s=0.05)
    job_id = submit(queue, "a")
    wait(queue, job_id, "done")
    time.sleep(0.06)
    queue.forget_old()
    assert queue.get(job_id) is None


def test_a_result_says_how_long_it_is_kept(started: Callable[..., Any], tmp_path: Path) -> None:
    queue = started(Worker(), keep_s=100)
    job_id = submit(queue, "a")
    wait(queue, job_id, "done")
    transport = httpx.ASGITransport(build_app(queue, AppOptions()))

    async def fetch() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(f"/jobs/{job_id}/sidecar")

    answer = asyncio.run(fetch())
    assert answer.json() == {}
    assert answer.headers["cache-control"] in [f"private, max-age={n}" for n in range(90, 101)]


async def drip(pause_s: float) -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize(
    ("options", "content", "status"),
    [
        (AppOptions(silence_s=0.05), drip(5), 408),
        (AppOptions(upload_s=0.1), drip(0.01), 408),
        (AppOptions(most_bytes=1000), bytes(1001), 413),
    ],
    ids=["silent", "slow", "large"],
)
def test_an_upload_beyond_a_limit_is_cut_off_and_gives_its_place_back(
    started: Callable[..., Any], options: AppOptions, content: Any, status: int
) -> None:
    queue = started(Worker(), waiting=1)
    transport = httpx.ASGITransport(build_app(queue, options))

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/jobs", content=content)

    assert asyncio.run(send()).status_code == status
    assert queue.room == 1
    assert list(queue.folder.iterdir()) == []


def test_counts_are_by_state(started: Callable[..., Any]) -> None:
    queue = started(Worker())
    wait(queue, submit(queue, "a"), "done")
    assert queue.counts() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 0}
