"""Ways of doing the same work, timed in turn in one run: medians, ratios, peak memory, JSON.

Each way lives in a process of its own, so that no way's memory settings, caches or imports help
another's. All are prepared and run once unmeasured; then they take turns, so that whatever else
the machine does strikes all alike.
"""

import gc
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("attunet3d", "torch", "monai", "numpy", "nibabel", "SimpleITK", "nnunetv2", "openvino")


@dataclass(frozen=True)
class Way:
    """One way of doing the work.

    Args:
        name: As the table shows it.
        prepare: Called once in the way's process with `arguments`; returns the work, a function
            without arguments whose result is small and can be pickled. A function of a module.
        arguments: Of `prepare`.
        command_line: Set the memory as attunet3d's command line does.
    """

    name: str
    prepare: Callable[..., Callable[[], Any]]
    arguments: tuple[Any, ...] = ()
    command_line: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one way took, and its last result."""

    name: str
    seconds: list[float]
    peak_mb: float  # above what the process held before the work
    result: Any

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)


def emulated(name: str) -> bool:
    """Whether a way is in bfloat16 by its name where this processor has no instructions for that.

    Emulation takes minutes where the others take seconds, and measures nothing that is used: such
    ways are left out.
    """
    import torch

    from attunet3d.core import computes_in_bfloat16

    return "bfloat16" in name and not computes_in_bfloat16(torch.device("cpu"))


def compare(ways: Sequence[Way], repeats: int = 5) -> list[Outcome]:
    """Run all `ways` in turn, `repeats` times; the first is what ratios refer to.

    Ways in bfloat16 are left out where it is emulated.
    """
    ways = [way for way in ways if not emulated(way.name)]
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for way in ways:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(way, there), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
        _ask(here, way, None)  # prepared, one after the other
    turns: list[list[tuple[float, float, Any]]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, pipe, taken in zip(ways, pipes, turns, strict=True):
            answer = _ask(pipe, way, turn)
            taken.extend([answer] if turn or repeats == 0 else [])
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.close()
        process.join(10)
    return [
        Outcome(way.name, [t[0] for t in taken], max(t[1] for t in taken), taken[-1][2])
        for way, taken in zip(ways, turns, strict=True)
    ]


def _ask(pipe: Connection, way: Way, turn: int | None) -> Any:
    if turn is not None:
        pipe.send(turn)
    try:
        answer = pipe.recv()
    except EOFError:
        raise SystemExit(f"{way.name}: its process ended; see above") from None
    return answer


def _serve(way: Way, pipe: Connection) -> None:
    if way.command_line:
        from attunet3d.core import keep_freed_memory

        keep_freed_memory()
    work = way.prepare(*way.arguments)
    gc.collect()
    held = _status_mb("VmRSS")  # before the first run: freed memory that malloc keeps is not free
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        gc.collect()
        reset_peak()
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
        pipe.send((seconds, peak_mb() - held, result))


def reset_peak() -> None:
    """Forget this process's peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Peak of this process's resident memory since `reset_peak`, in MB (10^6 bytes)."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {name}")


def table(outcomes: Sequence[Outcome]) -> str:
    """A markdown table: median seconds, ratio to the first way, peak memory."""
    return markdown(
        {
            "way": outcome.name,
            "median s": f"{outcome.median:.3f}",
            "min–max s": f"{min(outcome.seconds):.3f}–{max(outcome.seconds):.3f}",
            "times ours": f"{outcome.median / outcomes[0].median:.2f}",
            "peak MB": f"{outcome.peak_mb:.0f}",
        }
        for outcome in outcomes
    )


def markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """A markdown table of lines that share their columns; None is a dash."""
    listed = list(lines)
    heads = [name.replace("_", " ") for name in listed[0]]
    cells = [heads, ["---"] * len(heads)]
    cells += [["–" if value is None else str(value) for value in line.values()] for line in listed]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {
            "way": outcome.name,
            "seconds": [round(s, 4) for s in outcome.seconds],
            "median_s": round(outcome.median, 4),
            "times_ours": round(outcome.median / outcomes[0].median, 3),
            "peak_mb": round(outcome.peak_mb, 1),
        }
        for outcome in outcomes
    ]


def repeated(
    work: Callable[[], Any],
    repeats: int,
    *,
    warm: int = 1,
    batch: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of one `work` in this process, a number per repeat.

    Args:
        work: What is timed.
        repeats: How often.
        warm: Calls before, which are not timed.
        batch: Calls per repeat.
        wait: Called before either look at the clock, for work that is done elsewhere.
    """
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        for _ in range(batch):
            work()
        wait()
        seconds.append((time.perf_counter() - began) / batch)
    return seconds


# A child's peak begins at its parent's memory, so the parent is a bare interpreter.
LAUNCHER = """
import resource, subprocess, sys, time
began = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def launched(
    call: Iterable[object], environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[float, float]:
    """Seconds of a command, and the peak memory in MB of it or of its largest child."""
    words = list(map(str, call))
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *words],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr[-2000:]}")
    seconds, kilobytes = map(float, done.stdout.split())
    return seconds, kilobytes * 1024 / 1e6


def parser(about: str | None, repeats: int, small: str = "a run of seconds") -> ArgumentParser:
    """The options that all benchmarks share: --small, --repeats and --out."""
    made = ArgumentParser(description=(about or "").splitlines()[0])
    made.add_argument("--small", action="store_true", help=small)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return made


def save(name: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `content` with the machine, versions and command as `folder`/`name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.orig_argv]
    record = {
        "command": " ".join(words),  # without the folders of this machine
        "machine": machine(),
        **content,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Processor, its instructions as torch uses them, cores, memory and versions."""
    import torch

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "versions": versions,
    }
