"""Faults that strike `attunet3d train`; each function lets one strike and returns its troubles.

The first line of a function's docstring is its row in the table. None: not possible here.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from attunet3d.models import load_model, load_state
from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import POLL, ForkServer, Hook, spawn, wait
from benchmarks.reliability.resumes import Training
from benchmarks.reliability.small_disk import remount, small_disk

LOST_AT = 13  # the call of the loss that gives NaN; two a step in the first kind of training


def prepare(server: ForkServer, folder: Path) -> Training:
    """A training set, and how a run ends when nothing strikes."""
    manifest, configs = inputs.training_inputs(server, folder)
    name = next(iter(inputs.TRAININGS))
    training = Training(server, folder, manifest, configs[0], name)
    training.uninterrupted(1)
    return training


def nan_stops(training: Training) -> list[str]:
    """train: the loss is NaN at a step: stops with step, cases and last good state; resumes."""
    run_dir = training.folder / "nan"
    status, said = _call(training, run_dir, hook=("fault_injection", "lose_the_number", [LOST_AT]))
    step = LOST_AT // 2
    words = rf"step {step}: the loss is not finite .*phantom_.*last good state is .*last\.pt"
    right = status == 2 and re.search(words, said) and len(_errors(said)) == 1
    found = [] if right else [f"status {status}: {said[-400:]}"]
    if load_state(run_dir / "last.pt")[0]["step"] > step:
        found.append("the state is of a later step")
    return found + _resumed(training, run_dir)


def nan_skipped(training: Training) -> list[str]:
    """train: the loss is NaN at a step, to be skipped by option: counted, and a sound model."""
    run_dir = training.folder / "skipped"
    option = ("--set", "training.on_nonfinite_loss=skip")
    status, said = _call(
        training, run_dir, *option, hook=("fault_injection", "lose_the_number", [LOST_AT])
    )
    if status != 0:
        return [f"status {status}: {said[-400:]}"]
    skipped = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["skipped_steps"]
    load_model(run_dir)  # refuses NaN
    return [] if skipped == 1 else [f"{skipped} steps skipped"]


def full_disk(training: Training) -> list[str] | None:
    """train: the disk fills up (tmpfs): one line, a whole state; enlarged, it resumes."""
    run_dir = training.folder / "full"
    with small_disk(run_dir, 1000) as mounted:  # two states of 376 kB, and no third
        if not mounted:
            return None
        status, said = _call(training, run_dir)
        right = status == 2 and "No space left" in said and len(_errors(said)) == 1
        found = [] if right else [f"status {status}: {said[-400:]}"]
        load_state(run_dir / "last.pt")
        remount(run_dir, "size=20000k")
        return found + _resumed(training, run_dir)


def cache_vanishes(training: Training) -> list[str]:
    """train: prepared data vanish: one line with the case; resumed, they are made again."""
    run_dir, said = training.folder / "cacheless", training.folder / "said.txt"
    command = training.start(run_dir, resume=False)
    while not (run_dir / "last.pt").exists() and command.poll() is None:
        time.sleep(POLL)
    for path in (training.folder / "cache").glob("*/image.npy"):
        path.unlink()
    status, text = wait(command), said.read_text(encoding="utf-8")
    right = status == 2 and re.search("case phantom_.*image.npy cannot be read", text)
    found = [] if right and len(_errors(text)) == 1 else [f"status {status}: {text[-400:]}"]
    return found + _resumed(training, run_dir)


def group_stopped(training: Training) -> list[str]:
    """train: SIGTERM to its process group, as a cluster sends it, as threads prepare; resumes."""
    run_dir, said = training.folder / "group", training.folder / "said.txt"
    arguments = [*training.arguments(run_dir, resume=False), "--set", "training.workers=2"]
    command = spawn(arguments, said, own_group=True)
    while not (run_dir / "last.pt").exists() and command.poll() is None:
        time.sleep(POLL)
    os.killpg(command.pid, signal.SIGTERM)
    status, text = wait(command), said.read_text(encoding="utf-8")
    right = status == 143 and "--resume" in text and "Traceback" not in text
    found = [] if right else [f"status {status}: {text[-400:]}"]
    for path in run_dir.glob("model.safetensors"):
        path.unlink()
    return found + _resumed(training, run_dir)


def _call(
    training: Training, run_dir: Path, *more: str, hook: Hook | None = None
) -> tuple[int | None, str]:
    arguments = [*training.arguments(run_dir, resume=False), *more]
    run_dir.parent.mkdir(exist_ok=True)
    return training.server.call(arguments, training.folder / "said.txt", hook)


def _resumed(training: Training, run_dir: Path) -> list[str]:
    trouble = training.resumed(run_dir)
    return [f"resumed: {trouble}"] if trouble else []


def _errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if "rror" in line]


FAULTS: list[Callable[[Training], list[str] | None]] = [
    *(nan_stops, nan_skipped, full_disk, cache_vanishes, group_stopped),
]
