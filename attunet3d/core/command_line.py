"""Runs a command: its messages, memory, one-line errors, exit status and signals.

Exit status: 0 all done; 1 some cases failed, the others are done; 2 the call itself is wrong;
130 and 143 stopped by Ctrl-C and by SIGTERM.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypedDict

from attunet3d import __version__
from attunet3d.core import log, signals
from attunet3d.core.errors import SettingsError, UserError

_log = logging.getLogger(__name__)
Main = Callable[[Sequence[str] | None], int]


def run(main: Main, argv: Sequence[str] | None = None) -> int:
    """Call `main` as a command; an exception becomes one line on stderr and an exit status.

    Args:
        main: A pipeline's `main`: arguments (None: those of the process) → exit status.
        argv: The arguments without the command's name. `--quiet`, `--debug` and `--log-file PATH`
            are handled here and not passed on.

    Returns:
        The exit status.

    Example:
        >>> run(lambda argv: 0, [])
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # under LC_ALL=C: print "?" for "×" and the like
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with contextlib.ExitStack() as stack:
        try:
            options = _take_options(arguments)
            stack.enter_context(log.messages(**options))
        except UserError as error:
            print(f"attunet3d: error: {error}", file=sys.stderr)
            return 2
        came = stack.enter_context(signals.prompt_end())
        _log.debug("attunet3d %s: %s", __version__, shlex.join(arguments))
        keep_freed_memory()
        warnings.simplefilter("default" if options["debug"] else "ignore")
        status = _status(main, arguments, debug=options["debug"])
        return 128 + came[0] if came else status


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it stands."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments in which options and paths may be mixed.

    Arguments after `--` may begin with a dash. Options must then all come before it, since
    argparse's parser for mixed arguments would drop the `--`.
    """
    plain = "--" in (argv or ())
    return (parser.parse_args if plain else parser.parse_intermixed_args)(argv)


def fold(text: str) -> int | Literal["all"]:
    """The value of `--fold`, for argparse: a number, or "all".

    Raises:
        ValueError: It is neither.
    """
    return "all" if text == "all" else int(text)


class Outcome(Protocol):
    """What became of the cases of a call; its text counts them."""

    @property
    def failures(self) -> Mapping[str, str]:
        """Reasons by case."""
        ...


class _Options(TypedDict):
    quiet: bool
    debug: bool
    log_file: Path | None


def _take_options(arguments: list[str]) -> _Options:
    """Remove the options that every command has from its arguments, and return them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours, rest = arguments[:end], arguments[end:]
    found = _Options(quiet="--quiet" in ours, debug="--debug" in ours, log_file=None)
    arguments.clear()
    while ours:
        word = ours.pop(0)
        name, equals, value = word.partition("=")
        if name == "--log-file":
            if not equals and not ours:
                raise SettingsError("--log-file: needs the path of a file")
            found["log_file"] = Path(value if equals else ours.pop(0))
        elif word not in ("--quiet", "--debug"):
            arguments.append(word)
    arguments += rest
    return found


def told(out: Path | str, outcome: Outcome) -> int:
    """Say what became of the cases of a call; the exit status that tells whether some failed."""
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: the status tells
        print(f"{out}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _status(main: Main, arguments: list[str], *, debug: bool) -> int:
    try:
        return main(arguments)
    except UserError as error:
        if debug:
            raise
        _log.error("%s", error)
        return 2
    except BrokenPipeError:  # the reader of our output has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _log.warning("interrupted")
        return 128 + signal.SIGINT
    except SystemExit as error:  # raised by argparse, and on SIGTERM
        return error.code if isinstance(error.code, int) else 2
    except Exception as error:
        if debug:
            raise
        _log.debug("internal error", exc_info=True)
        kind = type(error).__name__
        _log.error("internal error (%s: %s); --debug shows where", kind, error)
        return 2


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel.

    A forward pass frees and allocates the same gigabyte again and again, and every new page costs a
    page fault, which makes a float32 pass on a CPU take 1.7 to 2.2 times as long. Only the command
    line does this, never an import; `ATTUNET3D_MALLOC=system` leaves malloc as it is.
    """
    if os.environ.get("ATTUNET3D_MALLOC") == "system":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: nothing to set
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)  # the threshold would not do: it is at most 2 GiB
        libc.mallopt(m_trim_threshold, -1)
