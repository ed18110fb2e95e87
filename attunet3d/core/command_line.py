"""How a command starts and ends: memory settings, one-line errors, exit statuses, signals.

Exit status: 0 all done; 1 some cases failed, the rest are done; 2 the call itself is wrong;
130 and 143 stopped by Ctrl-C and by SIGTERM.
"""

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType

from attunet3d.core.errors import UserError

Main = Callable[[Sequence[str] | None], int]


def run(main: Main, argv: Sequence[str] | None = None) -> int:
    """Call `main` as a command and turn what it raises into one line and an exit status.

    Args:
        main: A pipeline's `main`: arguments (None: those of the process) → exit status.
        argv: The arguments without the command's name.

    Returns:
        The exit status.

    Example:
        >>> run(lambda argv: 0, [])
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        signal.signal(signal.SIGTERM, _terminate)
        keep_freed_memory()
        for stream in (sys.stdout, sys.stderr):  # under LC_ALL=C: "?" for "×" and for a scan's name
            with contextlib.suppress(AttributeError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        warnings.simplefilter("default" if debug else "ignore")
        return main(arguments)
    except UserError as error:
        if debug:
            raise
        return _complain(str(error))
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("attunet3d: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as error:  # argparse's way out, and SIGTERM's
        return error.code if isinstance(error.code, int) else 2
    except Exception as error:
        if debug:
            raise
        words = " ".join(str(error).split())  # of other libraries: may have many lines
        return _complain(f"internal error ({type(error).__name__}: {words}); --debug shows where")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving them back to the kernel.

    A forward pass frees and takes back the same gigabyte; every fresh page costs a fault, which on
    CPUs takes longer than the arithmetic (1.7 to 2.2 times the time of a float32 pass). Only the
    command line does this, never an import; `ATTUNET3D_MALLOC=system` leaves malloc as it is.
    """
    if os.environ.get("ATTUNET3D_MALLOC") == "system":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # no glibc: nothing to set
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)  # not the threshold: that ends at 2 GiB
        libc.mallopt(m_trim_threshold, -1)


def _complain(message: str) -> int:
    print(f"attunet3d: error: {message}", file=sys.stderr)
    return 2


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
