"""Each published form trained on phantoms as its preset says, but smaller and for minutes.

Usage: python -m benchmarks.forms WORK_DIR [--form PRESET …] [--out FOLDER] [--small]

A fourth to an eighth of the channels, a 4 mm grid and 40 epochs, 20 in 3D, where a patch has seven
times the voxels. Adam's rate is 1e-2 (2e-3 without normalisation), as there are a hundredth of the
updates, and there are neither flips nor weight decay: with them the spleen stays near 0. The
phantoms are those of `benchmarks.transfer`, with four organs: every form trains on the same 16 and
segments the same 12 that it has not seen. WORK_DIR is kept: a second call goes on with what was
stopped and trains nothing again. The results of all forms that are done go to results/forms.json,
and a picture of each to results/forms.png.
"""

import json
import statistics
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from attunet3d.__main__ import dispatch
from attunet3d.datasets import Manifest
from benchmarks import measure
from benchmarks.accuracy.pictures import Column, sheet
from benchmarks.checkout import commit
from benchmarks.transfer import Bench, score, write_manifest

ORGANS = ("liver", "spleen", "kidney", "pancreas")
SHORT = {
    "network.width": 8,  # of 32 or 64
    "preprocessing.spacing_mm": [4, 4, 4],
    "augmentation.flip_axes": [],  # in mirrored bodies spleen and liver take longer to tell apart
    "training.weight_decay": 0.0,  # as L2 in Adam it outweighs the gradients of small organs
    "training.batch_size": 2,
    "training.epoch_patches": 4,
}
OF_AXES = {
    "2": {"training.patch_size": [64, 64, 4], "training.epochs": 40, "training.step_epochs": 30},
    "3": {"training.patch_size": [48, 48, 48], "training.epochs": 20, "training.step_epochs": 15},
}
RATES = {  # of those with Adam
    **dict.fromkeys(("2d_nearest", "3d_same_resolution", "3d_transposed"), 1e-2),
    "2d_unnormalised": 2e-3,  # at 1e-2 it learns the liver alone
}
PRESETS = (
    *("attunet2d_nearest", "attunet2d_transposed", "attunet2d_unnormalised"),
    *("attunet3d_same_resolution", "attunet3d_transposed"),
)


def settings(preset: str, small: bool) -> dict[str, Any]:
    """What is changed of a preset."""
    form = preset.removeprefix("attunet")
    changed = SHORT | OF_AXES[form[0]]
    if form in RATES:
        changed["training.learning_rate"] = RATES[form]
    if small:
        changed |= {"network.width": 2, "training.epochs": 1, "training.epoch_patches": 1}
        changed |= {"training.patch_size": [16, 16, 16]}
    return changed


def attunet3d(*arguments: object) -> None:
    """Run a command."""
    print("$ attunet3d", *arguments, flush=True)
    if dispatch([*map(str, arguments), "--device", "cpu"]):
        raise RuntimeError("failed")


def train(work: Path, manifest: Path, preset: str, small: bool) -> dict[str, Any]:
    """Train and score one form, or go on where that was stopped."""
    run, done = work / preset, work / f"{preset}.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    if not (run / "summary.json").exists():
        sets = [f"{name}={json.dumps(v)}" for name, v in settings(preset, small).items()]
        options = [part for text in sets for part in ("--set", text)]
        options += ["--plan", f"{run}.plan.json", "--cache", str(work / "cache")]
        options += ["--resume"] if (run / "config.json").exists() else []
        attunet3d("train", manifest, preset, run, "--memory", "8GB", *options)
    began = time.perf_counter()
    attunet3d("infer", run, manifest, run / "out")
    took, dice = time.perf_counter() - began, score(manifest, run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    row = {
        "preset": preset,
        "commit": commit(),
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "training_s": summary["seconds_of_last_call"],
        "infer_s_per_scan": round(took / len(Manifest.load(manifest).test), 2),
        "mean_dice": round(statistics.fmean(dice.values()), 4),
        "dice": dice,
        "settings": settings(preset, small),
    }
    done.write_text(json.dumps(row), encoding="utf-8")
    return row


def draw(work: Path, manifest: Path, presets: list[str], path: Path) -> None:
    """The first unseen phantom with its outlines solid and those of each form dashed."""
    cases = Manifest.load(manifest)
    case, values = cases.test[0], {organ: value for value, organ in cases.labels.items()}
    assert case.label is not None
    columns = [
        Column(
            preset.removeprefix("attunet"),
            case.image,
            case.label,
            work / preset / "out" / f"{case.id}.nii.gz",
        )
        for preset in presets
    ]
    sheet(columns, values["pancreas"]).savefig(path, dpi=120)


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--form", action="append", choices=PRESETS, help="may be repeated")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    arguments = parser.parse_args()
    work, small = arguments.work.resolve(), arguments.small
    work.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(Bench(work, 1, small), "organs", ORGANS, range(16))
    for preset in arguments.form or PRESETS:
        train(work, manifest, preset, small)
    done = [preset for preset in PRESETS if (work / f"{preset}.json").exists()]
    rows = [train(work, manifest, preset, small) for preset in done]
    measure.save("forms", {"organs": ORGANS, "rows": rows}, arguments.out)
    draw(work, manifest, done, arguments.out / "forms.png")
    columns = ("preset", "parameters", "steps", "training_s", "infer_s_per_scan", "mean_dice")
    table = [{name: row[name] for name in columns} | row["dice"] for row in rows]
    print(measure.markdown(table))


if __name__ == "__main__":
    main()
