"""`attunet3d train`, killed or stopped at random moments and resumed: the same weights to the bit?

    python -m benchmarks.reliability.resumes FOLDER [--small]

Each kind of training in `inputs.TRAININGS` runs once to its end. Then it runs again, is ended a
few times at random moments (from the first second of the call on, so that the preparation of the
data and the final figures are hit as well), resumed with --resume each time, and must end with the
same `model.safetensors` and the same state in `last.pt`, bit for bit. SIGTERM and SIGINT must save,
say how to go on, and exit with 143 and 130. A state that is cut, has a flipped bit, is empty or is
gone must be noticed, the one before it used, and the end be the same.
"""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import POLL, Command, ForkServer, end, spawn, wait
from benchmarks.reliability.rows import row
from benchmarks.reliability.run_state import RunState, run_state

INTERRUPTIONS_A_RUN = 5  # at most; some are done before
MOST_RUNS = 20  # of one kind; seven or so are needed
DAMAGES = ("cut", "with a flipped bit", "empty", "gone")
NOTES = {
    "SIGTERM": "saves, says how to go on, status 143",
    "SIGINT": "saves, says how to go on, status 130",
    "SIGKILL before its first save": "begins anew, with --resume where there is a run",
    "SIGKILL later": "at a random moment",
}


@dataclass
class Training:
    """One kind of training, and how its run ends that nobody stops."""

    server: ForkServer
    folder: Path
    manifest: Path
    config: Path
    name: str
    seconds: float = 0.0
    answer: RunState | None = None

    def arguments(self, run: Path, *, resume: bool) -> list[str | Path]:
        """Of the command."""
        cache: list[str | Path] = [
            "--cache",
            self.folder / "cache",
            "--fold",
            "0",
            "--device",
            "cpu",
        ]
        return ["train", self.manifest, self.config, run, *cache, *["--resume"] * resume]

    def start(self, run: Path, *, resume: bool) -> Command:
        """Start the command, forked; what was killed before there was a run begins anew."""
        resume = resume and (run / "config.json").is_file()
        return self.server.start(self.arguments(run, resume=resume), self.folder / "said.txt")

    def said(self) -> str:
        """What the latest command said."""
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")

    def difference(self, run_dir: Path) -> str | None:
        """What came out otherwise than of the run that nobody stopped; None: nothing."""
        assert self.answer is not None
        found = run_state(run_dir)
        parts = [name for name in vars(found) if getattr(found, name) != getattr(self.answer, name)]
        left = [path.name for path in run_dir.rglob("*.tmp")]
        return f"other {', '.join(parts)}" if parts else f"left {left}" if left else None

    def resumed(self, run_dir: Path) -> str | None:
        """Resume a run to its end; what is then not as in the run that nobody stopped."""
        status = wait(self.start(run_dir, resume=True))
        return self.difference(run_dir) if status == 0 else f"{status}: {self.said()[-400:]}"

    def uninterrupted(self, times: int) -> None:
        """Run it to its end so many times, and keep how it ended and how long the last took."""
        first = self.folder / f"{self.config.stem}_whole"
        for _ in range(times):  # the first also prepares the cache
            shutil.rmtree(first, ignore_errors=True)
            began = time.monotonic()
            status = wait(self.start(first, resume=False))
            assert status == 0, self.said()
            self.seconds = time.monotonic() - began
            found = run_state(first)
            assert self.answer in (None, found), "two runs of one seed differ"
            self.answer = found


