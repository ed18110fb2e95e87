"""Ctrl-C and SIGTERM: the first ends a command within two seconds, the second at once.

Python runs signal handlers between two instructions of the main thread, which may be in a long call
of a library, and waits for all threads when it exits. So a separate thread watches for signals and
ends the process if it does not end by itself. A file that is being written at that moment keeps its
temporary name, see `whole_file`.
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
_deferred = threading.Event()  # the command decides when it ends, see `stop_requests`


@contextlib.contextmanager
def prompt_end() -> Iterator[list[int]]:
    """Within the block, which is a whole command, signals end the process in time.

    SIGINT raises KeyboardInterrupt as usual, and SIGTERM raises SystemExit. Outside the main
    thread, which alone can handle signals, nothing changes.

    Yields:
        The SIGTERMs that have come. A library in C may turn what they raise into another error.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise SystemExit(128 + number)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handler = signal.signal(signal.SIGTERM, terminate)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()
    try:
        yield came
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        writer.close()  # ends the thread, unless it has seen a signal


def _watch(reader: socket.socket) -> None:
    """End the process `GRACE_S` after the first signal, or on the second."""
    with reader:
        number = _next_stop(reader)
        if number is None:  # the command ended by itself
            return
        if _deferred.is_set():
            _say("stopping as soon as the state is saved; a second signal stops at once")
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
    """The first stop signal of a run, which the run checks when it can stop.

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
        """Within the block, a signal raises SystemExit instead of waiting to be checked."""
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
        """Handle a signal; a second one raises SystemExit."""
        again, self.number = self.number is not None, number
        if again or self._at_once:
            self.leave()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Note SIGTERM (preemption) and Ctrl-C for a run, which saves its state before it ends.

    Outside the main thread, which alone can handle signals, none is noted.

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


def _say(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"attunet3d: {words}", file=sys.stderr, flush=True)
