"""`attunet3d infer` over a folder, killed at random moments: is every file whole, is work lost?

    python -m benchmarks.reliability.kills FOLDER [--small]

Kills come early, at a random time after the first new file, and in the middle of a write (while a
temporary file stands). After each, every file in the output folder is opened, in full and by two
readers, and held against a call that was never killed. A few kills later the same call is let
finish: it must do the rest, leave what was done untouched, say so, and sweep the leftovers.
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

from attunet3d.core import whole_file
from attunet3d.imaging import read_label
from attunet3d.inference import results
from benchmarks.reliability import subjects
from benchmarks.reliability.preloaded import POLL, Command, Preloaded, end, spawn

MOMENTS = {"early": 0.15, "after the first file": 0.45, "while writing": 0.4}  # and their shares
LONGEST_EARLY = 0.15  # seconds
FOLDERS = (".", "probabilities", "attention")


@dataclass
class Tally:
    """What was tried and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    bad_kills: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    finished: int = 0
    repeated: int = 0
    leftovers: int = 0
    """Kills that left a temporary file, so hit a write."""
    troubles: list[str] = field(default_factory=list)


@dataclass
class Subject:
    """One command over one folder, and its right answers."""

    parent: Preloaded
    folder: Path
    model: Path
    scans: Path
    cases: list[str]
    answers: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each image that a call writes that nobody kills."""
    seconds: float = 1.0
    """What such a call takes."""

    def arguments(self, out: Path) -> list[str | Path]:
        """Of the command."""
        wishes = ("--save-probabilities", "--save-attention", "--device", "cpu")
        return ["infer", self.model, self.scans, out, *wishes]

    def start(self, out: Path, *, own_process: bool) -> Command:
        """Start the command, forked or as a process of its own."""
        said = self.folder / "said.txt"
        if own_process:
            return spawn(self.arguments(out), said)
        return self.parent.start(self.arguments(out), said)

    def finish(self, out: Path) -> tuple[int | None, str]:
        """Run the command to its end."""
        return self.parent.call(self.arguments(out), self.folder / "said.txt")


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Kill `infer`, and return rows of what was tried and what held."""
    own, forked, asked = (1, 6, 2) if small else (10, 90, 10)
    with Preloaded() as parent:
        subject = _subject(parent, folder, 3 if small else 8)
        kinds = [signal.SIGKILL] * forked, [signal.SIGTERM, signal.SIGINT] * (asked // 2)
        named = {
            "infer killed by SIGKILL": _series(subject, kinds[0], own_process=False),
            "infer killed by SIGKILL, started anew": _series(
                subject, [signal.SIGKILL] * own, own_process=True
            ),
            "infer stopped by SIGTERM or SIGINT": _series(subject, kinds[1], own_process=False),
        }
    rows = [_row(what, tally) for what, tally in named.items()]
    tallies = list(named.values())
    opened, finished = sum(t.opened for t in tallies), sum(t.finished for t in tallies)
    repeated = sum(t.repeated for t in tallies)
    wrong = sum("does not open" in text for t in tallies for text in t.troubles)
    rows += [
        _counts(
            "files opened after a kill", opened, wrong, "all maps and sidecars, by two readers"
        ),
        _counts("next calls that finish the rest", finished, repeated, "done files stay untouched"),
    ]
    return {"rows": rows, "troubles": [text for tally in tallies for text in tally.troubles]}


def _subject(parent: Preloaded, folder: Path, count: int) -> Subject:
    model, scans = subjects.infer_subjects(parent, folder, count, 32)
    cases = [f"scan_{number}" for number in range(count)]
    subject = Subject(parent, folder, model, scans, cases)
    for name in ("warm", "answers"):
        began = time.monotonic()
        status, said = subject.finish(folder / name)
        assert status == 0, said
        subject.seconds = time.monotonic() - began
    images = _images(folder / "answers")
    assert len(images) == 3 * count
    subject.answers = {name: _sha256(path) for name, path in images.items()}
    return subject


def _series(subject: Subject, numbers: list[signal.Signals], *, own_process: bool) -> Tally:
    """Send the signals, a few to each output folder, and let the last call finish each."""
    tally, rng, pending = Tally(), random.Random(len(numbers) + own_process), list(numbers)
    name = f"out_{numbers[-1].name}_{'own' if own_process else 'forked'}"
    for place in range(10 * len(numbers)):
        if not pending:
            break
        out = subject.folder / f"{name}_{place}"
        done: dict[str, tuple[int, int, str]] = {}
        for _ in range(rng.randint(2, 6)):
            if pending and _kill_one(subject, out, tally, rng, (pending[-1], own_process)):
                pending.pop()
            done = _check(subject, out, tally, done)
        _finish(subject, out, tally, done)
        print(f"{name}: {sum(tally.kills.values())} of {len(numbers)} kills", flush=True)
    return tally


def _kill_one(
    subject: Subject, out: Path, tally: Tally, rng: random.Random, how: tuple[signal.Signals, bool]
) -> bool:
    """Start the command and end it at a random moment; False where it was finished before."""
    number, own_process = how
    moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    before = _names(out)
    command = subject.start(out, own_process=own_process)
    if not _await(command, out, before, moment, rng, subject.seconds):
        return False
    status = end(command, number)
    wanted = {-signal.SIGKILL} if number == signal.SIGKILL else {128 + number}
    if status == 0:
        return False  # it was done in that very moment
    tally.kills[moment] += 1
    tally.leftovers += bool(_names(out, whole_file.PREFIX))
    if status not in wanted:
        tally.bad_kills[moment] += 1
        tally.troubles.append(f"{out.name}: status {status} after {number.name}")
    return True


def _await(
    command: Command,
    out: Path,
    before: set[str],
    moment: str,
    rng: random.Random,
    seconds: float,
) -> bool:
    """Wait for the moment; False when the command ended first."""
    if moment == "early":
        time.sleep(rng.uniform(0, LONGEST_EARLY))
        return command.poll() is None
    beginning = whole_file.PREFIX if moment == "while writing" else ""
    seen: set[str] = set()
    for _ in range(rng.randint(1, 4) if moment == "while writing" else 1):
        while not (new := _names(out, beginning) - before - seen):
            if command.poll() is not None:
                return False
            time.sleep(POLL)
        seen |= new
    if moment == "after the first file":
        time.sleep(rng.uniform(0, 0.7 * seconds))
    return command.poll() is None


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


def _check(
    subject: Subject, out: Path, tally: Tally, done: dict[str, tuple[int, int, str]]
) -> dict[str, tuple[int, int, str]]:
    """Open everything; return identity, time and checksum of the files of cases that are done."""
    now: dict[str, tuple[int, int, str]] = {}
    for name, path in _images(out).items():
        if path.name.startswith("."):
            continue
        tally.opened += 1
        fault = _image_fault(path, _sha256(path), subject.answers[name])
        if fault:
            tally.troubles.append(f"{out.name}/{name}: does not open as it should: {fault}")
    for sidecar in out.glob("[!.]*.json"):
        tally.opened += 1
        names = _claimed(subject, out, sidecar, tally)
        for name in names:
            path = out / name
            found = path.stat()
            now[name] = (found.st_ino, found.st_mtime_ns, _sha256(path))
    _unchanged(out, tally, done, now)
    return now


def _image_fault(path: Path, found: str, wanted: str) -> str | None:
    try:
        np.asarray(nibabel.load(path).dataobj)
        if path.parent.name not in ("probabilities", "attention"):
            read_label(path)
    except Exception as error:  # any: it is what is looked for
        return f"{type(error).__name__}: {error}"
    return None if found == wanted else "other bytes than those of a call that nobody killed"


def _claimed(subject: Subject, out: Path, sidecar: Path, tally: Tally) -> list[str]:
    """The files of a done case: those that its sidecar names, and itself."""
    try:
        content = results.read_sidecar(sidecar)
        names = [*content["files"], sidecar.name]
        files = results.case_files(out, sidecar.stem)
        whole = results.intact(files, content, [out / name for name in content["files"]])
    except Exception as error:
        tally.troubles.append(f"{out.name}/{sidecar.name}: does not open: {error}")
        return []
    if not whole or len(names) != 4 or sidecar.stem not in subject.cases:
        tally.troubles.append(f"{out.name}/{sidecar.name}: does not open files as it names them")
    return names


def _unchanged(
    out: Path,
    tally: Tally,
    done: dict[str, tuple[int, int, str]],
    now: dict[str, tuple[int, int, str]],
) -> None:
    changed = sorted(name for name, facts in done.items() if now.get(name) != facts)
    if changed:
        tally.repeated += 1
        tally.troubles.append(f"{out.name}: done before and written again: {', '.join(changed)}")


def _finish(
    subject: Subject, out: Path, tally: Tally, done: dict[str, tuple[int, int, str]]
) -> None:
    """Let the command end, and check that it did what was left and nothing else."""
    status, said = subject.finish(out)
    tally.finished += 1
    before = tally.repeated
    now = _check(subject, out, tally, done)
    skipped = sum(name.endswith(".json") for name in done)
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (done before|done)\b", said)}
    wanted = {"done": len(subject.cases) - skipped, "done before": skipped}
    problems = [f"status {status}"] if status != 0 else []
    if counts != {what: count for what, count in wanted.items() if count}:
        problems.append(f"said {counts}, not {wanted}")
    if len(now) != 4 * len(subject.cases):
        problems.append(f"{len(now)} files")
    if list(out.rglob(".*")):
        problems.append("temporary files are left")
    if problems:
        tally.repeated = before + 1
        tally.troubles.append(f"{out.name}: the call that finishes: {'; '.join(problems)}")


def _row(what: str, tally: Tally) -> dict[str, Any]:
    tried = sum(tally.kills.values())
    places = {text.split("/")[0].split(":")[0] for text in tally.troubles}
    moments = ", ".join(f"{count} {moment}" for moment, count in sorted(tally.kills.items()))
    note = f"{moments}; {tally.leftovers} hit a write"
    return _counts(what, tried, min(tried, len(places)), note)


def _counts(what: str, tried: int, bad: int, note: str) -> dict[str, Any]:
    return {"what": what, "tried": tried, "good": tried - bad, "bad": bad, "note": note}


if __name__ == "__main__":
    subjects.main(run, __doc__)
