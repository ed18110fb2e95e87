"""How a command ends: exit status, one line on stderr, signals, memory settings."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from attunet3d.core import command_line
from attunet3d.core.errors import UserError


def test_the_process_keeps_its_own_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    command_line.run(lambda argv: 0, [])
    assert signal.getsignal(signal.SIGTERM) == before


class Calls:
    """A main that keeps its arguments and ends well."""

    def __init__(self) -> None:
        self.arguments: list[Sequence[str] | None] = []

    def __call__(self, arguments: Sequence[str] | None) -> int:
        self.arguments.append(arguments)
        return 0


def test_main_gets_its_arguments_without_those_of_every_command(tmp_path: Path) -> None:
    seen, path = Calls(), tmp_path / "log.txt"
    for file in (["--log-file", str(path)], [f"--log-file={path}"]):
        arguments = ["a", "--quiet", *file, "--set", "b=1", "--", "--quiet"]
        assert command_line.run(seen, arguments) == 0
    assert seen.arguments == [["a", "--set", "b=1", "--", "--quiet"]] * 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log-file"], "--log-file: needs the path of a file"),
        (["--log-file", "missing/log.txt"], "missing/log.txt: the log cannot be written"),
    ],
)
def test_a_log_file_that_cannot_be_had_is_a_wrong_call(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(lambda argv: 0, arguments) == 2
    assert capsys.readouterr().err.startswith(f"attunet3d: error: {words}")


def test_a_log_file_gets_the_error_and_the_traceback_of_an_internal_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.txt"
    assert command_line.run(raising(UserError("torn")), ["--log-file", str(path)]) == 2
    assert command_line.run(raising(RuntimeError("odd")), ["--log-file", str(path)]) == 2
    text = path.read_text(encoding="utf-8")
    assert "attunet3d: error: torn\n" in text
    assert "Traceback" in text
    assert "Traceback" not in capsys.readouterr().err


def raising(error: Exception) -> Callable[..., Any]:
    def main(argv: list[Any]) -> None:
        raise error

    return main


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_is_what_main_returns(status: int) -> None:
    assert command_line.run(lambda argv: status, []) == status


def test_main_gets_the_arguments_without_debug() -> None:
    seen = Calls()
    assert command_line.run(seen, ["--debug", "a", "b"]) == 0
    assert seen.arguments == [["a", "b"]]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("x.nii: is torn; copy it anew"), 2, "error: x.nii: is torn; copy it anew"),
        (ValueError("a\nb"), 2, "internal error (ValueError: a b); --debug shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, ""),
        (SystemExit("words"), 2, ""),
    ],
)
def test_what_main_raises_is_a_status_and_a_line(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(raising(error), []) == status
    printed = capsys.readouterr().err
    assert line in printed
    assert "Traceback" not in printed


def test_debug_shows_where() -> None:
    with pytest.raises(UserError, match="torn"):
        command_line.run(raising(UserError("torn")), ["--debug"])
    with pytest.raises(ValueError, match="odd"):
        command_line.run(raising(ValueError("odd")), ["--debug"])


def process(code: str, **changes: Any) -> subprocess.Popen[str]:
    """A process that runs `code` as a command's main."""
    script = f"from attunet3d.core import command_line\ndef main(argv):\n{code}\n"
    script += "raise SystemExit(command_line.run(main, []))"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **changes},
    )


def test_sigterm_keeps_its_status_where_a_library_raises_another_error() -> None:
    code = """
    import signal
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        raise SystemError("returned a result with an exception set") from None
"""
    child = process(code)
    _, err = child.communicate(timeout=20)
    assert (child.returncode, "Traceback" in err) == (143, False)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_signals_end_with_their_status_and_let_go_of_what_is_open(
    number: Signals, status: int
) -> None:
    code = """
    import time
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("closed", flush=True)
"""
    child = process(code)
    assert child.stdout
    assert child.stderr
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.05)
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == status
    assert out == "closed\n"
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error() -> None:
    child = process("    for n in range(100000):\n        print(n)\n    return 0")
    assert child.stdout
    assert child.stderr
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(20) == 0
    assert child.stderr.read() == ""
    child.stderr.close()


def test_what_the_terminal_cannot_show_is_replaced() -> None:
    child = process('    print("4×4 mm")\n    return 0', PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (0, "4?4 mm\n", "")


FAULTS = """
    import ctypes, resource
    def touch():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            block = libc.malloc(ctypes.c_size_t(64 << 20))
            ctypes.memset(block, 1, 64 << 20)
            libc.free(ctypes.c_void_p(block))
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(touch())
    return 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_asked_not_to() -> None:
    faults = {}
    for way in ("ours", "system"):
        out, _ = process(FAULTS, ATTUNET3D_MALLOC=way).communicate(timeout=60)
        faults[way] = int(out)
    # Ten blocks given back and taken anew fault ten times as often as one that is kept.
    assert faults["system"] > 5 * faults["ours"] > 0


MAPPED = """
    import ctypes
    from attunet3d.core.memory import _kept_by_malloc_bytes, _mallinfo2
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = _mallinfo2().hblks
    block = libc.malloc(ctypes.c_size_t(5 << 29))
    mapped = _mallinfo2().hblks - before
    kept = _kept_by_malloc_bytes()
    libc.free(block)
    print(bool(block), mapped, _kept_by_malloc_bytes() - kept > 5 << 28)
    return 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_blocks_beyond_2_gib_are_kept_as_well() -> None:
    """A whole pass has such; one that is mapped goes back to the kernel when it is freed."""
    for way, mapped, kept in (("ours", "0", "True"), ("system", "1", "False")):
        out, err = process(MAPPED, ATTUNET3D_MALLOC=way).communicate(timeout=60)
        assert (out.split(), err) == (["True", mapped, kept], "")
