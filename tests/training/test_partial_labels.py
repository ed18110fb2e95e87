"""Data sets in which not everything was annotated train every label."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from attunet3d.core import Config
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.trainer import Trainer, TrainingData
from tests.conftest import present
from tests.training.conftest import stored_case

LABELS = {0: "background", 1: "bright", 2: "dark"}
CONFIG = Config().with_overrides(
    [
        "network.channels=[8, 16]",
        "preprocessing.spacing_mm=[2, 2, 2]",
        "augmentation.affine_probability=0",
        "training.patch_size=[16, 16, 16]",
        "training.batch_size=2",
        "training.steps=80",
        "training.validate_every=80",
        "training.optimiser=adamw",
        "training.learning_rate=0.01",
        "training.schedule=one_cycle",
        "inference.window=[16, 16, 16]",
    ]
)


def case(folder: Path, number: int, annotated: tuple[int, ...] | None) -> CachedCase:
    """A bright and a dark block in noise; of what was not annotated the label says background."""
    generator = np.random.default_rng(number)
    label = np.zeros((16, 16, 16), np.uint8)
    for value, corner in ((1, generator.integers(0, 4, 3)), (2, generator.integers(9, 12, 3))):
        x, y, z = corner
        label[x : x + 5, y : y + 5, z : z + 5] = value
    image = np.array([0.0, 2.0, -2.0])[label] + generator.normal(0, 0.3, label.shape)
    if annotated is not None:
        label[~np.isin(label, annotated)] = 0
    return stored_case(folder / f"{number}", image, label, classes=3, annotated=annotated)


def trained(folder: Path, annotated: Sequence[tuple[int, ...] | None]) -> float:
    """Dice of both labels on a case that is fully annotated, after training on four others."""
    cases = [case(folder / "cases", number, part) for number, part in enumerate(annotated)]
    data = TrainingData(training=cases, validation=[case(folder / "cases", 9, None)], labels=LABELS)
    (folder / "run").mkdir()
    trainer = Trainer(data, CONFIG, folder / "run", torch.device("cpu"))
    return present(trainer.fit().best_dice)


def test_two_half_labelled_halves_train_both_labels_as_full_labels_do(tmp_path: Path) -> None:
    full = trained(tmp_path / "full", [None] * 4)
    halves = trained(tmp_path / "halves", [(1,), (1,), (2,), (2,)])
    assert full > 0.9
    assert halves == pytest.approx(full, abs=0.02)
