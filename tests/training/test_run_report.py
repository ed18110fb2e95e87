"""What is left when the last step is done."""

import json
from pathlib import Path

import numpy as np
import torch

from attunet3d.core import Config
from attunet3d.training import run_report
from attunet3d.training.trainer import Trainer, TrainingData
from tests.training.conftest import stored_case

CONFIG = Config().with_overrides(
    [
        "network.channels=[4, 8]",
        "preprocessing.spacing_mm=[2, 2, 2]",
        "training.patch_size=[8, 8, 8]",
        "training.batch_size=1",
        "training.steps=1",
        "training.regions=[[1, 2]]",
        "inference.regions_class_order=[1]",
        "inference.window=[8, 8, 8]",
    ]
)


def test_a_region_is_drawn_that_is_mostly_of_a_value_without_a_class(tmp_path: Path) -> None:
    """The only class is made of the values 1 and 2, and 2 has more voxels."""
    label = np.zeros((8, 8, 8))
    label[2:6, 2:6, 2:6] = 2
    label[2, 2, 2] = 1
    cases = [stored_case(tmp_path / name, label, label, 3) for name in ("a", "b")]
    data = TrainingData(
        training=cases[:1], validation=cases[1:], labels={0: "background", 1: "whole"}
    )
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(data, CONFIG, run, torch.device("cpu"))
    run_report.finish(trainer, trainer.fit())
    assert (run / "validation" / "b.png").exists()
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"] == 1
