"""Feed spoilt files to every reader: no crash, no hang, no memory beyond a bound, one clear line.

Sound files are changed in ways that keep most of their structure (`mutations`), and read in a
process of its own with bounded memory, under the eye of a watchdog (`fuzz_targets` says what must
hold). Input 1234 of a reader is always the same, whatever the machine, so a failure can be looked
at again.

    python -m benchmarks.reliability.fuzz FOLDER                 12,000 inputs, some two minutes
    python -m benchmarks.reliability.fuzz FOLDER --small         600 inputs
    python -m benchmarks.reliability.fuzz FOLDER --seconds 3600  as many as an hour takes
    python -m benchmarks.reliability.fuzz FOLDER --replay "manifest" 1234
    python -m benchmarks.reliability.fuzz FOLDER --atheris 200000    guided by coverage (NIfTI)

Failures lie in FOLDER/failures, all in FOLDER/fuzz.json.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.reliability.rows import row

INPUTS, SMALL_INPUTS = 12_000, 600
HANG_SECONDS = 5.0
PATIENCE_SECONDS = 20.0  # of the watchdog, which cannot tell a hang from a busy machine
MOST_MEMORY = 1 << 30  # bytes above those of an idle process
LONGEST_MESSAGE = 1000

Job = tuple[str, int]  # reader, number of the input


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    bad: list[tuple[int, str]] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """As the tables of `reliability.md` have it."""
        tried = self.taken + self.refused + len(self.bad)
        kinds = Counter(reason.split(":")[0] for _, reason in self.bad)
        note = f"{self.taken} read, {self.refused} refused; slowest {1000 * self.slowest:.0f} ms"
        found = ", ".join(f"{number} × {kind}" for kind, number in kinds.most_common())
        return row(f"fuzz: {name}", tried, len(self.bad), f"{note}; {found}" if found else note)


def run(folder: Path, small: bool = False, seconds: float | None = None) -> dict[str, Any]:
    """Fuzz all readers.

    Args:
        folder: For the inputs and the failures; made when missing.
        small: A twentieth of the inputs.
        seconds: Go on for this long instead.

    Returns:
        `rows`: a row a reader with `what`, `tried`, `good`, `bad` and `note`; `failures`.
    """
    folder = Path(folder)
    shutil.rmtree(folder / "failures", ignore_errors=True)
    (folder / "failures").mkdir(parents=True)
    begin = time.perf_counter()
    jobs = _endless(begin + seconds) if seconds else _jobs(SMALL_INPUTS if small else INPUTS)
    tallies: dict[str, Tally] = {}
    for (name, number), outcome, took in _outcomes(jobs, folder):
        tally = tallies.setdefault(name, Tally())
        _count(tally, name, number, outcome, took, folder)
        _progress(tallies)
    spent = time.perf_counter() - begin
    rows = [tally.row(name) for name, tally in tallies.items()]
    result = {
        "rows": rows,
        "seconds": round(spent, 1),
        "failures": {name: tally.bad for name, tally in tallies.items() if tally.bad},
    }
    (folder / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tried = sum(line["tried"] for line in rows)
    print(f"{tried} inputs in {spent:.0f} s, {sum(line['bad'] for line in rows)} failures")
    return result


def make_input(name: str, number: int) -> dict[str, bytes]:
    """The files of one input; always the same."""
    from benchmarks.reliability.fuzz_targets import TARGETS

    target = next(target for target in TARGETS if target.name == name)
    return target.make(random.Random(f"{name}:{number}"))


def read_input(name: str, files: dict[str, bytes], folder: Path) -> tuple[str, float]:
    """Read one input.

    Args:
        name: Of the reader.
        files: The input.
        folder: For its files; what lies there is deleted.

    Returns:
        "taken", "refused", or "bad: " and the reason; seconds of computing.
    """
    from attunet3d.core import UserError
    from benchmarks.reliability.fuzz_targets import TARGETS

    target = next(target for target in TARGETS if target.name == name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    begin = time.process_time()
    try:
        target.check(folder / next(iter(files)))
    except UserError as error:
        outcome = _judge(str(error), folder)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        outcome = f"bad: {type(error).__name__}: {str(error)[:200]} ({where})"
    else:
        outcome = "taken"
    spent = time.process_time() - begin
    return (outcome if spent < HANG_SECONDS else f"bad: hang: {spent:.1f} s of computing"), spent


def _judge(message: str, folder: Path) -> str:
    """A refusal must be one printable line that names a file."""
    if not message.isprintable() or len(message) > LONGEST_MESSAGE:
        return f"bad: unclear: {message[:200]!r}"
    return "refused" if str(folder) in message else f"bad: unnamed: {message[:200]}"


def _jobs(inputs: int) -> Iterator[Job]:
    from benchmarks.reliability.fuzz_targets import TARGETS

    for target in TARGETS:
        for number in range(max(1, round(inputs * target.share))):
            yield target.name, number


def _endless(until: float) -> Iterator[Job]:
    from benchmarks.reliability.fuzz_targets import TARGETS

    for block in count():
        for target in TARGETS:
            size = max(1, round(1000 * target.share))
            for number in range(block * size, (block + 1) * size):
                if time.perf_counter() > until:
                    return
                yield target.name, number


def _outcomes(jobs: Iterable[Job], folder: Path) -> Iterator[tuple[Job, str, float]]:
    """Every job with its outcome and seconds; a process that dies or hangs is replaced."""
    reader = _Reader(folder)
    try:
        for job in jobs:
            yield job, *reader.read(job)
    finally:
        reader.stop()


class _Reader:
    """The process that reads, started when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def read(self, job: Job) -> tuple[str, float]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.folder), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()  # all is imported
        try:
            self.pipe.send(job)
            if self.pipe.poll(PATIENCE_SECONDS):
                outcome, spent = self.pipe.recv()
                return str(outcome), float(spent)
            outcome = f"bad: hang: no answer in {PATIENCE_SECONDS:.0f} s"
        except (EOFError, ConnectionError):
            self.process.join()
            outcome = f"bad: crash: exit status {self.process.exitcode}"
        self.stop()
        return outcome, 0.0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def _serve(pipe: Connection, folder: Path) -> None:
    """Read inputs until told no more; memory is bounded once all modules are there."""
    quiet = os.open(os.devnull, os.O_WRONLY)  # what C++ libraries say of broken files
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    import torch

    torch.set_num_threads(1)
    for name, number in dict(_jobs(1)).items():
        read_input(name, make_input(name, number), folder / "input")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    bound = pages * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    pipe.send("ready")
    while True:
        name, number = pipe.recv()
        pipe.send(read_input(name, make_input(name, number), folder / "input"))


