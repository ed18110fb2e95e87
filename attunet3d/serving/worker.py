"""A process that holds a model and segments one scan at a time.

A process and not a thread: a scan that takes too long, is no longer wanted or brings the process
down is ended with it, and the next scan gets a new process. Nothing of one scan reaches the next.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from attunet3d.cohort import ModelOptions, Relay

if TYPE_CHECKING:
    from attunet3d.inference import Predictor

POLL_S = 0.05


class Worker:
    """Segments scans in a process of its own, which is started when it is first needed.

    Args:
        options: The model.
    """

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process and load the model in it, so that the first scan need not wait.

        Raises:
            RuntimeError: The process ended while it loaded the model.
        """
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self.options, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._pipe.recv()
        except EOFError:
            self.kill()
            raise RuntimeError("the worker ended while it loaded the model") from None

    def segment(
        self,
        scan: Path,
        out_dir: Path,
        limit_s: float,
        unwanted: Callable[[], bool],
        reached: Callable[[float], None],
    ) -> str | None:
        """Segment a scan into `out_dir`, as `attunet3d infer` does.

        Args:
            scan: A file, or the folder of a DICOM series.
            out_dir: Where label map and sidecar are written, as `scan.nii.gz` and `scan.json`.
            limit_s: Seconds after which the process is killed.
            unwanted: Asked now and then; once it is true the process is killed.
            reached: Told now and then which share of the scan is done, from 0 to 1.

        Returns:
            None when it is done, otherwise why it failed.
        """
        try:
            self.start()
        except RuntimeError as error:
            return str(error)
        assert self._pipe is not None
        ends = time.monotonic() + limit_s
        try:
            self._pipe.send((scan, out_dir))
            while True:
                if self._pipe.poll(POLL_S):
                    share, why = self._pipe.recv()
                    if share is None:
                        failure: str | None = why
                        return failure
                    reached(share)
                if unwanted():
                    self.kill()
                    return "cancelled"
                if time.monotonic() > ends:
                    self.kill()
                    return f"took longer than {limit_s:g} s and was stopped"
        except (EOFError, OSError):
            self.kill()
            return "the process that segmented it ended; it may have run out of memory"

    def kill(self) -> None:
        """End the process at once; the next scan starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _work(options: ModelOptions, pipe: Connection) -> None:
    """The process: load the model, then segment what the pipe names until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when its workers end
    from attunet3d.core import keep_freed_memory

    keep_freed_memory()
    predictor = options.load()
    pipe.send("ready")
    while True:
        try:
            scan, out_dir = pipe.recv()
        except EOFError:
            return
        pipe.send((None, _segment(predictor, scan, out_dir, pipe)))


def _segment(predictor: "Predictor", scan: Path, out_dir: Path, pipe: Connection) -> str | None:
    """Segment a scan, telling the pipe (share, None) meanwhile; why it failed, if it did."""
    from attunet3d.cohort import CohortCall, here, segment_call

    class _Telling(Relay):
        def reached(self, case_id: str, share: float) -> None:
            pipe.send((share, None))

    call = CohortCall(cases=[("scan", scan)], out_dir=out_dir)
    engine = here(predictor, call)
    outcome = segment_call(call, lambda found, events: engine(found, _Telling(events)))
    return outcome.failures.get("scan")
