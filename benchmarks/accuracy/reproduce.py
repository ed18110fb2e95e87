"""From a download to a table beside published numbers, in one call that can be repeated.

Usage: python -m benchmarks.accuracy.reproduce msd07|nih82|amos|btcv DATA OUT
       [--config CONFIG] [--device DEVICE] [--memory SIZE] [--set KEY=VALUE …]

DATA is the data set as it was downloaded; `docs/reproduce.md` tells where from. OUT gets the
manifest, the plan, the cross-validation and table.md. The same call goes on after a stop. For the
folds of nnU-Net put its `splits_final.json` into DATA (amos, btcv, msd07). Exit status 1 means that
cases could not be used or scored, which table.md names.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from attunet3d.core import DataError, UserError, WriteError, command_line, read_json, whole_file
from attunet3d.datasets import Manifest, listing
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

    benchmark, out = find_benchmark(arguments.benchmark), arguments.out
    manifest, run = out / "manifest.json", out / "run"
    make_manifest(arguments.benchmark, arguments.data, out)
    options = [part for value in arguments.set for part in ("--set", value)]
    for name in ("device", "memory"):
        value = getattr(arguments, name)
        options += [] if value is None else [f"--{name}", value]
    options += ["--resume"] if any(run.glob("fold*/config.json")) else []
    train_command.main([str(manifest), arguments.config, str(run), "--fold", "all", *options])
    results = run / "cross_validation"
    left_out = _failed(manifest.with_suffix(".failures.json"), results / "failures.json")
    text = table(benchmark, results / "summary.json", left_out)
    whole_file.write_text(out / "table.md", text)
    print(text)
    return 1 if left_out else 0


def make_manifest(name: str, data: Path, out: Path) -> None:
    """List the cases of a data set in folds, unless `out` has that list.

    Raises:
        UserError: DATA is not the benchmark's data set, or OUT holds another's results.
    """
    if not data.is_dir():
        raise DataError("must be the folder of the data set", path=data, cure="check the path")
    manifest, origin = out / "manifest.json", out / "benchmark.txt"
    asked = f"{name} of {data.resolve()}"
    if origin.is_file() or (out / "run").exists():
        held = origin.read_text("utf-8").strip() if origin.is_file() else "a run of something else"
        if held != asked:
            raise WriteError(f"holds {held}", path=out, value=asked, cure="name another folder")
        return
    manifest_command.main([str(data), "--out", str(manifest), *find_benchmark(name).manifest])
    found = Manifest.load(manifest)
    if found.validation:  # with which `manifest` makes no folds
        in_folds = listing.assign_folds(replace(found, validation=()), data)
        replace(in_folds, validation=found.validation).save(manifest)
    whole_file.write_text(origin, asked + "\n")  # last: a call that is stopped begins anew


def _failed(*files: Path) -> list[str]:
    """The cases that files `failures.json` name."""
    return sorted({case for file in files if file.is_file() for case in read_json(file)})


def table(benchmark: Benchmark, summary: Path, left_out: Sequence[str]) -> str:
    """Our out-of-fold scores, then the published ones, each with its source.

    Args:
        benchmark: Has the published ones.
        summary: Of our scores, as `evaluate` writes it.
        left_out: Cases that could not be used or scored.

    Raises:
        UserError: There is no summary.
    """
    if not summary.is_file():
        raise UserError("no such summary", path=summary, cure="train first")
    found = json.loads(summary.read_text("utf-8"))
    labels = found["labels"].values()
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
    cases = f"Cases scored: {found['scored']}. Left out: {', '.join(left_out) or 'none'}."
    return "\n".join([*lines, "", cases, remark, ""])


def _line(row: Mapping[str, Any]) -> str:
    return f"| {' | '.join(str(row.get(name, '')) for name in HEADINGS)} |"


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
