"""The demo: phantoms to train on, unseen ones to test on, the commands, and the picture."""

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from attunet3d.cohort import case_files
from attunet3d.evaluation import Example, figures
from attunet3d.imaging import Volume, read_label, read_volume
from attunet3d.phantoms import write_phantoms

TRAINING_PHANTOMS, UNSEEN_PHANTOMS = 24, 4
TRAINING_SEED, UNSEEN_SEED = 0, 1000  # patient n is seed + n: the two sets share none
ORGAN = 1
GATES = 2  # of the finest gated level, whose maps come first
PICTURE = "demo.png"


def write_data(out_dir: Path) -> None:
    """Write the training phantoms and the unseen ones into separate folders."""
    write_phantoms(out_dir / "training", TRAINING_PHANTOMS, TRAINING_SEED)
    write_phantoms(out_dir / "unseen", UNSEEN_PHANTOMS, UNSEEN_SEED)


def commands(out_dir: Path) -> Iterator[list[str]]:
    """Yield the commands that a user would run, in order, without "attunet3d"."""
    manifest, run = str(out_dir / "manifest.json"), str(out_dir / "run")
    scans, answers = str(out_dir / "unseen" / "imagesTr"), str(out_dir / "unseen" / "labelsTr")
    predictions, scores = str(out_dir / "predictions"), str(out_dir / "scores")
    yield ["manifest", str(out_dir / "training"), "--out", manifest, "--folds", "8"]
    yield ["train", manifest, "demo_cpu", run, "--fold", "0", "--device", "cpu"]
    yield ["infer", run, scans, predictions, "--save-attention", "--device", "cpu"]
    yield ["evaluate", predictions, answers, scores]
    yield ["report", scores]


def picture(out_dir: Path) -> Path:
    """Draw each unseen phantom with reference, prediction and attention; return the path."""
    examples = []
    for path in sorted((out_dir / "predictions").glob("*.nii.gz")):
        scan = read_volume(out_dir / "unseen" / "imagesTr" / path.name)
        reference = read_label(out_dir / "unseen" / "labelsTr" / path.name)
        prediction = read_label(path)
        name = path.name.removesuffix(".nii.gz")
        maps = nibabel.load(case_files(path.parent, name).maps("attention"))
        attention = np.asarray(maps.dataobj[..., :GATES], np.float32).mean(-1)  # (I, J, K)
        examples.append(
            Example(
                name=name,
                scan=scan,
                reference=reference,
                prediction=prediction,
                attention=Volume(attention, scan.grid),
            )
        )
    title = "Unseen phantom abdomens, segmented by a network trained on a CPU"
    figures.save(figures.demo_figure(examples, ORGAN, "pancreas", title=title), out_dir / PICTURE)
    return out_dir / PICTURE
