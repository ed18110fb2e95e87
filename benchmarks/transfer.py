"""Partly labelled data, a start from another model, and an organ added to a model, on phantoms.

Usage: python -m benchmarks.transfer OUT [--seeds 3] [--only early start added halves] [--small]

Phantoms with five organs labelled exactly, on a 4 mm grid, a network of 8 to 64 channels, patches
of 32 voxels. Each training is a folder of OUT that is not trained again, and its scores are a JSON
file beside it; results/transfer.json holds the numbers of the tables.

    early     4 cases of the pancreas, 40 steps: from scratch, from a model of four other organs,
              and from it with taken weights at the full rate
    start     the same in 100 steps
    added     the pancreas added to that model by 4 cases in which nothing else was annotated: with
              and without teaching the model its old answers
    halves    24 cases with all labels, against 12 + 12 with half of the labels each
              and twice the steps, so that every label is seen as often
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.__main__ import dispatch
from attunet3d.core import Array, as_table
from attunet3d.datasets import Manifest
from attunet3d.evaluation import metrics
from attunet3d.imaging import Grid, Segmentation, read_label, write_nifti
from attunet3d.phantoms import points_of, random_anatomy, random_grid, scan_anatomy
from benchmarks import measure
from benchmarks.checkout import commit

Runs = dict[str, list[dict[str, Any]]]  # of each way, a training for each seed
LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidney", 4: "stomach", 5: "pancreas"}
PARTS = {"liver vein": "liver"}  # tissues that belong to an organ
HALVES = (("liver", "spleen"), ("kidney", "pancreas"))
OTHERS = ("liver", "spleen", "kidney", "stomach")  # than the pancreas
HELD_OUT = range(500, 514)  # phantoms, of which the first two are validated on
SETTINGS = {
    "network.channels": [8, 16, 32, 64],
    "network.strides": [[2, 2, 2]] * 3,
    "training.patch_size": [32, 32, 32],
    "training.save_every": 10_000,
}
SMALL = SETTINGS | {
    "network.channels": [2, 4],
    "network.strides": [[2, 2, 2]],
    "training.patch_size": [8, 8, 8],
    "preprocessing.spacing_mm": [16, 16, 16],
}


@dataclass(frozen=True)
class Bench:
    """Where the trainings are, and how large they are."""

    out: Path
    seeds: int
    small: bool = False

    def steps(self, count: int) -> int:
        """Of a training."""
        return 2 if self.small else count

    def cases(self, seeds: range) -> range:
        """The phantoms of a list that are used."""
        return seeds[:2] if self.small else seeds


def label_organs(seed: int, grid: Grid) -> Array:
    """The label map (I, J, K) of a phantom's organs: tissues painted over one another."""
    anatomy, values = random_anatomy(seed), {name: value for value, name in LABELS.items()}
    points = anatomy.warp(*points_of(grid))
    label = np.zeros(grid.shape[::-1], np.uint8)
    cavity = anatomy.torso.outline(*points[:2]) < -anatomy.wall[-1][0]
    for tissue in anatomy.tissues:
        if tissue.name != "gas":  # which lies in the stomach or in bowel
            inside = tissue.shape.distance(*points) < 0
            if tissue.in_cavity:
                inside &= cavity
            label[inside] = values.get(PARTS.get(tissue.name, tissue.name), 0)
    return label.T


