"""Partly labelled data, a start from another model, and an organ added to a model, on phantoms.

Usage: python -m benchmarks.transfer OUT [--seeds 3] [--only halves start added]

Phantoms with five organs labelled exactly, on a 4 mm grid, a network of 8 to 64 channels, patches
of 32 voxels. Each training is a folder of OUT that is not trained again, and its scores are a JSON
file beside it; OUT/transfer.json holds the numbers of the tables.

    halves    8 cases with all labels, against 4 + 4 with half of the labels each
    start     4 cases of the pancreas: from scratch, from a model of four other organs, and from it
              with a frozen encoder, at equal steps
    added     the pancreas added to that model by 4 cases in which nothing else was annotated: with
              and without teaching the model its old answers
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.__main__ import dispatch
from attunet3d.core import Array, as_table, versions
from attunet3d.datasets import Manifest
from attunet3d.evaluation import metrics
from attunet3d.imaging import Grid, Segmentation, read_label, write_nifti
from attunet3d.phantoms import points_of, random_anatomy, random_grid, scan_anatomy

LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidney", 4: "stomach", 5: "pancreas"}
PARTS = {"liver vein": "liver"}  # tissues that belong to an organ
HALVES = (("liver", "spleen"), ("kidney", "pancreas"))
OTHERS = ("liver", "spleen", "kidney", "stomach")  # than the pancreas
TEST_SEED, TEST_CASES = 500, 6
STEPS, DONOR_STEPS = 100, 300
SETTINGS = {
    "network.channels": [8, 16, 32, 64],
    "network.strides": [[2, 2, 2]] * 3,
    "training.patch_size": [32, 32, 32],
    "training.validate_every": 50,
    "training.save_every": 10_000,
}


def label_organs(seed: int, grid: Grid) -> Array:
    """The label map (I, J, K) of a phantom's organs: tissues painted over one another."""
    anatomy, values = random_anatomy(seed), {name: value for value, name in LABELS.items()}
    points = anatomy.warp(*points_of(grid))
    label = np.zeros(grid.shape[::-1], np.uint8)
    for tissue in anatomy.tissues:
        if tissue.name != "gas":  # which lies in the stomach or in bowel
            inside = tissue.shape.distance(*points) < 0
            label[inside] = values.get(PARTS.get(tissue.name, tissue.name), 0)
    return label.T


