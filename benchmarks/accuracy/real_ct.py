"""The whole road on real CTs: train on the labelled ones, segment scans kept out, draw overlays.

Usage: python benchmarks/real_ct.py DATA_DIR OUT_DIR [--steps N]

DATA_DIR holds the small CTs of TotalSegmentator's tests (github.com/wasserth/TotalSegmentator,
commit 0e65a44, Apache 2.0): example_ct_sm.nii.gz with example_seg.nii.gz (patient A, a slab),
dicom/ with example_seg_dicom.nii.gz (patient B, 20 slices), example_ct.nii.gz (all of patient A)
and ct_cropped.nii.gz (patient C). Two patients are no training set: this shows that the road
holds on real files, not how well a model does. Their labels were made by a model, not by a person.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from attunet3d.core import versions
from attunet3d.evaluation import dice, figures
from attunet3d.imaging import Segmentation, Volume, read_label, read_volume

ORGANS = {0: "background", 1: "spleen", 2: "liver", 3: "pancreas"}
THEIRS = {1: 1, 5: 2, 7: 3}  # TotalSegmentator's values


def write_data(data_dir: Path, folder: Path) -> None:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    shutil.copy(data_dir / "example_ct_sm.nii.gz", folder / "imagesTr" / "patient_a.nii.gz")
    shutil.copytree(data_dir / "dicom", folder / "imagesTr" / "patient_b")
    labels = {"patient_a": "example_seg.nii.gz", "patient_b": "example_seg_dicom.nii.gz"}
    for name, file in labels.items():
        label = read_label(data_dir / file)
        array = np.zeros_like(label.array)
        for theirs, ours in THEIRS.items():
            array[label.array == theirs] = ours
        organs = Segmentation(array, label.grid, ORGANS, label.geometry)
        organs.save(folder / "labelsTr" / f"{name}.nii.gz")


def attunet3d(*arguments: object) -> float:
    """Run a command as a person would; returns its seconds."""
    command = [sys.executable, "-m", "attunet3d", *map(str, arguments)]
    print("$ attunet3d", *arguments, flush=True)
    began = time.monotonic()
    subprocess.run(command, check=True)
    return round(time.monotonic() - began, 1)


def slab_start(data_dir: Path) -> int:
    """The first slice of the slab within the full scan: its header's origin is the full scan's."""
    full = read_volume(data_dir / "example_ct.nii.gz").array.astype(np.float32)
    slab = read_volume(data_dir / "example_ct_sm.nii.gz").array.astype(np.float32)
    count = slab.shape[2]
    apart = [
        np.abs(full[..., k : k + count] - slab).max() for k in range(full.shape[2] - count + 1)
    ]
    assert min(apart) == 0, "the slab must be part of the full scan"
    return int(np.argmin(apart))


def slab_dice(out_dir: Path, start: int) -> dict[str, float]:
    """Dice on the labelled slab of the full-length scan: seen in training, said for what it is."""
    full = read_label(out_dir / "predictions" / "patient_a_full.nii.gz")
    slab = read_label(out_dir / "data" / "labelsTr" / "patient_a.nii.gz")
    found = full.array[..., start : start + slab.array.shape[2]]
    return {
        name: round(dice(found == value, slab.array == value), 3)
        for value, name in ORGANS.items()
        if value
    }


def draw(out_dir: Path, name: str, value: int, reference: Volume | None = None) -> None:
    scan = read_volume(out_dir / "kept_out" / f"{name}.nii.gz")
    found = read_label(out_dir / "predictions" / f"{name}.nii.gz")
    if not (found.array == value).any():
        print(f"{name}: no {ORGANS[value]} found")
        return
    figure = figures.overlay_figure(scan, reference, found, value, title=f"{name}, {ORGANS[value]}")
    figures.save(figure, out_dir / f"{name}_{ORGANS[value]}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    data_dir, out_dir = arguments.data_dir, arguments.out_dir
    write_data(data_dir, out_dir / "data")
    (out_dir / "kept_out").mkdir()
    shutil.copy(data_dir / "example_ct.nii.gz", out_dir / "kept_out" / "patient_a_full.nii.gz")
    shutil.copy(data_dir / "ct_cropped.nii.gz", out_dir / "kept_out" / "patient_c.nii.gz")

    manifest, run = out_dir / "manifest.json", out_dir / "run"
    names = [f"--label={value}={name}" for value, name in ORGANS.items() if value]
    attunet3d("manifest", out_dir / "data", "--out", manifest, "--fix-flips", *names)
    cases = json.loads(manifest.read_text(encoding="utf-8"))
    for case in cases["training"]:  # two patients: both train, none validates
        case.pop("fold", None)
        case["group"] = "both"
    manifest.write_text(json.dumps(cases))
    settings = [
        f"training.steps={arguments.steps}",
        "preprocessing.spacing_mm=[3,3,3]",
        "training.validate_every=1000000",
        "augmentation.affine_probability=0.8",
        "inference.mode=window",
    ]
    sets = [part for setting in settings for part in ("--set", setting)]
    seconds = {"train": attunet3d("train", manifest, "demo_cpu", run, "--device", "cpu", *sets)}
    kept_out = out_dir / "kept_out"
    seconds["infer"] = attunet3d("infer", run, kept_out, out_dir / "predictions", "--device", "cpu")

    volumes = {}
    for name in ("patient_a_full", "patient_c"):
        for value in (2, 3):
            draw(out_dir, name, value)
        found = read_label(out_dir / "predictions" / f"{name}.nii.gz")
        counts = {ORGANS[v]: int((found.array == v).sum()) for v in ORGANS if v}
        volumes[name] = {k: round(n * found.grid.voxel_volume_ml, 1) for k, n in counts.items()}
        scan = read_volume(kept_out / f"{name}.nii.gz")
        assert replace(found, name="").grid.matches(scan.grid, 0.0), "the grid must be the scan's"
    result = {
        "machine": f"{platform.machine()}, CPU",
        "versions": versions(),
        "steps": arguments.steps,
        "seconds": seconds,
        "dice_on_the_slab_seen_in_training": slab_dice(out_dir, slab_start(data_dir)),
        "volume_ml": volumes,
    }
    text = json.dumps(result, indent=2)
    (out_dir / "real_ct.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
