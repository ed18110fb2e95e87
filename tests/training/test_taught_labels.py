"""A model's own answers take the place of labels that nobody annotated in the new cases."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attunet3d.core import Config, FileError, SettingsError
from attunet3d.datasets import Case, Manifest
from attunet3d.models import checkpoint
from attunet3d.models.checkpoint import Checkpoint
from attunet3d.training import taught_labels
from attunet3d.training.trainer import TrainingData
from tests.training.test_partial_labels import CONFIG, LABELS, case

KEPT = {0: "background", 1: "dark", 4: "spleen"}


class DarkNetwork(nn.Module):
    """Knows what is darker than -1 as its class 1, and finds no spleen, its class 2."""

    divisor = (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), -x - 1, torch.full_like(x, -9.0)], 1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """What `load_model` gives for any path."""
    other = Config().replaced({"preprocessing.spacing_mm": [2, 2, 2]})
    network: Any = DarkNetwork().eval()
    known = Checkpoint(network, other, KEPT, "c" * 64, Path("old"))
    monkeypatch.setattr(checkpoint, "load_model", lambda path: known)
    return known


def test_labels_of_the_model_join_those_of_the_manifest_at_free_values(
    model: Checkpoint, tmp_path: Path
) -> None:
    first = Case(id="a", image=tmp_path / "a.nii", label=tmp_path / "b.nii")
    labels = {0: "background", 1: "bright"}
    manifest = Manifest(name="new", labels=labels, root=tmp_path, training=(first,))
    found = taught_labels.with_labels_of(Path("old"), manifest)
    assert found.labels == {0: "background", 1: "bright", 2: "dark", 4: "spleen"}
    assert found.training[0].annotated == ("bright",)
    overlapping = replace(manifest, regions={"bright": (1,)})
    with pytest.raises(SettingsError, match="labels that overlap"):
        taught_labels.with_labels_of(Path("old"), overlapping)


def test_labels_of_the_model_keep_values_that_are_free(tmp_path: Path) -> None:
    manifest = Manifest(name="new", labels={0: "background", 1: "tumour"}, root=tmp_path)
    kept = {0: "background", 1: "spleen", 2: "pancreas"}
    found = taught_labels._extended(manifest, kept).labels
    assert found == {0: "background", 1: "tumour", 2: "pancreas", 3: "spleen"}


def test_what_was_not_annotated_is_what_the_model_answers(
    model: Checkpoint, tmp_path: Path
) -> None:
    """The dark block comes back where only the bright one was annotated."""
    parts = [(1,), None, (2,)]
    cases = [case(tmp_path / "cases", number, part) for number, part in enumerate(parts)]
    truth = case(tmp_path / "truth", 0, None).label()
    data = TrainingData(training=cases, validation=cases[:1], labels=LABELS)
    for _ in range(2):  # the second call takes what is there
        found = taught_labels.teach(data, CONFIG, Path("old"), torch.device("cpu"), tmp_path / "t")
        assert np.mean(np.array(found.training[0].label()) == truth) > 0.999  # noise of 0.3
        assert found.training[0].annotated is None
        assert set(np.unique(cases[0].label())) == {0, 1}
        np.testing.assert_array_equal(found.training[0].image(), cases[0].image())
        assert found.training[1:] == cases[1:]  # nothing is lacking, or the model knows it not
        assert found.validation == data.validation
    assert len(list((tmp_path / "t").iterdir())) == 1


def test_the_background_of_a_model_with_sigmoids_says_nothing(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(DarkNetwork):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.cat([99 * logits[:, 1:2], logits[:, 1:]], 1)

    network: Any = Reversed().eval()
    other = replace(model, network=network, config=model.config.replaced({"training.loss": "bce"}))
    monkeypatch.setattr(checkpoint, "load_model", lambda path: other)
    truth = case(tmp_path / "truth", 0, None)
    data = TrainingData(training=[case(tmp_path / "cases", 0, (1,))], validation=[], labels=LABELS)
    found = taught_labels.teach(data, CONFIG, Path("old"), torch.device("cpu"), tmp_path / "t")
    assert np.mean(np.array(found.training[0].label()) == truth.label()) > 0.999


def test_a_full_disk_is_told_in_one_line_and_leaves_no_folder(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    data = TrainingData(training=[case(tmp_path / "cases", 0, (1,))], validation=[], labels=LABELS)
    with pytest.raises(FileError, match=r"case 0: cannot be stored in .*t \(No space left"):
        taught_labels.teach(data, CONFIG, Path("old"), torch.device("cpu"), tmp_path / "t")
    assert list((tmp_path / "t").iterdir()) == []


def test_a_model_of_another_preprocessing_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    config = CONFIG.replaced({"preprocessing.spacing_mm": [3, 3, 3]})
    data = TrainingData(training=[], validation=[], labels=LABELS)
    with pytest.raises(SettingsError, match="preprocessing differs from that of the model"):
        taught_labels.teach(data, config, Path("old"), torch.device("cpu"), tmp_path)
