"""From a download to a table beside published numbers, in one call that can be repeated.

Usage: python -m benchmarks.accuracy.reproduce msd07|nih82|amos|btcv DATA OUT
       [--config CONFIG] [--device DEVICE] [--memory SIZE] [--set KEY=VALUE …]

DATA is the data set as it was downloaded; `docs/reproduce.md` tells where from. OUT gets the
manifest, the plan, the cross-validation and table.md. The same call goes on after a stop. For the
folds of nnU-Net put its `splits_final.json` into DATA (amos, btcv, msd07).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attunet3d.core import UserError, command_line, whole_file
from attunet3d.pipelines import manifest as manifest_command
from attunet3d.pipelines import train as train_command

PUBLISHED = Path(__file__).with_name("published.yaml")
HEADINGS = {"who": "who", "what": "what", "dice": "Dice", "hours": "A100 h", "source": "source"}
RULE = dict.fromkeys(HEADINGS, "---")


@dataclass(frozen=True)
class Benchmark:
    """A public data set, how its manifest is made, and what others have published on it."""

    title: str
    manifest: list[str]
    """Arguments of the command `manifest`."""
    published: list[dict[str, Any]]


def find_benchmark(name: str) -> Benchmark:
    """Read a benchmark from `published.yaml`."""
    return Benchmark(**yaml.safe_load(PUBLISHED.read_text("utf-8"))[name])


def main(argv: Sequence[str] | None = None) -> int:
    """Make the manifest, cross-validate, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(yaml.safe_load(PUBLISHED.read_text("utf-8")))
    parser.add_argument("benchmark", choices=names)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--config", default="pancreas_ct")
    parser.add_argument("--device")
    parser.add_argument("--memory")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)

    benchmark, out = find_benchmark(arguments.benchmark), whole_file.make_folder(arguments.out)
    manifest, run = out / "manifest.json", out / "run"
    if not manifest.is_file():
        status = manifest_command.main(
            [str(arguments.data), "--out", str(manifest), *benchmark.manifest]
        )
        if not manifest.is_file():
            return int(status)
    options = [part for value in arguments.set for part in ("--set", value)]
    for name in ("device", "memory"):
        value = getattr(arguments, name)
        options += [] if value is None else [f"--{name}", value]
    options += ["--resume"] if any(run.glob("fold*/config.json")) else []
    train_command.main([str(manifest), arguments.config, str(run), "--fold", "all", *options])
    text = table(benchmark, run / "cross_validation" / "summary.json")
    whole_file.write_text(out / "table.md", text)
    print(text)
    return 0


def table(benchmark: Benchmark, summary: Path) -> str:
    """Our out-of-fold scores, then the published ones, each with its source.

    Raises:
        UserError: There is no summary.
    """
    if not summary.is_file():
        raise UserError("no such summary", path=summary, cure="train first")
    labels = json.loads(summary.read_text("utf-8"))["labels"].values()
    rows: list[dict[str, Any]] = []
    for label in labels:
        dice = label["dice"]
        low, high = dice["mean_ci95"]
        scored = f"{dice['mean']:.3f} ± {dice['std'] or 0:.3f} ({low:.3f} to {high:.3f})"
        rows.append({"what": f"{label['name']}, out of fold", "dice": scored})
    if len(rows) > 1:
        mean = sum(label["dice"]["mean"] for label in labels) / len(rows)
        rows.append({"what": f"mean of {len(rows)} labels, out of fold", "dice": f"{mean:.3f}"})
    ours = {"who": "this run", "hours": "not measured", "source": summary}
    lines = [f"# {benchmark.title}", "", *map(_line, (HEADINGS, RULE))]
    lines += [_line(row | ours) for row in rows] + [_line(row) for row in benchmark.published]
    remark = (
        "This run: mean ± standard deviation over cases, and the mean's 95 % interval (bootstrap)."
    )
    return "\n".join([*lines, "", remark, ""])


def _line(row: Mapping[str, Any]) -> str:
    return f"| {' | '.join(str(row.get(name, '')) for name in HEADINGS)} |"


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