def _count(tally: Tally, name: str, number: int, outcome: str, took: float, folder: Path) -> None:
    tally.slowest = max(tally.slowest, took)
    if outcome == "taken":
        tally.taken += 1
    elif outcome == "refused":
        tally.refused += 1
    else:
        reason = outcome.removeprefix("bad: ")
        tally.bad.append((number, reason))
        print(f"\n{name} {number}: {reason}")
        for file, data in make_input(name, number).items():
            (folder / "failures" / f"{name.split()[0]}_{number}_{file}").write_bytes(data)


def _progress(tallies: dict[str, Tally]) -> None:
    tried = sum(t.taken + t.refused + len(t.bad) for t in tallies.values())
    if tried % 500 == 0:
        print(f"{tried} inputs, {sum(len(t.bad) for t in tallies.values())} failures", flush=True)


def main() -> int:
    """Run from the command line; exit status 1 when an input failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="a twentieth of the inputs")
    parser.add_argument("--seconds", type=float, metavar="N", help="go on for this long")
    parser.add_argument("--replay", nargs=2, metavar=("READER", "NUMBER"), help="one input again")
    parser.add_argument("--atheris", type=int, metavar="RUNS", help="guided by coverage")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.replay:
        name, number = arguments.replay[0], int(arguments.replay[1])
        print(*read_input(name, make_input(name, number), folder / "input"), "s")
        print(f"its files lie in {folder / 'input'}")
        return 0
    if arguments.atheris:
        module = "benchmarks.reliability.fuzz_coverage"
        call = [sys.executable, "-m", module, str(folder), str(arguments.atheris)]
        return subprocess.run(call, check=False).returncode
    result = run(folder, arguments.small, arguments.seconds)
    for line in result["rows"]:
        print(f"| {' | '.join(str(value) for value in line.values())} |")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
