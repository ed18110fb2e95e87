"""Shows the messages of a command on stderr and writes all of them, with times, to a log file.

Modules log to `logging.getLogger(__name__)`; programs that use the package as a library handle the
records as they like. A record about a case carries its id, as in
`log.warning(text, extra={"case": case_id})`.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from attunet3d.core import progress_bar
from attunet3d.core.errors import WriteError, one_line, printable

ROOT = logging.getLogger("attunet3d")


@contextlib.contextmanager
def messages(
    *, quiet: bool = False, debug: bool = False, log_file: Path | None = None
) -> Iterator[None]:
    """Show the package's messages on stderr while the block runs.

    Args:
        quiet: Errors only, and no progress.
        debug: Everything.
        log_file: Every message is appended to it with its time.

    Raises:
        WriteError: The log file cannot be written.
    """
    handlers: list[logging.Handler] = [_Terminal(_level(quiet, debug))]
    if log_file is not None:
        handlers.append(_file(log_file))
    level, hidden = ROOT.level, progress_bar.hidden
    ROOT.setLevel(logging.DEBUG)
    progress_bar.hidden = quiet
    for handler in handlers:
        ROOT.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            ROOT.removeHandler(handler)
            handler.close()
        ROOT.setLevel(level)
        progress_bar.hidden = hidden


def only_errors() -> None:
    """Show only errors from now on; for all but the first process of a distributed run."""
    ROOT.setLevel(logging.ERROR)
    progress_bar.hidden = True


def _level(quiet: bool, debug: bool) -> int:
    if debug:
        return logging.DEBUG
    return logging.ERROR if quiet else logging.INFO


def _file(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise WriteError(
            f"the log cannot be written ({error.strerror})", path=path, cure="name another file"
        ) from None
    handler.setFormatter(_Line("%(asctime)s %(message)s"))
    return handler


class _Terminal(logging.Handler):
    """Writes to stderr, above progress bars."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_Line())
        self.addFilter(
            lambda record: record.name != progress_bar.NAME or not progress_bar.has_bars()
        )

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe or a full disk
            progress_bar.write_line(self.format(record))


class _Line(logging.Formatter):
    """One line per message: information as it is, the rest as `CASE: warning: message`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, with control characters escaped."""
        words = record.message
        if record.levelno >= logging.WARNING:
            place = printable(str(getattr(record, "case", "attunet3d")))
            words = f"{place}: {record.levelname.lower()}: {words}"
        record.message = one_line(words)
        return super().formatMessage(record)
