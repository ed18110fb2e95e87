"""Commands in processes forked from one that has torch loaded: started in milliseconds.

A forked command runs what `attunet3d` runs, with its own arguments, output and exit status, and
dies by signals as any process does; only the three seconds of imports are saved.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "RAY_worker_niceness": "0",  # else 15: beside busy processes its actors hardly run
}
LOADED = (
    *("imaging.dicom", "cohort.run", "cohort.export", "inference.predictor"),
    *("training.run_folder", "training.trainer", "pipelines.train"),
)
# Optimisers import torch._dynamo; a user without rights to Python's folder has no other encodings.
ALSO_LOADED = ("torch.utils.tensorboard", "torch._dynamo", "encodings.ascii", "encodings.idna")
LONGEST = 120  # seconds that any command here may take
POLL = 0.001
REQUESTS = {signal.SIGINT, signal.SIGTERM}  # of a person: they wait until the command has begun

Hook = tuple[str, str, list[Any]]  # module of this folder, its function, arguments


class Command(Protocol):
    """A running command."""

    pid: int

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""


@dataclass
class Forked:
    """A command forked by `ForkServer`."""

    parent: "ForkServer"
    pid: int
    status: int | None = None

    def poll(self) -> int | None:
        """See `Command`."""
        if self.status is None:
            self.status = self.parent.ask("poll", self.pid)
        return self.status


def wait(command: Command, seconds: float = LONGEST) -> int | None:
    """The exit status; None when it took longer than `seconds` and was ended for that."""
    deadline = time.monotonic() + seconds
    while (status := command.poll()) is None:
        if time.monotonic() > deadline:
            end(command, signal.SIGKILL)
            return None
        time.sleep(POLL)
    return status


def end(command: Command, number: int) -> int:
    """Send a signal and return the exit status; after a minute SIGKILL follows."""
    os.kill(command.pid, number)
    deadline = time.monotonic() + 60
    while (status := command.poll()) is None:
        if time.monotonic() > deadline:
            os.kill(command.pid, signal.SIGKILL)
        time.sleep(POLL)
    return status


def spawn(
    arguments: Sequence[object], said: Path, *, own_group: bool = False
) -> "subprocess.Popen[bytes]":
    """Start `attunet3d` as a person does; what it says goes to the file `said`."""
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "attunet3d", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=own_group,
        )


class ForkServer:
    """The process that forks; use it in a `with` statement."""

    def __enter__(self) -> "ForkServer":
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, *request: Any) -> Any:
        """One question, one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, arguments: Sequence[object], said: Path, hook: Hook | None = None) -> Forked:
        """Start `attunet3d` with `arguments`; `hook` is called in its process first.

        Without arguments the hook is all that runs.
        """
        texts = [str(argument) for argument in arguments]
        return Forked(self, self.ask("start", texts, str(said), hook))

    def call(
        self, arguments: Sequence[object], said: Path, hook: Hook | None = None
    ) -> tuple[int | None, str]:
        """Run to the end: the exit status, None for a hang, and what was said."""
        status = wait(self.start(arguments, said, hook))
        return status, said.read_text(encoding="utf-8", errors="replace")


def serve() -> None:
    """Load, then answer questions until there are no more."""
    import torch

    torch.set_num_threads(1)
    for name in LOADED:
        import_module(f"attunet3d.{name}")
    for name in ALSO_LOADED:
        import_module(name)
    for line in sys.stdin:
        question, *rest = json.loads(line)
        answer = _fork(*rest) if question == "start" else _poll(*rest)
        print(json.dumps(answer), flush=True)


def _poll(pid: int) -> int | None:
    found, code = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(code) if found else None


def _fork(arguments: list[str], said: str, hook: Hook | None) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        return pid
    status = 70  # of a hook that failed
    try:
        _redirect(said)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` in a shell ignores it
        if hook is not None:
            module, function, values = hook
            getattr(import_module(f"benchmarks.reliability.{module}"), function)(*values)
        from attunet3d import __main__
        from attunet3d.core import command_line

        def begin(argv: Sequence[str] | None) -> int:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
            return __main__.dispatch(argv)

        status = command_line.run(begin, arguments) if arguments else 0
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if sys.exc_info()[1] is not None:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def _redirect(said: str) -> None:
    for name, flags, numbers in (
        (os.devnull, os.O_RDONLY, (0,)),
        (said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, (1, 2)),
    ):
        descriptor = os.open(name, flags, 0o666)
        for number in numbers:
            os.dup2(descriptor, number)
        os.close(descriptor)


if __name__ == "__main__":
    serve()