def write_material(folder: Path, seeds: Iterable[int]) -> None:
    """Scans and label maps of these patients, those that are not there yet."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        label = folder / "labels" / f"p{seed}.nii.gz"
        if not label.exists():
            grid = random_grid(seed, matrix=80)
            scan = scan_anatomy(random_anatomy(seed), grid, seed)
            write_nifti(folder / "images" / f"p{seed}.nii.gz", scan, None, grid)
            Segmentation(label_organs(seed, grid), grid, LABELS).save(label)


def write_manifest(
    path: Path, organs: Sequence[str], training: Sequence[int], annotated: Any = None
) -> Path:
    """A manifest of some of the organs; `annotated` gives those of each training case."""
    values = {value: name for value, name in LABELS.items() if not value or name in organs}
    folder = path.parent / "material"
    write_material(folder, [*training, *range(TEST_SEED, TEST_SEED + TEST_CASES)])

    def entry(seed: int) -> dict[str, Any]:
        return {"id": f"p{seed}", "image": f"images/p{seed}.nii.gz", "label": labels_of(seed)}

    def labels_of(seed: int) -> str:
        """The label map with these organs alone."""
        name = "labels/" + "-".join([f"p{seed}", *organs]) + ".nii.gz"
        whole = read_label(folder / "labels" / f"p{seed}.nii.gz")
        kept = np.where(np.isin(whole.array, list(values)), whole.array, np.uint8(0))
        Segmentation(np.asfortranarray(kept), whole.grid, values).save(folder / name)
        return name

    cases = [entry(seed) for seed in training]
    for case, names in zip(cases, annotated or [], strict=bool(annotated)):
        case["annotated"] = list(names)
    tests = [entry(seed) for seed in range(TEST_SEED, TEST_SEED + TEST_CASES)]
    content = {"name": path.stem, "root": "material", "labels": values, "training": cases}
    content |= {"validation": tests[:2], "test": tests[2:]}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def trained(
    out: Path, name: str, manifest: Path, seed: int, steps: int, flags: Sequence[str] = ()
) -> dict[str, float]:
    """Train, segment the test cases, and score all organs; mean Dice by organ."""
    scores, run = out / f"{name}.json", out / name
    if not scores.exists():
        settings = SETTINGS | {"training.steps": steps, "training.seed": seed}
        sets = [p for key, value in settings.items() for p in ("--set", f"{key}={value}")]
        plan = ["--plan", str(out / f"{name}.plan.json"), "--cache", str(out / "cache")]
        device = ["--device", "cpu"]
        train = ["train", str(manifest), "demo_cpu", str(run), *device, *plan, *sets, *flags]
        infer = ["infer", str(run), str(manifest), str(run / "out"), *device]
        if dispatch(train) or dispatch(infer):
            raise RuntimeError(f"{name}: failed")
        scores.write_text(json.dumps(score(manifest, run), indent=1), encoding="utf-8")
    found: dict[str, float] = json.loads(scores.read_text(encoding="utf-8"))
    print(name, {organ: round(dice, 3) for organ, dice in found.items()}, flush=True)
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
    return {organ: statistics.fmean(values) for organ, values in found.items()}


def halves(out: Path, seeds: int) -> dict[str, list[dict[str, float]]]:
    """All labels in 8 cases, and half of the labels in each half of them."""
    organs = [*HALVES[0], *HALVES[1]]
    full = write_manifest(out / "full.json", organs, range(8))
    parts = write_manifest(out / "halves.json", organs, range(8), [HALVES[n % 2] for n in range(8)])
    pairs = {"all labels": full, "two halves": parts}
    return {
        name: [trained(out, f"{path.stem}-{seed}", path, seed, 2 * STEPS) for seed in range(seeds)]
        for name, path in pairs.items()
    }


def donor(out: Path) -> Path:
    """A model of the other organs."""
    manifest = write_manifest(out / "donor.json", OTHERS, range(100, 112))
    trained(out, "donor-0", manifest, 0, DONOR_STEPS)
    return out / "donor-0"


def start(out: Path, seeds: int) -> dict[str, list[dict[str, float]]]:
    """The pancreas from 4 cases, from several starts."""
    manifest = write_manifest(out / "few.json", ["pancreas"], range(4))
    init = ["--init", str(donor(out))]
    starts = {
        "from scratch": [],
        "from other organs": init,
        "from other organs, full rate": [*init, "--set", "training.learning_rate=0.005"],
        "from other organs, encoder frozen": [*init, "--freeze", "encoder"],
    }
    return {
        name: [
            trained(out, f"{name.replace(' ', '_')}-{seed}", manifest, seed, STEPS, flags)
            for seed in range(seeds)
        ]
        for name, flags in starts.items()
    }


def added(out: Path, seeds: int) -> dict[str, list[dict[str, float]]]:
    """The pancreas added to the model of the other organs."""
    init = ["--init", str(donor(out))]
    alone = write_manifest(out / "few.json", ["pancreas"], range(4))
    whole = write_manifest(out / "added.json", [*OTHERS, "pancreas"], range(4), [["pancreas"]] * 4)
    ways = {
        "not annotated (marginal loss)": (whole, init),
        "taught by the model": (alone, [*init, "--keep-labels"]),
    }
    found = {"the model before": [trained(out, "donor-0", out / "donor.json", 0, DONOR_STEPS)]}
    for name, (manifest, flags) in ways.items():
        runs = [
            trained(out, f"added_{manifest.stem}-{seed}", manifest, seed, STEPS, flags)
            for seed in range(seeds)
        ]
        found[name] = runs
    return found


EXPERIMENTS = {"halves": halves, "start": start, "added": added}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Mean Dice ± standard deviation over seeds, a row for each way and a column for each organ."""
    organs = [
        o for o in LABELS.values() if any(o in run for runs in found.values() for run in runs)
    ]
    rows: list[tuple[object, ...]] = [("", *organs, "mean")]
    for name, runs in found.items():
        cells = [[run[organ] for run in runs if organ in run] for organ in organs]
        cells.append([statistics.fmean(run.values()) for run in runs])
        rows.append((name, *map(_cell, cells)))
    return as_table(rows)


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
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = {name: EXPERIMENTS[name](out, arguments.seeds) for name in arguments.only}
    content = {"seeds": arguments.seeds, "steps": STEPS, "dice": results, "versions": versions()}
    (out / "transfer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, found in results.items():
        print(f"\n{name}\n{table(found)}")


if __name__ == "__main__":
    main()
