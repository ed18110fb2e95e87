"""A cohort on several devices of one machine: a process for each, and a queue of scans.

The processes segment as a call of one process does, by the same loop. One that is killed is
replaced; see `dispatch` for what becomes of its scans.
"""

import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from attunet3d.cohort import results
from attunet3d.cohort.call import CohortCall, Events, ModelOptions
from attunet3d.cohort.dispatch import Dispatcher
from attunet3d.cohort.engine_process import WorkerOptions, serve_scans
from attunet3d.cohort.run import Engine, here
from attunet3d.cohort.scan_loop import Item
from attunet3d.core import DeviceError, UserError

MOST_FAILED_STARTS = 3
_log = logging.getLogger("attunet3d.workers")


def on_devices(model: ModelOptions, call: CohortCall, devices: Sequence[str]) -> Engine:
    """The engine that has a process for each of `devices`; a name may come several times."""

    def run(found: Mapping[str, list[Path]], events: Events) -> None:
        dispatcher = Dispatcher(found, events)
        pool = _Pool(model, call, devices[: max(1, len(found))], dispatcher)
        try:
            pool.run()
        finally:
            pool.kill()

    return run


def make_engine(model: ModelOptions, call: CohortCall) -> Engine:
    """The engine for the model's device: this process, or one per device that its name lists.

    Raises:
        UserError: This process is the engine, and the model cannot be loaded.
    """
    devices = [] if model.device is None else model.device.split(",")
    if len(devices) > 1:
        return on_devices(model, call, devices)
    return here(model.load(), call)


class _Process:
    """One worker as the dispatching process sees it."""

    def __init__(self, options: WorkerOptions, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.number = f"worker {number}", number
        self.ready = self.waiting = False
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(options, theirs), daemon=True, name=self.name
        )
        self.process.start()
        theirs.close()

    def answer(self, item: Item | None) -> None:
        """Answer its question for a scan."""
        self.waiting = False
        with contextlib.suppress(OSError):  # it has ended, which is seen at the pipe's end
            self.pipe.send(item)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    def __init__(
        self, model: ModelOptions, call: CohortCall, devices: Sequence[str], dispatcher: Dispatcher
    ) -> None:
        self.dispatcher, self.folder = dispatcher, call.out_dir
        cpus = sum(device == "cpu" for device in devices)
        self.options = [
            WorkerOptions(
                replace(model, device=device),
                call,
                neighbours=len(devices),
                on_this_cpu=cpus if device == "cpu" else 1,
            )
            for device in devices
        ]
        self.failed_starts = 0
        self.workers = [_Process(each, number) for number, each in enumerate(self.options)]

    def run(self) -> None:
        """Hand out scans until all are settled."""
        while not self.dispatcher.finished:
            pipes = {worker.pipe: worker for worker in self.workers}
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                worker = pipes[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    self._replace(worker)
                    continue
                self._hear(worker, *message)
            for worker in self.workers:
                if worker.waiting:
                    self._offer(worker)
        for worker in self.workers:
            worker.answer(None)

    def _hear(self, worker: _Process, event: str, *facts: Any) -> None:
        if event == "take":
            worker.ready = True
            (worker.waiting,) = facts
            if not worker.waiting:
                worker.answer(self.dispatcher.take(worker.name, idle=False))
        elif event == "log":
            level, text, case = facts
            _log.log(level, "%s", text, extra={} if case is None else {"case": case})
        elif event == "error":
            raise facts[0]
        else:
            if event != "reached":
                self.dispatcher.settled(worker.name, facts[0])
            getattr(self.dispatcher.events, event)(*facts)

    def _offer(self, worker: _Process) -> None:
        item = self.dispatcher.take(worker.name, idle=True)
        if item is not None:
            worker.answer(item)

    def _replace(self, worker: _Process) -> None:
        """Start another process in the place of one that ended.

        Raises:
            DeviceError: Processes end again and again before they have loaded the model.
        """
        worker.kill()
        self.failed_starts = 0 if worker.ready else self.failed_starts + 1
        if self.failed_starts == MOST_FAILED_STARTS:
            raise DeviceError(
                "processes end while they load the model",
                value=self.options[worker.number].model.device,
                cure="try fewer devices: each process takes the memory of a model and a scan",
            )
        _log.warning("a process ended; its scans are done again by others")
        self.dispatcher.lost(worker.name)
        results.sweep(self.folder)
        self.workers[worker.number] = _Process(self.options[worker.number], worker.number)

    def kill(self) -> None:
        """End all processes at once."""
        for worker in self.workers:
            worker.kill()


class _Pipe:
    """A worker's `Link`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def take(self, *, idle: bool) -> Item | None:
        self.tell("take", idle)
        item: Item | None = self._pipe.recv()
        return item

    def tell(self, event: str, *facts: Any) -> None:
        with self._lock:
            self._pipe.send((event, *facts))


def _work(options: WorkerOptions, pipe: Connection) -> None:
    """The process of a worker; it ends when the dispatching one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the dispatching process ends its workers
    link = _Pipe(pipe)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            serve_scans(options, link)
        except UserError as error:
            link.tell("error", error)
