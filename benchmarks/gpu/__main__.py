"""Training, inference and whole cohorts on a GPU, against MONAI and against bare convolutions.

Usage: python -m benchmarks.gpu [--out FILE] [--work FOLDER] [--device cpu --small]

One JSON, written anew after every section, so that a call that is cut off leaves what it has. Each
section is a process of its own with a time limit: one that fails, hangs or breaks the GPU's context
is recorded as its message, and the rest goes on. All stays under 8 minutes; what there is no time
for is named. Without a GPU it says so and exits 0.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from attunet3d.phantoms import write_phantoms
from benchmarks import measure
from benchmarks.gpu.goals import goals, table
from benchmarks.speed.clinical_scan import CLINICAL, write_clinical_scan

BUDGET_S = 465.0
SECTION_S = 120.0  # the longest that one section may take
LEAST_S = 20.0  # a section is not begun with less than this
PRESETS = ("oktay2018", "pancreas_ct")
NETWORKS = ("ours", "AttentionUnet", "DynUNet")
Found = dict[str, dict[str, Any]]


def sections() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Module, function and arguments of each section, in the order in which they are done."""
    runs = [(preset, network) for preset in PRESETS for network in NETWORKS]
    return {
        "machine": ("timing", "machine", ()),
        "learning": ("learning", "learning", ()),
        "correctness": ("correctness", "correctness", ()),
        "passes": ("inference", "passes", ()),
        "trials": ("inference", "trials", ()),
        "cohort": ("inference", "cohort", ()),
        **{f"train {' '.join(run)}": ("training", "eager", run) for run in runs},
        **{f"ceiling {preset}": ("training", "ceiling", (preset,)) for preset in PRESETS},
    }


def section(name: str, device: str, small: bool, work: Path) -> None:
    """Do one section in this process; its results so far always lie in the work folder."""
    import torch

    from benchmarks.gpu.timing import Setting, attempt

    setting = Setting(torch.device(device), small, work)
    found: dict[str, Any] = {}

    def work_through() -> None:
        module, function, arguments = sections()[name]
        made = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        for step, measured in made(setting, *arguments):
            found[step] = attempt(measured)
            save(work, name, found)

    error = attempt(work_through)
    if error is not None:
        found |= error
    save(work, name, found)


def save(work: Path, name: str, found: dict[str, Any]) -> None:
    """Whole or not at all: the section may be stopped at any time."""
    part = result_path(work, name).with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(result_path(work, name))


def result_path(work: Path, name: str) -> Path:
    return work / f"{name}.json"


def begin(name: str, arguments: argparse.Namespace) -> "subprocess.Popen[bytes]":
    """The section in a process of its own; what it says goes to a file."""
    result_path(arguments.work, name).unlink(missing_ok=True)  # of an earlier call
    small = ["--small"] if arguments.small else []
    place = ["--device", arguments.device, "--work", str(arguments.work)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, *place, *small]
    with log_path(arguments.work, name).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def log_path(work: Path, name: str) -> Path:
    return work / f"{name}.log"


def settle(name: str, process: "subprocess.Popen[bytes]", work: Path, limit_s: float) -> Any:
    """What the section found, and why it ended where it did not end well."""
    found: dict[str, Any] = {}
    try:
        status = process.wait(limit_s)
        why = f"ended with status {status}" if status else None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
        process.wait()
        why = f"stopped after {limit_s:.0f} s"
    if result_path(work, name).is_file():
        found = json.loads(result_path(work, name).read_text())
    if why:
        lines = log_path(work, name).read_text(errors="replace").split("\n")
        found["error"] = " ".join([why, *[line for line in lines if line.strip()][-1:]])[:600]
    return found


def write_data(pool: ProcessPoolExecutor, work: Path) -> "list[Future[Any]]":
    """Phantoms to train on, and the scan of clinical size, begun in the background."""
    (work / "scan").mkdir(exist_ok=True)
    scan = pool.submit(write_clinical_scan, work / "scan", CLINICAL)
    parts = range(4)
    phantoms = [pool.submit(write_phantoms, work / f"phantoms_{n}", 4, 100 * n) for n in parts]
    return [*phantoms, scan]


def write_small_data(work: Path) -> None:
    (work / "scan").mkdir(exist_ok=True)
    write_clinical_scan(work / "scan", (64, 64, 24))
    write_phantoms(work / "phantoms_0", 2, 0, matrix=24)


def measured(arguments: argparse.Namespace, note: Callable[[str, Any], None]) -> None:
    """All sections, each noted as it ends."""
    began = time.monotonic()
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        *phantoms, scan = write_data(pool, arguments.work)
        for name in sections():
            left = BUDGET_S - (time.monotonic() - began)
            if left < LEAST_S:
                note(name, {"error": f"left out: the {BUDGET_S:.0f} s were over"})
                continue
            for data in phantoms if name == "learning" else [scan] if name == "correctness" else []:
                data.exception()  # what misses its data says so itself
            process = begin(name, arguments)
            note(name, settle(name, process, arguments.work, min(SECTION_S, left)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "gpu.json")
    parser.add_argument("--work", type=Path, help="where phantoms and models lie meanwhile")
    parser.add_argument("--device", default="cuda", help="cpu: with --small, to try the script")
    parser.add_argument("--small", action="store_true", help="tiny, in this process")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.section:
        section(arguments.section, arguments.device, arguments.small, arguments.work)
        return 0
    if arguments.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device on this machine: nothing is measured")
            return 0
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        arguments.work = arguments.work or Path(folder)
        arguments.work.mkdir(parents=True, exist_ok=True)
        return benchmark(arguments)


def benchmark(arguments: argparse.Namespace) -> int:
    found: Found = {}
    began = time.monotonic()

    def note(name: str, result: Any) -> None:
        found[name] = result
        took = time.monotonic() - began
        print(f"{took:5.0f} s  {name}{': ' + result['error'] if 'error' in result else ''}")
        sys.stdout.flush()
        reached = [] if arguments.small else goals(found)  # the goals are those of full size
        content = {"seconds": round(took, 1), "goals": reached, "sections": found}
        measure.save(arguments.out.stem, content, arguments.out.parent)

    if arguments.small:
        write_small_data(arguments.work)
        for name in sections():
            section(name, arguments.device, True, arguments.work)
            note(name, json.loads(result_path(arguments.work, name).read_text()))
    else:
        measured(arguments, note)
    if not arguments.small:
        print(table(goals(found)))
    print(arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
