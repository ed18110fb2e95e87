"""The demo's data, its commands, and its picture."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pytest
from matplotlib.image import imread

from attunet3d import demonstration
from attunet3d.__main__ import COMMANDS
from attunet3d.imaging.volume import read_label, read_volume


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo of three phantoms to learn from and one unseen."""
    monkeypatch.setattr(demonstration, "TRAINING_PHANTOMS", 3)
    monkeypatch.setattr(demonstration, "UNSEEN_PHANTOMS", 1)
    demonstration.write_data(tmp_path)
    return tmp_path


def test_unseen_phantoms_are_other_patients(demo: Path) -> None:
    training = sorted(path.name for path in (demo / "training" / "imagesTr").iterdir())
    (unseen,) = (demo / "unseen" / "imagesTr").iterdir()
    assert len(training) == 3
    scan = read_volume(unseen)
    assert read_label(demo / "unseen" / "labelsTr" / unseen.name).grid.matches(scan.grid)
    for name in training:
        other = read_volume(demo / "training" / "imagesTr" / name)
        assert other.array.shape != scan.array.shape or (other.array != scan.array).any()


def test_its_commands_are_commands_and_the_first_one_runs(demo: Path) -> None:
    commands = list(demonstration.commands(demo))
    names = [command[0] for command in commands]
    assert names == ["manifest", "train", "infer", "evaluate", "report"]
    assert {command[0] for command in commands} <= set(COMMANDS)
    folds = commands[0].index("--folds") + 1
    commands[0][folds] = "3"
    assert import_module("attunet3d.pipelines.manifest").main(commands[0][1:]) == 0
    cases = json.loads((demo / "manifest.json").read_text(encoding="utf-8"))["training"]
    assert sorted(case["fold"] for case in cases) == [0, 1, 2]


def test_the_picture_shows_each_unseen_phantom(demo: Path) -> None:
    answers, predictions = demo / "unseen" / "labelsTr", demo / "predictions"
    shutil.copytree(answers, predictions)
    (predictions / "attention").mkdir()
    for path in answers.iterdir():
        label = nibabel.load(path)
        maps = np.stack([label.get_fdata()] * 6, -1)
        image = nibabel.Nifti1Image(maps.astype(np.float32), label.affine)
        nibabel.save(image, predictions / "attention" / path.name)
    path = demonstration.picture(demo)
    assert path == demo / "demo.png"
    image = imread(path)
    assert min(image.shape[:2]) > 200
    assert image[..., :3].std() > 0.05  # not one colour
