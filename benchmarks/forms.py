"""Each published form trained on phantoms as its preset says, but smaller and for minutes.

Usage: python -m benchmarks.forms WORK_DIR [--form PRESET …] [--out FOLDER] [--small]

A fourth to an eighth of the channels, a 4 mm grid and 12 epochs; Adam's rate is 1e-3, as there are
a hundredth of the updates. Every form sees the same phantoms and segments the same unseen ones.
WORK_DIR is kept: a second call goes on with what was stopped and trains nothing again. The results
of all forms that are done go to results/forms.json, and a picture of each to results/forms.png.
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from attunet3d.evaluation import Example, dice, figures
from attunet3d.imaging import read_label, read_volume
from attunet3d.phantoms import write_phantoms
from benchmarks import measure
from benchmarks.checkout import commit

TRAINING, UNSEEN, UNSEEN_SEED = 16, 4, 1000
SHORT = {
    "network.width": 8,  # of 32 or 64
    "preprocessing.spacing_mm": [4, 4, 4],
    "training.epochs": 12,
    "training.step_epochs": 9,
    "training.batch_size": 2,
    "training.epoch_patches": 4,
}
PATCH = {"attunet2d": [48, 48, 8], "attunet3d": [48, 48, 48]}
ADAM_RATE = 5e-3
PRESETS = (
    *("attunet2d_nearest", "attunet2d_transposed", "attunet2d_unnormalised"),
    *("attunet3d_same_resolution", "attunet3d_transposed"),
)


def settings(preset: str, small: bool) -> dict[str, Any]:
    """What is changed of a preset."""
    changed = SHORT | {"training.patch_size": PATCH[preset[:9]]}
    if preset != "attunet2d_transposed":  # which has SGD
        changed["training.learning_rate"] = ADAM_RATE
    if small:
        changed |= {"network.width": 2, "training.epochs": 1, "training.epoch_patches": 1}
        changed |= {"training.patch_size": [16, 16, 16]}
    return changed


def attunet3d(*arguments: object) -> str:
    """Run a command; return what it printed."""
    command = [sys.executable, "-m", "attunet3d", *map(str, arguments)]
    print("$ attunet3d", *arguments, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    print(done.stdout, flush=True)
    return done.stdout


def write_data(work: Path, small: bool) -> None:
    """Phantoms to train on, unseen ones, and the manifest; kept when there."""
    if (work / "manifest.json").exists():
        return
    write_phantoms(work / "training", 4 if small else TRAINING)
    write_phantoms(work / "unseen", 1 if small else UNSEEN, UNSEEN_SEED)
    folds = 2 if small else 8
    attunet3d("manifest", work / "training", "--out", work / "manifest.json", "--folds", folds)


def train(work: Path, preset: str, small: bool) -> dict[str, Any]:
    """Train and score one form, or go on where that was stopped."""
    run, done = work / preset, work / f"{preset}.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    if not (run / "summary.json").exists():
        sets = [f"{name}={json.dumps(v)}" for name, v in settings(preset, small).items()]
        options = [part for text in sets for part in ("--set", text)]
        options += ["--resume"] if (run / "config.json").exists() else []
        call = ("train", work / "manifest.json", preset, run, "--fold", 0, "--device", "cpu")
        attunet3d(*call, "--memory", "8GB", *options)
    scans, answers = work / "unseen" / "imagesTr", work / "unseen" / "labelsTr"
    began = time.perf_counter()
    attunet3d("infer", run, scans, run / "unseen", "--device", "cpu")
    took = time.perf_counter() - began
    scores = [
        dice(read_label(path).array == 1, read_label(answers / path.name).array == 1)
        for path in sorted((run / "unseen").glob("*.nii.gz"))
    ]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    row = {
        "preset": preset,
        "commit": commit(),
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "training_s": summary["seconds_of_last_call"],
        "infer_s_per_scan": round(took / len(scores), 2),
        "best_dice_network_grid": summary["best_dice_network_grid"],
        "mean_dice": round(statistics.fmean(scores), 4),
        "dice": [round(score, 4) for score in scores],
        "settings": settings(preset, small),
    }
    done.write_text(json.dumps(row), encoding="utf-8")
    return row


def draw(work: Path, presets: list[str], path: Path) -> None:
    """The first unseen phantom with the answer of each form."""
    scan = min((work / "unseen" / "imagesTr").glob("*.nii.gz"))
    volume, answer = read_volume(scan), read_label(work / "unseen" / "labelsTr" / scan.name)
    examples = [
        Example(
            name=preset.removeprefix("attunet"),
            scan=volume,
            reference=answer,
            prediction=read_label(work / preset / "unseen" / scan.name),
        )
        for preset in presets
    ]
    title = "An unseen phantom, segmented by each published form"
    figures.save(figures.demo_figure(examples, 1, "pancreas", title=title), path)


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--form", action="append", choices=PRESETS, help="may be repeated")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_data(arguments.work, arguments.small)
    for preset in arguments.form or PRESETS:
        train(arguments.work, preset, arguments.small)
    done = [preset for preset in PRESETS if (arguments.work / f"{preset}.json").exists()]
    rows = [train(arguments.work, preset, arguments.small) for preset in done]
    measure.save("forms", {"phantoms": TRAINING, "rows": rows}, arguments.out)
    draw(arguments.work, done, arguments.out / "forms.png")
    columns = (
        "preset",
        "parameters",
        "steps",
        "training_s",
        "infer_s_per_scan",
        "mean_dice",
        "dice",
    )
    print(measure.markdown({name: row[name] for name in columns} for row in rows))


if __name__ == "__main__":
    main()
