"""A command called as a person calls it: its status, its words, its seconds and its memory."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int  # negative: ended by this signal
    output: str
    errors: str
    seconds: float
    cpu_seconds: float  # user and system; what else the machine does is not in it
    peak_mb: float  # resident memory of the whole process, 10^6 bytes
    timed_out: bool

    @property
    def crashed(self) -> bool:
        """Ended by a signal, out of time or with a traceback."""
        return self.status < 0 or self.timed_out or "Traceback" in self.errors + self.output


def call(argv: Sequence[str], seconds: float, folder: Path = ROOT) -> Result:
    """Run `argv`; it is ended when it takes longer than `seconds`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdout=out, stderr=err, cwd=folder)
        status, timed_out, usage = None, False, None
        while status is None:
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
            elif time.perf_counter() - began > seconds and not timed_out:
                timed_out = True
                process.send_signal(signal.SIGKILL)
            else:
                time.sleep(0.005)
        process.returncode = status  # it was waited for here, not by subprocess
        assert usage is not None
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
        passed = time.perf_counter() - began
        return Result(
            status,
            texts[0],
            texts[1],
            passed,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024 / 1e6,
            timed_out,
        )


def attunet3d(*arguments: str | Path, seconds: float = 300) -> Result:
    """Call our command line."""
    return call([sys.executable, "-m", "attunet3d", *map(str, arguments)], seconds)