@dataclass
class Tally:
    """What was tried and what went wrong."""

    kinds: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    other: int = 0
    """Runs that did not end bit-identical."""
    troubles: list[str] = field(default_factory=list)

    def note(self, kind: str, trouble: str | None) -> None:
        """Count one interruption."""
        self.kinds[kind] += 1
        if trouble:
            self.bad[kind] += 1
            self.troubles.append(f"{kind}: {trouble}")

    def note_run(self, name: str, trouble: str | None) -> None:
        """Count one run that came to its end."""
        self.runs += 1
        if trouble:
            self.other += 1
            self.troubles.append(f"{name}: {trouble}")

    def rows(self) -> list[dict[str, Any]]:
        """As the table has them."""
        other = "noticed; continues from previous.pt"
        found = [
            row(f"train: {kind}", tried, self.bad[kind], NOTES.get(kind, other))
            for kind, tried in sorted(self.kinds.items())
        ]
        note = "model, state (EMA, optimiser, schedule, scaler) and metrics as never interrupted"
        what = "interrupted trainings that end bit-identical"
        return [*found, row(what, self.runs, self.other, note)]


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Kill and resume `train`, and return rows of what was tried and what held."""
    tally = Tally()
    with ForkServer() as server:
        manifest, configs = inputs.training_inputs(server, folder)
        named = list(zip(inputs.TRAININGS, configs, strict=True))[: 1 if small else None]
        for number, (name, config) in enumerate(named):
            training = Training(server, folder, manifest, config, name)
            training.uninterrupted(1 if small else 2)
            print(f"{name}: {training.seconds:.1f} s uninterrupted", flush=True)
            _carry_out(training, tally, random.Random(number), small)
        if not small:
            _as_a_person_does(training, tally)
    return {"rows": tally.rows(), "troubles": tally.troubles}


def _carry_out(training: Training, tally: Tally, rng: random.Random, small: bool) -> None:
    """Interrupt runs in every way, a few times each, and resume each to its end."""
    stops = (signal.SIGTERM, signal.SIGINT) * (1 if small else 2)
    plan: list[Callable[[Path], bool]] = [
        *[partial(_killed, training, tally, rng)] * (2 if small else 14),
        *(partial(_stopped, training, tally, rng, stop) for stop in stops),
        *(partial(_damaged, training, tally, rng, how) for how in DAMAGES[: 1 if small else None]),
    ]
    rng.shuffle(plan)
    for _ in range(MOST_RUNS):
        if not plan:
            return
        run_dir = training.folder / f"run_{tally.runs}"
        for _ in range(INTERRUPTIONS_A_RUN):
            if not plan or not plan[-1](run_dir):
                break  # it came to its end
            plan.pop()
        trouble = training.resumed(run_dir)
        tally.note_run(f"{run_dir.name}, {training.name}", trouble)
        if not trouble:
            shutil.rmtree(run_dir)
        print(f"{training.name}: {dict(tally.kinds)}, {tally.other} differ", flush=True)
    tally.troubles.append(f"{training.name}: {len(plan)} interruptions did not come about")


def _killed(training: Training, tally: Tally, rng: random.Random, run_dir: Path) -> bool:
    """SIGKILL at a random moment; False when the call had ended."""
    latest = rng.choice((0.15, 0.6))  # of the time of a whole run
    command = training.start(run_dir, resume=True)
    time.sleep(rng.uniform(0.01, latest) * training.seconds)
    if command.poll() is not None:
        return False
    before = "before its first save" if not (run_dir / "last.pt").exists() else "later"
    if end(command, signal.SIGKILL) != -signal.SIGKILL:
        return False
    tally.note(f"SIGKILL {before}", None)
    return True


def _stopped(
    training: Training, tally: Tally, rng: random.Random, number: signal.Signals, run_dir: Path
) -> bool:
    """SIGTERM or SIGINT while it trains; False when the call had ended."""
    command = training.start(run_dir, resume=True)
    if not _saves(command, run_dir / "last.pt", rng.randint(1, 4)):
        return False
    status = end(command, number)
    if status == 0:
        return False
    said = training.said()
    right = status == 128 + number and "--resume" in said and "Traceback" not in said
    tally.note(number.name, None if right else f"status {status}, said {said[-200:]}")
    return True


def _damaged(
    training: Training, tally: Tally, rng: random.Random, damage: str, run_dir: Path
) -> bool:
    """Kill, damage the last state, resume until the next save, and kill again."""
    command, path = training.start(run_dir, resume=True), run_dir / "last.pt"
    if not _saves(command, path, 3) or end(command, signal.SIGKILL) != -signal.SIGKILL:
        return False
    if not path.exists():  # killed between two renames: damage enough
        path = run_dir / "previous.pt"
    _damage(path, damage, rng)
    command = training.start(run_dir, resume=True)
    killed = _saves(command, path, 1) and end(command, signal.SIGKILL) == -signal.SIGKILL
    said = training.said()
    named = "last.pt" in said and "continuing from" in said
    trouble = None if named else f"not noticed: {said[-300:]}"
    if not killed and command.poll() != 0:
        trouble = f"status {command.poll()}: {said[-300:]}"
    tally.note(f"last.pt {damage}", trouble)
    return True


def _saves(command: Command, path: Path, count: int) -> bool:
    """Wait for `count` saves of the state; False when the command ended first."""
    seen = {0, _time_of(path)}
    enough = len(seen) + count
    while len(seen) < enough:
        if command.poll() is not None:
            return False
        seen.add(_time_of(path))
        time.sleep(POLL)
    return True


def _time_of(path: Path) -> int:
    """When the file was written, 0 where there is none: for a moment between two renames."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _damage(path: Path, damage: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: rng.randrange(1, len(data))]
    elif damage == "with a flipped bit":
        data[rng.randrange(len(data) // 10, len(data) * 9 // 10)] ^= 1 << rng.randrange(8)
    elif damage == "empty":
        data.clear()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data)


def _as_a_person_does(training: Training, tally: Tally) -> None:
    """Once in processes of their own, nothing forked."""
    run_dir, said = training.folder / "run_own", training.folder / "said.txt"
    command: Command = spawn(training.arguments(run_dir, resume=False), said)
    assert _saves(command, run_dir / "last.pt", 2), training.said()
    tally.note("SIGKILL later", None)
    end(command, signal.SIGKILL)
    status = wait(spawn(training.arguments(run_dir, resume=True), said))
    trouble = training.difference(run_dir) if status == 0 else f"{status}: {training.said()}"
    tally.note_run("started anew", trouble)


if __name__ == "__main__":
    inputs.main(run, __doc__)
