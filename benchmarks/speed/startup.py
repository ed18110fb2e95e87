"""How long until a command answers: `--help` and a bare import, each in fresh processes.

Usage: python -m benchmarks.speed.startup [--out FOLDER] [--repeats N] [--small]

The ways take turns. Marks: `attunet3d --help` under 0.3 s, `import attunet3d` under 0.1 s. Peers
that are not installed are left out. Each process starts with its files in the page cache and its
bytecode compiled, as after a first use; the first, unmeasured turn sees to that. Seconds include
the interpreter's own start, which the last row shows alone; memory is the whole process's, and not
told below what this script holds itself (some 20 MB).
"""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks import measure

MARKS = {"attunet3d --help": 0.3, "import attunet3d": 0.1}
Command = tuple[str, ...]


def commands() -> dict[str, dict[str, Command]]:
    """Of each question the ways to time, ours first; those that are installed."""
    helps: dict[str, Command] = {
        f"{name} --help": (found, "--help")
        for name in ("attunet3d", "nnUNetv2_predict", "TotalSegmentator")
        if (found := shutil.which(name, path=str(Path(sys.executable).parent)))
    }
    imports = {
        f"import {name}": (sys.executable, "-c", f"import {name}")
        for name in ("attunet3d", "nnunetv2", "monai", "torch")
        if find_spec(name)
    }
    return {"help": helps, "import": {**imports, "nothing": (sys.executable, "-c", "")}}


def run(name: str, command: Command) -> tuple[float, float]:
    """Seconds and peak MB of one fresh process; it must say what it can do, where it is asked."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode or ("--help" in command and b"usage" not in answer.lower()):
        raise SystemExit(f"{name}: status {process.returncode}, answered {answer[:200]!r}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def outcomes(ways: dict[str, Command], repeats: int) -> list[measure.Outcome]:
    """All ways in turn; the first turn is not counted."""
    turns = [[run(name, command) for name, command in ways.items()] for _ in range(repeats + 1)]
    return [
        measure.Outcome(name, [turn[0] for turn in taken[1:]], max(t[1] for t in taken), None)
        for name, taken in zip(ways, zip(*turns, strict=True), strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    small = "ours only, three processes each"
    settings = measure.parser(__doc__, repeats=10, small=small).parse_args(arguments)
    content = {}
    for question, ways in commands().items():
        if settings.small:
            ways = dict([*ways.items()][:1])
        results = outcomes(ways, 3 if settings.small else settings.repeats)
        print(measure.table(results) + "\n")
        mark = MARKS[results[0].name]
        content[question] = {
            "mark_s": mark,
            "reached": results[0].median < mark,
            "ways": measure.rows(results),
        }
    print(measure.save("startup", content, settings.out))


if __name__ == "__main__":
    main()