def write_material(folder: Path, seeds: Iterable[int], matrix: int) -> None:
    """Scans and label maps of these patients, those that are not there yet."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        label = folder / "labels" / f"p{seed}.nii.gz"
        if not label.exists():
            grid = random_grid(seed, matrix=matrix)
            scan = scan_anatomy(random_anatomy(seed), grid, seed)
            write_nifti(folder / "images" / f"p{seed}.nii.gz", scan, None, grid)
            Segmentation(label_organs(seed, grid), grid, LABELS).save(label)


def write_manifest(
    bench: Bench, name: str, organs: Sequence[str], training: range, annotated: Any = None
) -> Path:
    """A manifest of some of the organs; `annotated` gives those of each training case."""
    values = {value: name for value, name in LABELS.items() if not value or name in organs}
    folder, training = bench.out / "material", bench.cases(training)
    held_out = HELD_OUT[1:3] if bench.small else HELD_OUT
    write_material(folder, [*training, *held_out], 24 if bench.small else 80)

    def entry(seed: int) -> dict[str, Any]:
        return {"id": f"p{seed}", "image": f"images/p{seed}.nii.gz", "label": labels_of(seed)}

    def labels_of(seed: int) -> str:
        """The label map with these organs alone."""
        name = "labels/" + "-".join([f"p{seed}", *organs]) + ".nii.gz"
        if not (folder / name).exists():  # else the prepared cases would be of other files
            whole = read_label(folder / "labels" / f"p{seed}.nii.gz")
            kept = np.where(np.isin(whole.array, list(values)), whole.array, np.uint8(0))
            Segmentation(np.asfortranarray(kept), whole.grid, values).save(folder / name)
        return name

    cases = [entry(seed) for seed in training]
    for case, names in zip(cases, annotated or [], strict=False):
        case["annotated"] = list(names)
    tests = [entry(seed) for seed in held_out]
    content = {"name": name, "root": "material", "labels": values, "training": cases}
    validated = 1 if bench.small else 2
    content |= {"validation": tests[:validated], "test": tests[validated:]}
    path = bench.out / f"{name}.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def trained(
    bench: Bench, name: str, manifest: Path, seed: int, steps: int, flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Train, segment the test cases, and score all organs: mean Dice by organ."""
    done, run = bench.out / f"{name}.piece.json", bench.out / name
    if not done.exists():
        settings = SMALL if bench.small else SETTINGS
        steps = bench.steps(steps)
        settings |= {"training.steps": steps, "training.validate_every": steps}
        settings |= {"training.seed": seed}
        sets = [p for key, value in settings.items() for p in ("--set", f"{key}={value}")]
        plan = ["--plan", f"{run}.plan.json", "--cache", str(bench.out / "cache")]
        device = ["--device", "cpu"]
        train = ["train", str(manifest), "demo_cpu", str(run), *device, *plan, *sets, *flags]
        train += ["--resume"] if run.exists() else []
        infer = ["infer", str(run), str(manifest), str(run / "out"), *device]
        if dispatch(train) or dispatch(infer):
            raise RuntimeError(f"{name}: failed")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        piece = {"seed": seed, "steps": steps, "seconds": summary["seconds_of_last_call"]}
        piece |= {"commit": commit(), "dice": score(manifest, run)}
        done.write_text(json.dumps(piece, indent=1), encoding="utf-8")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    print(name, {organ: round(dice, 3) for organ, dice in found["dice"].items()}, flush=True)
    return found


def score(manifest: Path, run: Path) -> dict[str, float]:
    """Mean Dice over the test cases of every organ that the model knows."""
    found: dict[str, list[float]] = {}
    for case in Manifest.load(manifest).test:
        truth = read_label(manifest.parent / "material" / "labels" / f"{case.id}.nii.gz")
        answer = read_label(run / "out" / f"{case.id}.nii.gz")
        content = json.loads((run / "out" / f"{case.id}.json").read_text(encoding="utf-8"))
        names = {name: int(value) for value, name in content["labels"].items()}
        for value, organ in LABELS.items():
            if value and organ in names:
                dice = metrics.dice(answer.array == names[organ], truth.array == value)
                found.setdefault(organ, []).append(dice)
    return {organ: round(statistics.fmean(values), 4) for organ, values in found.items()}


def donor(bench: Bench) -> list[str]:
    """The flags that start from a model of the other organs."""
    before(bench)
    return ["--init", str(bench.out / "donor")]


