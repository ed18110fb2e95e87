"""Workers of a cohort killed at random moments: is a scan lost, done twice or made otherwise?

    python -m benchmarks.reliability.workers FOLDER [--small]

`attunet3d infer` runs with two processes of one machine, and with two actors of a local Ray where
Ray is installed. Now and then, after something new was done, one of them gets SIGKILL. Every scan
must then be done, once, with the label map of a call that nobody disturbed.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import ForkServer, spawn
from benchmarks.reliability.rows import row

SCANS, KILLS = 60, 14  # of a cohort
LONGEST = 900  # seconds of a cohort
ENGINES = {
    "processes": (("--device", "cpu,cpu"), "spawn_main"),
    "Ray actors": (("--device", "cpu,cpu", "--engine", "ray"), "ray::_Actor"),
}


@dataclass
class Tally:
    """What was killed, and what became of the scans."""

    kills: Counter[str] = field(default_factory=Counter)
    scans: int = 0
    lost: int = 0
    twice: int = 0
    unequal: int = 0
    given_up: int = 0
    """Scans whose worker was killed three times, which are listed as failed; see `dispatch`."""
    troubles: list[str] = field(default_factory=list)


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Kill workers, and return rows of what was tried and what held."""
    count, wanted = (16, {"processes": 3}) if small else (SCANS, {"processes": 90})
    if find_spec("ray") is not None:
        wanted["Ray actors"] = 1 if small else 10
    else:
        print("workers: Ray is not installed; its actors are skipped")
    with ForkServer() as server:
        model, scans = inputs.infer_inputs(server, folder, count, 24)
        arguments = ["infer", model, scans, folder / "answers", "--device", "cpu"]
        status, said = server.call(arguments, folder / "said.txt")
        assert status == 0, said
    answers = {path.name: path.read_bytes() for path in (folder / "answers").glob("*.nii.gz")}
    tally, rng = Tally(), random.Random(0)
    for engine, kills in wanted.items():
        number = 0
        while tally.kills[engine] < kills and number < kills:
            most = min(KILLS, kills - tally.kills[engine])
            out = folder / f"{engine.split()[0]}_{number}"
            _cohort(engine, [str(model), str(scans), str(out)], answers, most, tally, rng)
            number += 1
            print(f"{engine}: {tally.kills[engine]} of {kills} kills", flush=True)
    note = ", ".join(f"{count} {engine}" for engine, count in tally.kills.items())
    note += "" if "Ray actors" in wanted else "; Ray is not installed"
    again = f"{tally.given_up} listed as failed after three kills, done by the next call"
    return {
        "rows": [
            row("workers of a cohort killed", sum(tally.kills.values()), 0, note),
            row("… scans lost", tally.scans, tally.lost, again),
            row("… scans done twice", tally.scans, tally.twice),
            row("… label maps unequal", tally.scans, tally.unequal, "to those of one process"),
        ],
        "troubles": tally.troubles,
    }


def _cohort(
    engine: str,
    paths: list[str],
    answers: dict[str, bytes],
    most: int,
    tally: Tally,
    rng: random.Random,
) -> None:
    options, name = ENGINES[engine]
    out, said = Path(paths[2]), Path(paths[2]).with_suffix(".txt")
    first_seen: dict[str, tuple[int, int]] = {}
    process, left, ends = spawn(["infer", *paths, *options], said), most, time.monotonic() + LONGEST
    at_last_kill = 0
    while process.poll() is None and time.monotonic() < ends:
        for path in out.glob("scan_*.json"):
            first_seen.setdefault(path.name, _version(path))
        enough = len(first_seen) > at_last_kill and len(first_seen) < 0.8 * len(answers)
        if left and enough and (found := _workers(process.pid, name)):
            time.sleep(rng.uniform(0, 0.1))
            victim = rng.choice(found)
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
            tally.kills[engine] += 1
            left, at_last_kill = left - 1, len(first_seen)
        time.sleep(0.005)
    _judge(process, said, paths, answers, first_seen, tally)


def _judge(
    process: "subprocess.Popen[bytes]",
    said: Path,
    paths: list[str],
    answers: dict[str, bytes],
    first_seen: dict[str, tuple[int, int]],
    tally: Tally,
) -> None:
    out, status = Path(paths[2]), process.poll()
    if status is None:
        process.kill()
        process.wait()
    text = said.read_text(encoding="utf-8", errors="replace")
    failures = out / "failures.json"
    failed = json.loads(failures.read_text(encoding="utf-8")) if failures.exists() else {}
    given_up = [case for case, why in failed.items() if "ended 3 times" in why]
    tally.given_up += len(given_up)
    if status != (1 if given_up else 0) or len(given_up) < len(failed):
        tally.troubles.append(f"{out.name}: status {status}: {text[-400:]}")
    if given_up:  # the same call does what is missing
        wait = spawn(["infer", *paths, "--device", "cpu"], said).wait()
        tally.troubles += [f"{out.name}: the next call: status {wait}"] * bool(wait)
    tally.scans += len(answers)
    for name, content in answers.items():
        sidecar, mask = out / f"{name.removesuffix('.nii.gz')}.json", out / name
        if not sidecar.exists():
            tally.lost += 1
        elif first_seen.get(sidecar.name, _version(sidecar)) != _version(sidecar):
            tally.twice += 1
        if not mask.exists() or mask.read_bytes() != content:
            tally.unequal += 1


def _workers(pid: int, name: str) -> list[psutil.Process]:
    """The worker processes that live."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            words = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if name in words and "idle" not in words.lower():
            found.append(child)
    return found


def _version(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns


if __name__ == "__main__":
    inputs.main(run, __doc__)
