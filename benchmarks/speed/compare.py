"""Two checkouts of this repository, timed in turn: did anything become slower?

    git worktree add ../old 1fc9d0c
    python -m benchmarks.speed.compare ../old [--only ROW …] [--rounds N] [--most 1.05]

Run it on a quiet machine, from the newer checkout. Each
row is one of the scripts of this folder. Its own ways take turns with each other; the two checkouts
take turns as well, round by round, each with its own code of package and benchmark, and the medians
over all rounds are compared. Only ways of ours count, and of those what both checkouts have. The
exit status is 1 when one takes more than `--most` times as long as it did.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure

ROOT = Path(__file__).parents[2]
ROWS = {  # script: its arguments; the small scan is enough where the path is the same
    "around_network": ["--repeats", "3"],
    "end_to_end": ["--small", "--repeats", "3"],
    "forward_pass": ["--repeats", "3"],
    "train_step": ["--repeats", "2"],
    "training_items": ["--repeats", "2"],
}
OURS = ("attunet3d", "torch ", "openvino ")  # beginnings of the names of ways


def timed(checkout: Path, row: str, small: bool) -> dict[str, list[float]]:
    """Seconds of each way of ours in one run of a row's script in a checkout."""
    arguments = ["--small", "--repeats", "1"] if small else ROWS[row]
    script = ["-m", f"benchmarks.speed.{row}"]
    if not (checkout / "benchmarks" / "speed").exists():  # before there were rooms
        script = [f"benchmarks/{row}.py"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *script, *arguments, "--out", folder]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{checkout}: {row}: {done.stderr[-2000:]}")
        content = json.loads(Path(folder, f"{row}.json").read_text(encoding="utf-8"))
    found: dict[str, list[float]] = defaultdict(list)
    for name, seconds in _ways(content, row):
        if name.split(": ")[-1].startswith(OURS):
            found[name] += seconds
    return found


def _ways(value: Any, place: str) -> Iterator[tuple[str, list[float]]]:
    """The ways in a result, wherever they lie, by place and name."""
    if isinstance(value, dict) and {"way", "seconds"} <= value.keys():
        yield f"{place}: {value['way']}", value["seconds"]
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _ways(part, place if name in ("rows", "ways") else f"{place}, {name}")
    elif isinstance(value, list):
        for part in value:
            yield from _ways(part, place)


def compared(
    old: dict[str, list[float]], new: dict[str, list[float]], most: float
) -> list[dict[str, Any]]:
    """A line for each way that both have.

    Example:
        >>> compared({"a": [2.0, 2.0]}, {"a": [2.2, 2.0], "b": [1.0]}, 1.05)
        [{'way': 'a', 'old_s': 2.0, 'new_s': 2.1, 'times': 1.05, 'slower': False}]
    """
    lines = []
    for name in (name for name in old if name in new):
        before, now = statistics.median(old[name]), statistics.median(new[name])
        times = round(now / before, 3)
        line = {"way": name, "old_s": round(before, 4), "new_s": round(now, 4), "times": times}
        lines.append({**line, "slower": times > most})
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.05, help="times as long as before")
    parser.add_argument("--small", action="store_true", help="to try the script")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    lines = []
    for row in options.only:
        seconds: dict[Path, dict[str, list[float]]] = {}
        for number in range(options.rounds):
            turn = (options.old.resolve(), ROOT)
            for checkout in turn if number % 2 == 0 else turn[::-1]:
                taken = seconds.setdefault(checkout, defaultdict(list))
                for name, values in timed(checkout, row, options.small).items():
                    taken[name] += values
                print(f"{row}, round {number + 1}: {checkout.name} done", flush=True)
        lines += compared(seconds[options.old.resolve()], seconds[ROOT], options.most)
    print(measure.markdown(lines))
    print(measure.save("compare", {"most": options.most, "rows": lines}, options.out))
    return 1 if any(line["slower"] for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
