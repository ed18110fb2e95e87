"""The queue: jobs wait, run, end and are forgotten; each has a folder that outlives the server.

A job's folder holds `job.json`, the scan, and `result/`. A server that is stopped leaves what it
has not finished as it is, and the next one with the same folder goes on with it.
"""

import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from attunet3d.core import UserError, whole_file
from attunet3d.serving.worker import Worker

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One scan on its way.

    Args:
        id: A random name that cannot be guessed.
        state: How far it is.
        scan: Where the scan lies, relative to the job's folder.
        submitted: Seconds since 1970, as the next two.
        started: When a worker took it.
        ended: When it ended.
        error: Why it failed.
        share: How much of it is done, from 0 to 1; not kept on disk while it runs.
    """

    id: str
    state: State
    scan: str
    submitted: float
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    share: float = 0.0


@dataclass(frozen=True)
class QueueLimits:
    """How much a queue takes on.

    Args:
        waiting: Jobs that may wait; more are refused.
        seconds: That one job may run.
        keep_s: For which results are kept.
    """

    waiting: int = 32
    seconds: float = 1800
    keep_s: float = 3600


class QueueFullError(Exception):
    """There is no room for another job now."""


class JobQueue:
    """Hands jobs to workers, one thread for each.

    Args:
        folder: Where jobs live.
        workers: Each segments one scan at a time.
        limits: How much is taken on.
    """

    def __init__(self, folder: Path, workers: Sequence[Worker], limits: QueueLimits) -> None:
        self.folder = whole_file.make_folder(folder)
        self.workers = workers
        self.limits = limits
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[str] = deque()
        self._reserved = 0
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), daemon=True) for worker in workers
        ]

    def start(self) -> None:
        """Take up what an earlier server left, and begin to work."""
        for path in sorted(self.folder.glob("*/job.json")):
            job = Job(**json.loads(path.read_text(encoding="utf-8")))
            if job.state not in ENDED:
                job = replace(job, state="queued", started=None, share=0.0)
                self._waiting.append(job.id)
            self._jobs[job.id] = job
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and there is room for one."""
        return not self._closing and self.room > 0

    @property
    def room(self) -> int:
        """How many jobs can still be taken."""
        return self.limits.waiting - len(self._waiting) - self._reserved

    def counts(self) -> dict[State, int]:
        """How many jobs there are of each state."""
        states: Sequence[State] = ("queued", "running", "done", "failed", "cancelled")
        with self._changed:
            jobs = list(self._jobs.values())
        return {state: sum(job.state == state for job in jobs) for state in states}

    def reserve(self) -> str:
        """Keep a place for a job whose scan is still to come; its folder is made.

        Raises:
            QueueFullError: There is none.
        """
        with self._changed:
            if not self.ready:
                raise QueueFullError
            self._reserved += 1
        job_id = secrets.token_urlsafe(16)
        whole_file.make_folder(self.folder / job_id)
        return job_id

    def release(self, job_id: str) -> None:
        """Give back a place whose scan did not come."""
        with self._changed:
            self._reserved -= 1
        shutil.rmtree(self.folder / job_id, ignore_errors=True)

    def submit(self, job_id: str, scan: Path) -> Job:
        """Queue the scan for which a place was reserved."""
        name = scan.relative_to(self.folder / job_id).as_posix()
        job = Job(job_id, "queued", name, time.time())
        self._save(job)
        with self._changed:
            self._reserved -= 1
            self._waiting.append(job_id)
            self._changed.notify()
        return job

    def get(self, job_id: str) -> Job | None:
        """The job, or None where there is none of this name or it was forgotten."""
        return self._jobs.get(job_id)

    def place(self, job_id: str) -> int:
        """How many jobs will run before this one."""
        with self._changed:
            return self._waiting.index(job_id) if job_id in self._waiting else 0

    def result(self, job_id: str) -> Path:
        """Where the label map and the sidecar of a job lie."""
        return self.folder / job_id / "result"

    def cancel(self, job_id: str) -> Job | None:
        """End a job; what has ended is forgotten with its files."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            if job.state in ENDED:
                del self._jobs[job_id]
                shutil.rmtree(self.folder / job_id, ignore_errors=True)
                return job
            if job_id in self._waiting:
                self._waiting.remove(job_id)
        return self._end(job_id, "cancelled")

    def close(self, grace_s: float) -> None:
        """Stop taking jobs, give the running ones `grace_s` seconds, and leave the rest queued."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        ends = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        for worker in self.workers:
            worker.kill()

    def forget_old(self) -> None:
        """Delete what ended longer ago than results are kept."""
        with self._changed:
            old = [job.id for job in self._jobs.values() if self.seconds_kept(job) < 0]
        for job_id in old:
            self.cancel(job_id)

    def seconds_kept(self, job: Job) -> float:
        """How long its result will still be kept; below 0 it is due to be deleted."""
        return math.inf if job.ended is None else job.ended + self.limits.keep_s - time.time()

    def _run(self, worker: Worker) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                job_id = self._waiting.popleft()
            self._work(worker, job_id)

    def _work(self, worker: Worker, job_id: str) -> None:
        job = replace(self._jobs[job_id], state="running", started=time.time())
        if not self._save(job, instead_of="queued"):
            return
        folder = self.folder / job_id

        def unwanted() -> bool:
            return self._jobs.get(job_id, job).state == "cancelled"

        def reached(share: float) -> None:
            with self._changed:
                if (known := self._jobs.get(job_id)) is not None and known.state == "running":
                    self._jobs[job_id] = replace(known, share=share)

        try:
            error = worker.segment(
                folder / job.scan, folder / "result", self.limits.seconds, unwanted, reached
            )
        except Exception as failure:  # ours: the job must end, and the others go on
            _log.exception("job=%s", job_id)
            error = f"internal error ({type(failure).__name__})"
        if self._closing and error is not None and not unwanted():
            return  # killed with the server: it stays on disk as running, and is taken up again
        if error is not None:
            error = error.replace(f"{folder}{os.sep}", "")  # clients need not know our paths
        self._end(job_id, "done" if error is None else "failed", error)

    def _end(self, job_id: str, state: State, error: str | None = None) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.state in ENDED:
            return job
        ended = replace(job, state=state, error=error, ended=time.time())
        self._save(ended)
        seconds = ended.ended - (job.started or job.submitted) if ended.ended else 0.0
        _log.info("job=%s state=%s seconds=%.1f", job_id, state, seconds)
        return ended

    def _save(self, job: Job, instead_of: State | None = None) -> bool:
        """Keep the job's state in memory and on disk, unless it has another one by now."""
        with self._changed:
            known = self._jobs.get(job.id)
            if instead_of is not None and (known is None or known.state != instead_of):
                return False
            try:
                whole_file.write_text(self.folder / job.id / "job.json", json.dumps(asdict(job)))
            except (
                UserError
            ) as error:  # a full disk: the job goes on, a restart will not know of it
                _log.error("job=%s error=%s", job.id, error)
            self._jobs[job.id] = job
        return True
