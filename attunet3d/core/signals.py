"""SIGTERM (preemption) and Ctrl-C as a word to the run, which ends at a moment of its choice."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals SIGTERM and SIGINT instead of their ending the process.

    Outside the main thread signals are somebody else's, and the list stays empty.

    Example:
        >>> with stop_requests() as received:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     received == [signal.SIGTERM]
        True
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
