"""Doubt and decisions under shifts: does a model know where it fails, and what is gained by Dice?

Usage: python -m benchmarks.accuracy.doubt --out DIR [--folds 5] [--steps 300] [--cases 12]

A cross-validation of recipe `instance` on hard phantoms fits the rule of doubt out of fold. Its
ensemble then segments phantoms of new patients, each set shifted in one way. The figures: how well
the worst quarter by true Dice is found by trust (AUROC), how many below a Dice of 0.5 are marked
(`look` or `wrong?`), and what `inference.decision=dice` changes, paired by case.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from attunet3d.core import Floats
from attunet3d.evaluation import dice, statistics
from attunet3d.imaging import Grid, Segmentation, read_label, write_nifti
from attunet3d.phantoms import COHORTS, LABELS, Cohort, dataset, make_phantom, write_phantoms
from benchmarks import measure
from benchmarks.accuracy.recipes import find_recipe

HARD = COHORTS["hard"]
SHIFTS: Mapping[str, Cohort] = {
    "as trained": HARD,
    "other scanner": COHORTS["hard_elsewhere"],
    "no contrast": replace(HARD, phases={"none": 1.0}),
    "resected": replace(HARD, resected_share=1.0),
    "cut": HARD,  # a quarter to a half of the slices is missing, from below
}
FIRST_SEED = 7000
WORST, BAD = 0.25, 0.5


def auroc(trust: Floats, bad: Sequence[bool]) -> float:
    """Probability that a bad case has less trust than another one; ties count half.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.9]), [True, False, False])
        1.0
    """
    worse = np.asarray(bad)
    ranks, count = rankdata(-trust), int(worse.sum())
    others = len(worse) - count
    return float((ranks[worse].sum() - count * (count + 1) / 2) / (count * others))


def write_shift(folder: Path, name: str, number: int, count: int) -> None:
    """Write `count` phantoms of one shift, unless they are there."""
    scans, labels = folder / "scans", folder / "labels"
    for part in (scans, labels):
        part.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST_SEED + 100 * number, FIRST_SEED + 100 * number + count):
        file = f"phantom_{seed}.nii.gz"
        if (labels / file).exists():
            continue
        grid = dataset.random_grid(seed, cohort=SHIFTS[name]).oriented("RAS")
        if name == "cut":
            grid = _without_lower_slices(grid, np.random.default_rng(seed).uniform(0.25, 0.5))
        scan, label = make_phantom(seed, grid=grid, cohort=SHIFTS[name])
        write_nifti(scans / file, scan.array, None, scan.grid)
        Segmentation(label.array, label.grid, LABELS).save(labels / file)


def _without_lower_slices(grid: Grid, share: float) -> Grid:
    x, y, z = grid.shape
    gone = round(share * z)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(np.array([0, 0, gone]))
    return Grid((x, y, z - gone), affine)


def call(*words: str | Path) -> None:
    command = [sys.executable, "-m", "attunet3d", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def trained(out: Path, folds: int, steps: int) -> Path:
    """The cross-validation's folder; a call that was stopped goes on."""
    run, data, manifest = out / "run", out / "data", out / "manifest.json"
    if not manifest.exists():
        write_phantoms(data, 28, 0, cohort="hard")
        call("manifest", data, "--out", manifest, "--folds", str(folds))
    if not (run / "ensemble.json").exists():
        settings = {**find_recipe("instance").settings, "training.steps": steps}
        sets = [w for k, v in settings.items() for w in ("--set", f"{k}={_yaml(v)}")]
        more = ["--resume"] if (run / "fold0" / "config.json").exists() else []
        call("train", manifest, "demo_cpu", run, "--fold", "all", "--device", "cpu", *sets, *more)
    return run


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def scored(run: Path, folder: Path, decision: str) -> list[dict[str, Any]]:
    """Case, true Dice, trust and word of each scan of a folder."""
    predictions = folder / decision
    call(
        *("infer", run, folder / "scans", predictions, "--device", "cpu"),
        *("--set", f"inference.decision={decision}"),
    )
    rows = []
    for file in sorted((folder / "labels").glob("*.nii.gz")):
        name = file.name.removesuffix(".nii.gz")
        ours, theirs = read_label(predictions / file.name).array, read_label(file).array
        sidecar = json.loads((predictions / f"{name}.json").read_text(encoding="utf-8"))
        doubt = sidecar["doubt"]["pancreas"]
        rows.append(
            {
                "case": name,
                "present": bool(theirs.any()),
                "dice": round(dice(ours == 1, theirs == 1), 4),
                "trust": doubt["trust"] if ours.any() else 0.0,
                "word": doubt["word"],
            }
        )
    return rows


def summary(
    rows: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One line of the table: `rows` decided by argmax, `other` by Dice."""
    scores: Floats = np.array([row["dice"] for row in rows])
    trust: Floats = np.array([row["trust"] for row in rows])
    bad = [row for row in rows if row["dice"] < BAD]
    gain = statistics.paired_difference(scores.tolist(), [row["dice"] for row in other])
    return {
        "cases": len(rows),
        "dice": round(float(scores.mean()), 3),
        "auroc": round(auroc(trust, list(scores < np.quantile(scores, WORST))), 3),
        "below_0.5": len(bad),
        "of_these_marked": sum(row["word"] != "ok" for row in bad),
        "marked": sum(row["word"] != "ok" for row in rows),
        "dice_decision": f"{gain.mean:+.4f} ({gain.low:+.4f} … {gain.high:+.4f})",
    }


def picture(rows: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """True Dice against trust, a colour per shift."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, found in rows.items():
        axes.scatter([r["trust"] for r in found], [r["dice"] for r in found], s=16, label=name)
    axes.axhline(BAD, color="grey", linewidth=0.8)
    axes.set(xlabel="trust (the guess at Dice)", ylabel="Dice", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cases", type=int, default=12)
    options = parser.parse_args()
    run = trained(options.out, options.folds, options.steps)
    argmax: dict[str, list[dict[str, Any]]] = {}
    by_dice: dict[str, list[dict[str, Any]]] = {}
    for number, name in enumerate(SHIFTS):
        folder = options.out / name.replace(" ", "_")
        write_shift(folder, name, number, options.cases)
        argmax[name] = scored(run, folder, "argmax")
        by_dice[name] = scored(run, folder, "dice")
        print(name, summary(argmax[name], by_dice[name]), flush=True)
    everything = ([row for name in SHIFTS for row in rows[name]] for rows in (argmax, by_dice))
    table = {name: summary(argmax[name], by_dice[name]) for name in SHIFTS}
    table["all"] = summary(*everything)
    print(measure.markdown([{"shift": name, **line} for name, line in table.items()]))
    content = {"steps": options.steps, "table": table, "argmax": argmax, "dice": by_dice}
    print(measure.save("doubt", content))
    picture(argmax, measure.RESULTS / "doubt.png")


if __name__ == "__main__":
    main()
