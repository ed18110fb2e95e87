"""What is killed and broken: a tiny model, a folder of small scans, a small training set."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from attunet3d.core import Config, machine
from attunet3d.models import build_network, save_model
from attunet3d.phantoms import dataset
from benchmarks.reliability.fork_server import ForkServer

LABELS = {0: "background", 1: "noise"}
MODEL = [
    "network.channels=[4, 8, 8]",  # three levels: the gates are at the middle one
    "preprocessing.spacing_mm=[2, 2, 2]",
    "preprocessing.hu_window=[-1000, 1000]",
    "preprocessing.mean_hu=0",
    "preprocessing.std_hu=200",
    "preprocessing.crop_to_body=false",
    "training.patch_size=[16, 16, 16]",
    "inference.mode=window",
    "inference.overlap=0.25",
    "inference.window_batch=4",
]
COMMON = [
    "network.channels=[4, 8, 8]",
    "preprocessing.spacing_mm=[8, 8, 8]",
    "preprocessing.hu_window=[-160, 240]",
    "augmentation.affine_probability=0.6",
    "augmentation.elastic_probability=0.3",
    "augmentation.noise_probability=0.3",
    "augmentation.gamma_probability=0.3",
    "augmentation.low_resolution_probability=0.3",
    "training.patch_size=[16, 16, 16]",
    "training.foreground_fraction=0.9",
    "training.batch_size=1",
    "training.steps=30",
    "training.validate_every=8",
    "training.save_every=3",
]
PRECISION = "bfloat16" if machine.computes_in_bfloat16(torch.device("cpu")) else "float32"
TRAININGS = {
    "AdamW, one cycle, EMA, dropout, two batches a step": [
        "network.dropout=0.1",
        "training.optimiser=adamw",
        "training.learning_rate=0.01",
        "training.schedule=one_cycle",
        "training.ema_decay=0.9",
        "training.accumulation=2",
    ],
    f"SGD, warm-up and polynomial, EMA, {PRECISION}, heads at every scale": [
        "network.deep_supervision=per-scale",
        "training.optimiser=sgd",
        "training.schedule=polynomial",
        "training.warmup_steps=8",
        "training.ema_decay=0.8",
        f"training.precision={PRECISION}",
    ],
}


def write_model(path: str) -> None:
    """Write a model of random weights, the same at every call."""
    torch.manual_seed(0)
    config = Config().with_overrides(MODEL)
    network = build_network(config.network, 1, len(LABELS))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_model(Path(path), network.state_dict(), config, LABELS)


def write_scans(folder: str, count: int, size: int) -> None:
    """Write `count` cubes of noise, `size` voxels of 2 mm a side."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 200, (size,) * 3).astype(np.int16)
        image = nibabel.Nifti1Image(np.asfortranarray(noise), np.diag([-2.0, -2, 2, 1]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, Path(folder, f"scan_{number}.nii.gz"))


def write_training(folder: str) -> None:
    """Write phantom abdomens, and a configuration for each kind of training."""
    dataset.write_phantoms(Path(folder, "phantoms"), 4, matrix=32)
    for number, settings in enumerate(TRAININGS.values()):
        config = Config().with_overrides([*COMMON, *settings])
        config.save(Path(folder, f"config_{number}.json"))


def infer_inputs(server: ForkServer, folder: Path, count: int, size: int) -> tuple[Path, Path]:
    """A model and a folder of scans in `folder`."""
    model, scans = folder / "model" / "model.safetensors", folder / "scans"
    _make(server, folder, "write_model", [str(model)])
    _make(server, folder, "write_scans", [str(scans), count, size])
    return model, scans


def training_inputs(server: ForkServer, folder: Path) -> tuple[Path, list[Path]]:
    """A manifest, and the configurations of `TRAININGS`."""
    _make(server, folder, "write_training", [str(folder)])
    manifest = folder / "manifest.json"
    arguments = ["manifest", folder / "phantoms", "--out", manifest, "--folds", "4"]
    status, said = server.call(arguments, folder / "said.txt")
    assert status == 0, said
    return manifest, [folder / f"config_{number}.json" for number in range(len(TRAININGS))]


def _make(server: ForkServer, folder: Path, function: str, values: list[object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    status, said = server.call([], folder / "said.txt", ("inputs", function, values))
    assert status == 0, said


def main(run: Callable[[Path, bool], dict[str, Any]], about: str | None) -> None:
    """Run one module of this folder by itself: `FOLDER [--small]`."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="must be new or empty")
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    arguments = parser.parse_args()
    began = time.monotonic()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder}: is not empty; name a new folder")
    print(json.dumps(run(arguments.folder.resolve(), arguments.small), indent=2))
    print(f"{time.monotonic() - began:.0f} s")
