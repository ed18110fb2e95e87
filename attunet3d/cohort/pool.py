"""The dispatching side of a cohort's workers, wherever these run: hand out scans, replace the dead.

A worker is a process that runs `engine_process.serve_scans`: of this machine (`devices`), or an
actor of a Ray cluster (`ray_engine`). What becomes of the scans of one that ended, see `dispatch`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attunet3d.cohort import results
from attunet3d.cohort.dispatch import Dispatcher
from attunet3d.cohort.scan_loop import Item
from attunet3d.core import DeviceError

MOST_FAILED_STARTS = 3
_log = logging.getLogger("attunet3d.workers")


class PoolWorker(ABC):
    """One worker as the dispatching process sees it.

    Args:
        number: Its place among the workers; the worker that replaces it has the same.
        device: What it computes on, for messages.
    """

    def __init__(self, number: int, device: str | None) -> None:
        self.number, self.device = number, device
        self.name = f"worker {number}"
        self.ready = self.waiting = False

    @abstractmethod
    def hear(self) -> list[tuple[Any, ...]]:
        """What it told, at least one message; see `Link.tell`, and ("take", idle).

        Raises:
            EOFError: It has ended.
        """

    @abstractmethod
    def answer(self, item: Item | None) -> None:
        """Answer its question for a scan; no error where it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


class Pool:
    """Workers and the scans that they share.

    Args:
        count: Number of workers.
        start: Starts the worker of a number.
        wait: Waits until some of the workers told something or ended, and gives these.
        dispatcher: Of the scans.
        folder: Of the results; what a dead worker left half-written is deleted there.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[int], PoolWorker],
        wait: Callable[[Sequence[Any]], Sequence[PoolWorker]],
        dispatcher: Dispatcher,
        folder: Path,
    ) -> None:
        self._start, self._wait = start, wait
        self._count, self._dispatcher, self._folder = count, dispatcher, folder
        self._failed_starts = 0
        self.workers: list[PoolWorker] = []

    def run(self) -> None:
        """Hand out scans until all are settled.

        Raises:
            UserError: A worker cannot load the model.
            DeviceError: Workers keep ending before they have loaded it, and no scan is done.
        """
        try:
            self.workers += map(self._start, range(self._count))
            while not self._dispatcher.finished:
                for worker in self._wait(self.workers):
                    self._listen(worker)
                for worker in self.workers:
                    if worker.waiting and (item := self._take(worker, idle=True)) is not None:
                        self._answer(worker, item)
            for worker in self.workers:
                worker.answer(None)
        finally:
            for worker in self.workers:
                worker.kill()

    def _take(self, worker: PoolWorker, *, idle: bool) -> Item | None:
        return self._dispatcher.take(worker.name, idle=idle)

    def _answer(self, worker: PoolWorker, item: Item | None) -> None:
        worker.waiting = False
        worker.answer(item)

    def _listen(self, worker: PoolWorker) -> None:
        try:
            messages = worker.hear()
        except EOFError:
            self._replace(worker)
            return
        for event, *facts in messages:
            self._heard(worker, event, *facts)

    def _heard(self, worker: PoolWorker, event: str, *facts: Any) -> None:
        if event == "take":
            worker.ready = True
            (worker.waiting,) = facts
            if not worker.waiting:
                self._answer(worker, self._take(worker, idle=False))
        elif event == "log":
            level, text, case = facts
            _log.log(level, "%s", text, extra={} if case is None else {"case": case})
        elif event == "error":
            raise facts[0]
        else:
            if event != "reached":
                self._failed_starts = 0  # the call gets on, whoever else ends
                self._dispatcher.settled(worker.name, facts[0])
            getattr(self._dispatcher.events, event)(*facts)

    def _replace(self, worker: PoolWorker) -> None:
        """Start another worker in the place of one that ended."""
        worker.kill()
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts == MOST_FAILED_STARTS:
            raise DeviceError(
                "processes end while they load the model",
                value=worker.device,
                cure="try fewer devices: each process takes the memory of a model and a scan",
            )
        _log.warning("a process ended; its scans are done again by others")
        self._dispatcher.lost(worker.name)
        results.sweep(self._folder)
        self.workers[worker.number] = self._start(worker.number)
