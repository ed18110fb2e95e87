"""A cohort on several devices of one machine: a process for each, and a queue of scans.

The processes segment as a call of one process does, by the same loop.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from attunet3d.cohort.call import CohortCall, Events, ModelOptions
from attunet3d.cohort.dispatch import Dispatcher
from attunet3d.cohort.engine_process import WorkerOptions, serve_scans
from attunet3d.cohort.pool import Pool, PoolWorker
from attunet3d.cohort.run import Engine, here
from attunet3d.cohort.scan_loop import Item
from attunet3d.core import SettingsError, UserError


def on_devices(model: ModelOptions, call: CohortCall, devices: Sequence[str]) -> Engine:
    """The engine that has a process for each of `devices`; a name may come several times."""
    cpus = sum(device == "cpu" for device in devices)
    options = [
        WorkerOptions(
            replace(model, device=device),
            call,
            neighbours=len(devices),
            on_this_cpu=cpus if device == "cpu" else 1,
        )
        for device in devices
    ]

    def run(found: Mapping[str, list[Path]], events: Events) -> None:
        Pool(
            min(len(devices), max(1, len(found))),
            lambda number: _Process(options[number], number),
            _wait,
            Dispatcher(found, events),
            call.out_dir,
        ).run()

    return run


def make_engine(
    model: ModelOptions, call: CohortCall, kind: str = "local", address: str | None = None
) -> Engine:
    """The engine for a call: this process, one per device that `--device` lists, or Ray.

    Args:
        model: With the device.
        call: What is to be done.
        kind: "local" or "ray".
        address: Of a Ray cluster; see `ray_engine.on_ray`.

    Raises:
        UserError: This process is the engine and the model cannot be loaded, or Ray is missing.
    """
    if kind == "ray":
        from attunet3d.cohort.ray_engine import on_ray

        return on_ray(model, call, address)
    if address is not None:
        rule, cure = "--address goes with --engine ray", "add that, or leave --address out"
        raise SettingsError(rule, value=address, cure=cure)
    if len(model.devices) > 1:
        return on_devices(model, call, model.devices)
    return here(model.load(), call)


class _Process(PoolWorker):
    def __init__(self, options: WorkerOptions, number: int) -> None:
        super().__init__(number, options.model.device)
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(options, theirs), daemon=True, name=self.name
        )
        self.process.start()
        theirs.close()

    def hear(self) -> list[tuple[Any, ...]]:
        try:
            return [self.pipe.recv()]
        except OSError as error:
            raise EOFError from error

    def answer(self, item: Item | None) -> None:
        with contextlib.suppress(OSError):  # it has ended, which is seen at the pipe's end
            self.pipe.send(item)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _wait(workers: Sequence[_Process]) -> list[PoolWorker]:
    pipes: Any = {worker.pipe: worker for worker in workers}
    return [pipes[pipe] for pipe in wait(list(pipes))]


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
