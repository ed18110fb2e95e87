"""Fuzzed: lists, settings and records, all JSON or YAML."""

import random
from pathlib import Path
from typing import Any

from attunet3d.cohort import results
from attunet3d.core import Config
from attunet3d.datasets import Manifest, nnunet_splits
from benchmarks.reliability.fuzz_input import DisagreementError, Files
from benchmarks.reliability.mutations import json_text, yaml_text

CASES: list[dict[str, Any]] = [
    {"id": "a", "image": "images/a.nii.gz", "label": "labels/a.nii.gz", "fold": 0, "group": "p"},
    {
        "image": ["b.nii.gz"],
        "label": "labels/b.nii.gz",
        "label_flip": "ij",
        "sha256": {"image": "9f"},
    },
]
MANIFEST: dict[str, Any] = {
    "name": "n",
    "labels": {"0": "background", "1": "liver"},
    "modality": {"0": "CT"},
}
MANIFEST |= {"licence": "CC0", "source": "s", "root": "..", "training": CASES, "test": ["c.nii.gz"]}
SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
SIDECAR: dict[str, Any] = {
    "case": "a",
    "labels": {"0": "background"},
    "volumes": {},
    "model": "ff",
    "settings": {},
}
SIDECAR |= {"files": {"a.nii.gz": "0" * 64}, "warnings": [], "seconds": {"reading": 0.1}}
CONFIG = """
network:
  channels: [4, 8]
  gate: single
  strides: [[2, 2, 1]]
preprocessing:
  spacing_mm: [1.5, 1.5, 3]
  hu_window: [-160, 240]
  crop_to_body: true
augmentation: {flip_axes: [0, 2], scale: [0.7, 1.4]}
training:
  seed: 3
  patch_size: [48, 48, 32]
  learning_rate: 1e-4
  loss: dice_ce
  ignore_index: 255
inference: {mode: whole, overlap: 0.25, window: null}
"""


def manifest(rng: random.Random) -> Files:
    """A spoilt manifest."""
    return {"m.json": json_text(MANIFEST, rng)}


def check_manifest(path: Path) -> None:
    """All paths lie beneath the root; what was read can be written and read again."""
    root = path.parent.parent
    found = Manifest.load(path, root)
    for case in (*found.training, *found.validation, *found.test):
        for file in (case.image, case.label):
            if file is not None and not file.is_relative_to(root.resolve()):
                raise DisagreementError(f"{file} lies outside {root}")
    found.save(path.with_name("again.json"))
    if Manifest.load(path.with_name("again.json")).training != found.training:
        raise DisagreementError("what was read and written again is another manifest")


def config(rng: random.Random) -> Files:
    """Spoilt settings, as YAML or as JSON."""
    if rng.random() < 0.6:
        return {"c.yaml": yaml_text(CONFIG.strip(), rng)}
    return {"c.json": json_text(Config.from_dict({}).to_dict(), rng)}


def check_config(path: Path) -> None:
    """What was read can be written and read again."""
    found = Config.load(path)
    found.save(path.with_name("again.json"))
    if Config.load(path.with_name("again.json")) != found:
        raise DisagreementError("what was read and written again are other settings")


def splits(rng: random.Random) -> Files:
    """Spoilt nnU-Net splits."""
    return {"splits_final.json": json_text(SPLITS, rng)}


def check_splits(path: Path) -> None:
    """Folds are assigned to cases that exist."""
    if not nnunet_splits.read_splits(path, ["a", "b", "c"]).keys() <= {"a", "b", "c"}:
        raise DisagreementError("a fold for a case that is not there")


def sidecar(rng: random.Random) -> Files:
    """A spoilt sidecar."""
    return {"a.json": json_text(SIDECAR, rng)}


def check_sidecar(path: Path) -> None:
    """Whatever it says, a case without its files is not done."""
    files = results.case_files(path.parent, "a")
    if results.is_done(files, [files.mask], {"model": "ff"}):
        raise DisagreementError("a case without its files counts as done")
    results.read_sidecar(path)
