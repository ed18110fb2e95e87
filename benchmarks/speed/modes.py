"""Ways of covering a scan with a trained model: seconds and Dice on unseen phantoms, side by side.

Usage: python -m benchmarks.speed.modes [--out FOLDER] [--work FOLDER] [--steps N] [--small]

Trains two models on the demo's phantoms, one on a 4 mm grid (the demo's own, which serves as the
locator too) and one on a 2 mm grid, then segments phantoms that neither has seen: by overlapping
windows (the reference), in one pass over the body box, in bfloat16, and inside the located box.
FOLDER of --work is kept and used again: a second call trains nothing.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attunet3d.core import command_line
from attunet3d.demonstration import TRAINING_PHANTOMS, TRAINING_SEED, UNSEEN_SEED
from attunet3d.evaluation import dice
from attunet3d.imaging import read_label, read_volume
from attunet3d.phantoms import write_phantoms
from benchmarks import measure

WINDOWS = ["inference.mode=window", "inference.overlap=0.5"]
WHOLE = ["inference.mode=whole"]
BFLOAT16 = ["inference.precision=bfloat16"]
FINE = ["preprocessing.spacing_mm=[2,2,2]", "training.patch_size=[64,64,64]"]


def attunet3d(*arguments: object) -> None:
    command = [sys.executable, "-m", "attunet3d", *map(str, arguments)]
    print("$ attunet3d", *arguments, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(work: Path, steps: int, small: bool) -> None:
    """Phantoms, a coarse and a fine model; what is there already is kept."""
    count = 4 if small else TRAINING_PHANTOMS
    if not (work / "manifest.json").exists():
        write_phantoms(work / "training", count, TRAINING_SEED)
        write_phantoms(work / "unseen", 2 if small else 8, UNSEEN_SEED)
        attunet3d("manifest", work / "training", "--out", work / "manifest.json", "--folds", 4)
    budgets = {"coarse": ([], 4 if small else 160), "fine": (FINE, 4 if small else steps)}
    for name, (settings, budget) in budgets.items():
        if (work / name / "summary.json").exists():
            continue
        settings = [*settings, f"training.steps={budget}", f"training.validate_every={budget // 2}"]
        sets = [part for setting in settings for part in ("--set", setting)]
        plan = work / f"{name}.plan.json"  # the two models are planned apart
        call = (
            "train",
            work / "manifest.json",
            "demo_cpu",
            work / name,
            "--fold",
            0,
            "--plan",
            plan,
        )
        attunet3d(*call, "--device", "cpu", *sets)


def evaluate(work: Path, model: str, settings: list[str], locate: bool) -> dict[str, Any]:
    """Seconds per scan and Dice of each unseen phantom."""
    from attunet3d.inference import Predictor

    locator = work / "coarse" if locate else None
    predictor = Predictor.load(work / model, "cpu", settings, locator)
    scans = sorted((work / "unseen" / "imagesTr").glob("*.nii.gz"))
    predictor.predict(scans[0])
    seconds, scores, fallbacks = [], [], 0
    for scan in scans:
        volume = read_volume(scan)
        prediction = predictor.segment(volume)
        seconds.append(sum(prediction.record.seconds.values()))
        fallbacks += len(prediction.record.fallbacks)
        answer = read_label(work / "unseen" / "labelsTr" / scan.name).array
        scores.append(dice(prediction.segmentation.array == 1, answer == 1))
    return {
        "median_s": round(statistics.median(seconds), 3),
        "mean_dice": round(statistics.fmean(scores), 4),
        "dice": [round(score, 4) for score in scores],
        "fallbacks": fallbacks,
    }


def main() -> None:
    parser = measure.parser(__doc__, repeats=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--steps", type=int, default=500, help="of the 2 mm model")
    arguments = parser.parse_args()
    command_line.keep_freed_memory()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="modes-"))
    train(work, arguments.steps, arguments.small)
    ways = {
        "windows, overlap 0.5": (WINDOWS, False),
        "windows, located": (WINDOWS, True),
        "whole": (WHOLE, False),
        "whole, bfloat16": (WHOLE + BFLOAT16, False),
        "whole, located": (WHOLE, True),
        "whole, located, bfloat16": (WHOLE + BFLOAT16, True),
    }
    rows = []
    for name in (name for name in ways if not measure.emulated(name)):
        settings, locate = ways[name]
        rows.append({"way": name, **evaluate(work, "fine", settings, locate)})
    for row in rows:
        row["times_faster"] = round(rows[0]["median_s"] / row["median_s"], 2)
    hidden = ("dice",)
    print(measure.markdown({k: v for k, v in row.items() if k not in hidden} for row in rows))
    print(measure.save("modes", {"phantoms": len(rows[0]["dice"]), "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
