"""What a process does that segments a cohort's scans: ask for them, and tell what became of each.

It speaks through a `Link`: a pipe to the process that dispatches, or what an engine has instead.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from attunet3d.cohort.call import CohortCall, Events, ModelOptions
from attunet3d.cohort.scan_loop import Item, ScanLoop
from attunet3d.core import keep_freed_memory, usable_cores


class Link(Protocol):
    """How a worker speaks with the one that dispatches; from any of its threads."""

    def take(self, *, idle: bool) -> Item | None:
        """The next scan. None: there is none for now; if `idle`, it waits and None is the end."""
        ...

    def tell(self, event: str, *facts: Any) -> None:
        """Tell an event of `Events`, or ("log", level, text, case)."""
        ...


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker loads and does."""

    model: ModelOptions
    """With the worker's device."""
    call: CohortCall
    neighbours: int = 1
    """Workers on the same machine, this one included, which share its cores."""
    on_this_cpu: int = 1
    """Workers that compute on the same CPU, this one included."""


def serve_scans(options: WorkerOptions, link: Link) -> None:
    """Load the model, then segment scans until there are no more.

    Raises:
        UserError: The model cannot be loaded, or has no gates for the attention maps asked for.
    """
    keep_freed_memory()
    cores = usable_cores()
    if options.on_this_cpu > 1:
        torch.set_num_threads(max(1, cores // options.on_this_cpu))
    handler = _TellingHandler(link)
    root = logging.getLogger("attunet3d")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    predictor = options.model.load()
    options.call.options.require(predictor)
    loop = ScanLoop(
        predictor, options.call, _TellingEvents(link), max(1, cores // options.neighbours)
    )
    while (first := link.take(idle=True)) is not None:
        loop.run(_scans(first, link))


def _scans(first: Item, link: Link) -> Iterator[Item]:
    """Scans until there are none for now, so that those that were begun are finished."""
    item: Item | None = first
    while item is not None:
        yield item
        item = link.take(idle=False)


class _TellingEvents(Events):
    def __init__(self, link: Link) -> None:
        self._link = link

    def reached(self, case_id: str, share: float) -> None:
        self._link.tell("reached", case_id, share)

    def done(self, case_id: str) -> None:
        self._link.tell("done", case_id)

    def skipped(self, case_id: str) -> None:
        self._link.tell("skipped", case_id)

    def failed(self, case_id: str, reason: str) -> None:
        self._link.tell("failed", case_id, reason)


class _TellingHandler(logging.Handler):
    def __init__(self, link: Link) -> None:
        super().__init__(logging.INFO)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        case = getattr(record, "case", None)
        self._link.tell("log", record.levelno, record.getMessage(), case)
