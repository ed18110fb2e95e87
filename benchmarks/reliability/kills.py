"""`attunet3d infer` over a folder, killed at random moments: is every file whole, is work lost?

    python -m benchmarks.reliability.kills FOLDER [--small]

Kills come early, at a random time after the first new file, and in the middle of a write (while a
temporary file stands). After each, every file in the output folder is opened, in full and by two
readers, and compared with those of a call that was never killed. After a few kills the same call
runs to its end: it must do the rest, leave what was done untouched, say so, and remove leftovers.
"""

import hashlib
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from attunet3d.cohort import results
from attunet3d.core import whole_file
from attunet3d.imaging import read_label
from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import POLL, Command, ForkServer, end, spawn
from benchmarks.reliability.rows import row

MOMENTS = {"early": 0.15, "after the first file": 0.45, "while writing": 0.4}  # and their shares
LONGEST_EARLY = 0.15  # seconds
FOLDERS = (".", "probabilities", "attention")
OPTIONS = ("--save-probabilities", "--save-attention", "--device", "cpu")
Files = dict[str, tuple[int, int, str]]  # identity, time and checksum by name


@dataclass
class Tally:
    """What was tried and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    finished: int = 0
    repeated: int = 0
    leftovers: int = 0
    """Kills that left a temporary file, so hit a write."""
    troubles: list[str] = field(default_factory=list)


@dataclass
class Series:
    """One command over one folder, its right answers, and what came of killing it."""

    server: ForkServer
    folder: Path
    arguments: list[str | Path]
    cases: list[str]
    answers: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each image that a call writes that nobody kills."""
    seconds: float = 1.0
    """What such a call takes."""
    own_process: bool = False
    tally: Tally = field(default_factory=Tally)

    def start(self, out: Path) -> Command:
        """Start the command, forked or as a process of its own."""
        said, arguments = self.folder / "said.txt", [*self.arguments, out, *OPTIONS]
        return spawn(arguments, said) if self.own_process else self.server.start(arguments, said)

    def finish(self, out: Path) -> tuple[int | None, str]:
        """Run the command to its end."""
        return self.server.call([*self.arguments, out, *OPTIONS], self.folder / "said.txt")

    def trouble(self, place: str, text: str) -> None:
        """Note what is not as it should be."""
        self.tally.troubles.append(f"{place}: {text}")


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Kill `infer`, and return rows of what was tried and what held."""
    own, forked, asked = (1, 6, 2) if small else (10, 90, 10)
    by_request = [signal.SIGTERM, signal.SIGINT]
    kinds = {
        "infer killed by SIGKILL": ([signal.SIGKILL] * forked, False),
        "infer killed by SIGKILL, started anew": ([signal.SIGKILL] * own, True),
        "infer stopped by SIGTERM or SIGINT": (by_request * (asked // 2), False),
    }
    rows, tallies = [], []
    with ForkServer() as server:
        plain = _series(server, folder, 3 if small else 8)
        for what, (signals, own_process) in kinds.items():
            series = Series(**{**vars(plain), "own_process": own_process, "tally": Tally()})
            _carry_out(series, signals)
            tallies.append(series.tally)
            rows.append(_row(what, series.tally))
    troubles = [text for tally in tallies for text in tally.troubles]
    opened, finished, repeated = (
        sum(getattr(tally, name) for tally in tallies)
        for name in ("opened", "finished", "repeated")
    )
    wrong = sum("does not open" in text for text in troubles)
    rows += [
        row("files opened after a kill", opened, wrong, "all maps and sidecars, by two readers"),
        row("next calls that finish the rest", finished, repeated, "done files stay untouched"),
    ]
    return {"rows": rows, "troubles": troubles}


def _series(server: ForkServer, folder: Path, count: int) -> Series:
    model, scans = inputs.infer_inputs(server, folder, count, 32)
    cases = [f"scan_{number}" for number in range(count)]
    series = Series(server, folder, ["infer", model, scans], cases)
    for name in ("warm", "answers"):
        began = time.monotonic()
        status, said = series.finish(folder / name)
        assert status == 0, said
        series.seconds = time.monotonic() - began
    images = _images(folder / "answers")
    assert len(images) == 3 * count
    series.answers = {name: _sha256(path) for name, path in images.items()}
    return series


def _carry_out(series: Series, signals: list[signal.Signals]) -> None:
    """Send the signals, a few to each output folder, and let the last call finish each."""
    rng, pending = random.Random(len(signals) + series.own_process), list(signals)
    name = f"out_{signals[-1].name}_{'own' if series.own_process else 'forked'}"
    for place in range(10 * len(signals)):
        if not pending:
            break
        out = series.folder / f"{name}_{place}"
        done: Files = {}
        for _ in range(rng.randint(2, 6)):
            if pending and _kill_one(series, out, rng, pending[-1]):
                pending.pop()
            done = _check(series, out, done)
        _finish(series, out, done)
        print(f"{name}: {sum(series.tally.kills.values())} of {len(signals)} kills", flush=True)


def _kill_one(series: Series, out: Path, rng: random.Random, number: signal.Signals) -> bool:
    """Start the command and end it at a random moment; False where it was finished before."""
    moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    before = _names(out)
    command = series.start(out)
    if moment == "early":
        time.sleep(rng.uniform(0, LONGEST_EARLY))
    elif not _wait_for_file(command, out, before, moment, rng):
        return False
    elif moment == "after the first file":
        time.sleep(rng.uniform(0, 0.7 * series.seconds))
    if command.poll() is not None:
        return False
    status = end(command, number)
    if status == 0:
        return False  # it was done in that very moment
    series.tally.kills[moment] += 1
    series.tally.leftovers += bool(_names(out, whole_file.PREFIX))
    if status != (-signal.SIGKILL if number == signal.SIGKILL else 128 + number):
        said = (series.folder / "said.txt").read_text(encoding="utf-8", errors="replace")
        series.trouble(out.name, f"status {status} after {number.name}: {said[-500:]}")
    return True


def _wait_for_file(
    command: Command, out: Path, before: set[str], moment: str, rng: random.Random
) -> bool:
    """Wait for the first new file, or for one to four temporary ones; False when it ended first."""
    writing = moment == "while writing"
    beginning, seen = whole_file.PREFIX if writing else "", before
    for _ in range(rng.randint(1, 4) if writing else 1):
        while not (new := _names(out, beginning) - seen):
            if command.poll() is not None:
                return False
            time.sleep(POLL)
        seen = seen | new
    return True


def _names(out: Path, beginning: str = "") -> set[str]:
    """Files in `out` and its folders; asked for every millisecond, so quick."""
    found = set()
    for folder in FOLDERS:
        with suppress(FileNotFoundError):
            names = set(os.listdir(out / folder)) - set(FOLDERS)
            found |= {f"{folder}/{name}" for name in names if name.startswith(beginning)}
    return found


def _images(out: Path) -> dict[str, Path]:
    return {str(path.relative_to(out)): path for path in out.rglob("*.nii.gz")}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(series: Series, out: Path, done: Files) -> Files:
    """Open everything; return the files of cases that are done, which must not change."""
    now: Files = {}
    for name, path in _images(out).items():
        if path.name.startswith("."):
            continue
        series.tally.opened += 1
        if fault := _image_fault(path, series.answers[name]):
            series.trouble(f"{out.name}/{name}", f"does not open as it should: {fault}")
    for sidecar in out.glob("[!.]*.json"):
        series.tally.opened += 1
        for path in _files_of(series, out, sidecar):
            facts = path.stat()
            name = str(path.relative_to(out))
            now[name] = (facts.st_ino, facts.st_mtime_ns, _sha256(path))
    changed = sorted(name for name, facts in done.items() if now.get(name) != facts)
    if changed:
        series.tally.repeated += 1
        series.trouble(out.name, f"done before and written again: {', '.join(changed)}")
    return now


def _image_fault(path: Path, wanted: str) -> str | None:
    try:
        np.asarray(nibabel.load(path).dataobj)
        if path.parent.name not in FOLDERS:
            read_label(path)
    except Exception as error:  # any: it is what is looked for
        return f"{type(error).__name__}: {error}"
    return None if _sha256(path) == wanted else "other bytes than those of a call nobody killed"


def _files_of(series: Series, out: Path, sidecar: Path) -> list[Path]:
    """The files of a done case: those that its sidecar names, and itself."""
    place = f"{out.name}/{sidecar.name}"
    try:
        content = results.read_sidecar(sidecar)
        paths = [out / name for name in content["files"]]
        whole = results.intact(results.case_files(out, sidecar.stem), content, paths)
    except Exception as error:
        series.trouble(place, f"does not open: {error}")
        return []
    if not whole or len(paths) != 3 or sidecar.stem not in series.cases:
        series.trouble(place, "does not open files as it names them")
    return [*paths, sidecar]


def _finish(series: Series, out: Path, done: Files) -> None:
    """Let the command end, and check that it did what was left and nothing else."""
    status, said = series.finish(out)
    series.tally.finished += 1
    before = series.tally.repeated
    now = _check(series, out, done)
    skipped = sum(name.endswith(".json") for name in done)
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (already done|done)\b", said)}
    wanted = {"done": len(series.cases) - skipped, "already done": skipped}
    problems = [f"status {status}"] if status != 0 else []
    if counts != {what: count for what, count in wanted.items() if count}:
        problems.append(f"said {counts}, not {wanted}")
    if len(now) != 4 * len(series.cases):
        problems.append(f"{len(now)} files")
    if list(out.rglob(".*")):
        problems.append("temporary files are left")
    if problems:
        series.tally.repeated = before + 1
        series.trouble(out.name, f"the call that finishes: {'; '.join(problems)}")


def _row(what: str, tally: Tally) -> dict[str, Any]:
    tried = sum(tally.kills.values())
    places = {text.split("/")[0].split(":")[0] for text in tally.troubles}
    moments = ", ".join(f"{count} {moment}" for moment, count in sorted(tally.kills.items()))
    return row(what, tried, min(tried, len(places)), f"{moments}; {tally.leftovers} hit a write")


if __name__ == "__main__":
    inputs.main(run, __doc__)