def before(bench: Bench) -> dict[str, Any]:
    """The model of the other organs."""
    manifest = write_manifest(bench, "others", OTHERS, range(100, 112))
    return trained(bench, "donor", manifest, 0, 300)


def start(bench: Bench, steps: int = 100) -> Runs:
    """The pancreas from 4 cases, from several starts."""
    manifest, init = write_manifest(bench, "few", ["pancreas"], range(4)), donor(bench)
    ways = {
        "from scratch": [],
        "from other organs": init,
        "from other organs, full rate": [*init, "--set", "training.taken_rate=1"],
    }
    return {
        way: [
            trained(bench, f"{way.replace(' ', '_')}-{steps}-{seed}", manifest, seed, steps, flags)
            for seed in range(bench.seeds)
        ]
        for way, flags in ways.items()
    }


def added(bench: Bench) -> Runs:
    """The pancreas added to the model of the other organs."""
    init, few, organs = donor(bench), range(4), [*OTHERS, "pancreas"]
    whole = write_manifest(bench, "added", organs, few, [["pancreas"]] * len(few))
    alone = write_manifest(bench, "few", ["pancreas"], few)
    ways = {
        "others not annotated": (whole, init),
        "others taught by the model": (alone, [*init, "--keep-labels"]),
    }
    return {"the model before": [before(bench)]} | {
        way: [
            trained(bench, f"added_{manifest.stem}-{seed}", manifest, seed, 300, flags)
            for seed in range(bench.seeds)
        ]
        for way, (manifest, flags) in ways.items()
    }


def halves(bench: Bench) -> Runs:
    """All labels in 24 cases, and half of the labels in each half of them, as often seen."""
    organs, cases = [*HALVES[0], *HALVES[1]], range(24)
    annotated = [HALVES[number % 2] for number in cases]
    ways = {
        "all labels": (write_manifest(bench, "full", organs, cases), 800),
        "two halves": (write_manifest(bench, "halves", organs, cases, annotated), 1600),
    }
    return {
        way: [
            trained(bench, f"{path.stem}-{seed}", path, seed, steps) for seed in range(bench.seeds)
        ]
        for way, (path, steps) in ways.items()
    }


EXPERIMENTS: dict[str, Callable[[Bench], Runs]] = {
    "early": partial(start, steps=40),
    "start": start,
    "added": added,
    "halves": halves,
}


def table(runs: Runs) -> str:
    """Mean Dice ± standard deviation over seeds, a row for each way and a column for each organ."""
    scores = {way: [run["dice"] for run in found] for way, found in runs.items()}
    organs = [o for o in LABELS.values() if any(o in s for each in scores.values() for s in each)]
    rows: list[tuple[object, ...]] = [("", *organs, "mean")]
    for way, each in scores.items():
        cells = [[dice[organ] for dice in each if organ in dice] for organ in organs]
        cells.append([statistics.fmean(dice.values()) for dice in each])
        rows.append((way, *map(_cell, cells)))
    return as_table(rows)


def differences(runs: Runs) -> dict[str, list[float]]:
    """What each way gains on the first, seed by seed: mean Dice of the organs that both know."""
    first, *others = runs
    return {
        way: [
            round(statistics.fmean(run["dice"][o] - dice for o, dice in base["dice"].items()), 4)
            for run, base in zip(runs[way], runs[first], strict=False)
        ]
        for way in others
    }


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder")
    arguments = parser.parse_args()
    bench = Bench(arguments.out.resolve(), arguments.seeds, arguments.small)
    bench.out.mkdir(parents=True, exist_ok=True)
    results = {name: EXPERIMENTS[name](bench) for name in arguments.only}
    gains = {name: differences(runs) for name, runs in results.items()}
    content = {"seeds": bench.seeds, "trainings": results, "gains_by_seed": gains}
    measure.save("transfer", content, arguments.results)
    for name, runs in results.items():
        print(f"\n{name}\n{table(runs)}\ngains by seed: {gains[name]}")


if __name__ == "__main__":
    main()
