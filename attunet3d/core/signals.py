"""Ctrl-C and SIGTERM: the first ends a command within two seconds, the second at once.

Python runs signal handlers between two instructions of the main thread, which may be inside a long
call of a library then, and waits for all threads at its end. So a thread of its own watches the
signals of a command, and ends the process when that has not ended by itself. Whatever is being
written at that moment keeps its temporary name, see `whole_file`.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

GRACE_S, POLL_S = 1.5, 0.1  # time for `finally` blocks
_STOPS = (signal.SIGINT, signal.SIGTERM)
_deferred = threading.Event()  # the command ends at a moment of its choice, see `stop_requests`


@contextlib.contextmanager
def prompt_end() -> Iterator[None]:
    """Within the block, which is a whole command, signals end the process in time.

    SIGINT raises KeyboardInterrupt as always, and SIGTERM raises SystemExit. Outside the main
    thread signals belong to others, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handler = signal.signal(signal.SIGTERM, _terminate)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        writer.close()  # ends the thread, unless it has seen a signal


def _watch(reader: socket.socket) -> None:
    """End the process some time after its first signal, or on its second."""
    with reader:
        number = _next_stop(reader)
        if number is None:  # the command ended by itself
            return
        if _deferred.is_set():
            _say("stopping as soon as the state is saved; the same once more ends it at once")
        reader.settimeout(POLL_S)
        left, ended = GRACE_S, False
        while left > 0:
            try:
                if _next_stop(reader):
                    break
                ended = True
                time.sleep(POLL_S)  # the command has ended, but threads may hold the process
            except TimeoutError:
                pass
            if not _deferred.is_set():
                left -= POLL_S
        if not ended:
            _say("interrupted")
        os._exit(128 + number)


class StopRequests:
    """The first stop signal of a run, which looks at it at a moment of its choice.

    Attributes:
        number: The signal; None before it comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises SystemExit instead of waiting to be looked at."""
        if self.number is not None:
            self.leave()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def leave(self) -> NoReturn:
        """Raise SystemExit with the exit status of the signal that has come."""
        assert self.number is not None
        raise SystemExit(128 + self.number)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler; a second one raises wherever the run is."""
        again, self.number = self.number is not None, number
        if again or self._at_once:
            self.leave()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """SIGTERM (preemption) and Ctrl-C as a word to a run, which ends when its state is saved.

    Outside the main thread signals belong to others, and none is noted.

    Example:
        >>> with stop_requests() as requests:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     bool(requests)
        True
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in _STOPS}
    _deferred.set()
    try:
        yield requests
    finally:
        _deferred.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _next_stop(reader: socket.socket) -> int | None:
    """The number of the next stop signal; None when the command has ended.

    Raises:
        TimeoutError: None came within the socket's time limit.
    """
    while byte := reader.recv(1):
        if byte[0] in _STOPS:
            return byte[0]
    return None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"attunet3d: {words}", file=sys.stderr, flush=True)
