"""Shows the progress of a command: as a bar on a terminal, otherwise as occasional log lines."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TextIO

NAME = __name__
FIRST_LINE_S, LINE_EVERY_S = 10.0, 30.0

hidden = False  # whether the user asked for quiet; see `log.messages`
_log = logging.getLogger(NAME)


class Progress:
    """Counts the items that are done, and parts of items, of work in any number of threads.

    See `progress`. `total` may change; `facts` are shown as well, such as the loss; `clock` is for
    tests.
    """

    def __init__(
        self,
        total: float,
        name: str,
        unit: str = "case",
        done: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.name, self.unit, self.done = total, name, unit, done
        self.facts: dict[str, str] = {}
        self._before, self._clock, self._lock = done, clock, threading.Lock()
        self._began = clock()
        self._next_line = self._began + FIRST_LINE_S
        self._bar: Any = _bar(self) if has_bars() else None

    def update(self, amount: float = 1, facts: Mapping[str, str] = MappingProxyType({})) -> None:
        """Count `amount` more items, or parts of one, as done, and show `facts` beside them."""
        with self._lock:
            self.done += amount
            self.facts.update(facts)
            now = self._clock()
            if self._bar is not None:
                self._bar.n, self._bar.total = _plain(self.done), _plain(self.total)
                self._bar.set_postfix(self.facts, refresh=False)
                self._bar.update(0)
            if now >= self._next_line:
                self._next_line = now + LINE_EVERY_S
                self._say(now)

    @contextlib.contextmanager
    def item(self) -> Iterator[Callable[[float], None]]:
        """Count one item when the block ends, with or without an error.

        The block gets a function that sets the finished fraction of the item, in [0, 1].

        Example:
            >>> with progress(2, "infer", "scan") as bar:
            ...     with bar.item() as done:
            ...         done(0.25)
            ...         print(bar.done)
            ...     print(bar.done)
            0.25
            1.0
        """
        counted = 0.0

        def reach(share: float) -> None:
            nonlocal counted
            share = min(1.0, share)
            if share > counted:
                self.update(share - counted)
                counted = share

        try:
            yield reach
        finally:
            reach(1.0)

    def close(self) -> None:
        """Close the bar, and log the end of work that took longer than 10 s."""
        if self._bar is not None:
            self._bar.close()
        if self._clock() - self._began >= FIRST_LINE_S:
            self._say(self._clock())

    def _say(self, now: float) -> None:
        seconds, fresh = now - self._began, self.done - self._before
        parts = [f"{self.name}: {_plain(self.done)}/{_plain(self.total)} {self.unit}s"]
        parts.append(f"{_duration(seconds)} so far")
        if fresh > 0 and self.done < self.total:
            parts.append(f"{_duration(seconds / fresh * (self.total - self.done))} left")
        _log.info("%s", ", ".join([*parts, *(f"{key} {self.facts[key]}" for key in self.facts)]))


@contextlib.contextmanager
def progress(total: float, name: str, unit: str = "case", done: float = 0) -> Iterator[Progress]:
    """Show the progress of the block's work and the time left.

    On a terminal this is a bar. Otherwise a line is logged after 10 s and then every 30 s; a log
    file gets these lines in either case.

    Args:
        total: Number of items; 0 shows no bar.
        name: Name of the work, such as "infer".
        unit: Name of one item, such as "scan".
        done: Items that are already done.

    Example:
        >>> with progress(3, "evaluate") as bar:
        ...     for _ in range(3):
        ...         bar.update()
        ...     bar.done
        3
    """
    shown = Progress(total, name, unit, done)
    try:
        yield shown
    finally:
        shown.close()


def has_bars() -> bool:
    """Whether progress is shown as bars: on a terminal and without `--quiet`."""
    return not hidden and bool(getattr(sys.stderr, "isatty", bool)())


def write_line(line: str, file: TextIO | None = None) -> None:
    """Write a line to `file`, or else to stderr, above any progress bars."""
    file = file or sys.stderr
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=file)
    else:
        print(line, file=file, flush=True)


def _bar(work: Progress) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=_plain(work.total),
        initial=_plain(work.done),
        desc=work.name,
        unit=work.unit,
        disable=not work.total,
        leave=None,  # not within another bar
        miniters=0,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def _plain(value: float) -> float:
    """The value rounded to two digits, as an integer if it is one.

    Example:
        >>> _plain(3.0), _plain(0.1 + 0.2)
        (3, 0.3)
    """
    value = round(value, 2)
    return int(value) if value == int(value) else value


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> _duration(62), _duration(3723.9)
        ('1:02', '1:02:03')
    """
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
