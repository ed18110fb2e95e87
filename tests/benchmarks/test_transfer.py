"""The phantoms' organs, and the tables, of the measurements of transfer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from attunet3d.imaging import Grid
from attunet3d.phantoms import random_grid
from attunet3d.phantoms.anatomy import random_anatomy
from attunet3d.phantoms.scanner import label_anatomy, scan_anatomy
from benchmarks import transfer
from benchmarks.transfer import LABELS, differences, label_organs, table


def test_the_pancreas_is_that_of_the_phantom_and_the_organs_are_there() -> None:
    affine = np.diag([7.0, 7, 7, 1])
    affine[:3, 3] = -176, -130, -100
    grid = Grid((50, 38, 30), affine)
    label = label_organs(7, grid)
    np.testing.assert_array_equal(label == 5, label_anatomy(random_anatomy(7), grid) == 1)
    assert set(np.unique(label)) == set(LABELS)
    liver, spleen = (grid.to_world(np.argwhere(label == value)).mean(0) for value in (1, 2))
    assert liver[0] > spleen[0]  # x grows towards the patient's right


def test_organs_end_at_the_abdominal_wall_as_in_the_scan() -> None:
    """Few voxels of an organ are fat: those at its edge that hold both."""
    grid = random_grid(7, matrix=64)
    label, scan = label_organs(7, grid), scan_anatomy(random_anatomy(7), grid, 7)
    for value in (1, 2, 3):
        assert (scan[label == value] < -50).mean() < 0.04


def test_tables_give_mean_deviation_and_gains_over_seeds() -> None:
    found = {
        "scratch": [{"dice": {"pancreas": 0.5}}, {"dice": {"pancreas": 0.7}}],
        "start": [{"dice": {"pancreas": 0.7, "liver": 0.9}}, {"dice": {"pancreas": 0.6}}],
    }
    assert table(found).splitlines() == [
        "         liver       pancreas           mean",
        "scratch      –  0.600 ± 0.141  0.600 ± 0.141",
        "start    0.900  0.650 ± 0.071  0.700 ± 0.141",
    ]
    assert differences(found) == {"start": [0.2, -0.1]}


def test_a_small_run_adds_an_organ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--small", "--seeds", "1", "--only", "added", "--results", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["transfer", str(tmp_path / "out"), *options])
    transfer.main()
    found = json.loads((tmp_path / "transfer.json").read_text(encoding="utf-8"))
    assert {name: list(runs) for name, runs in found["trainings"].items()} == {
        "added": ["the model before", "others not annotated", "others taught by the model"],
    }
    (taught,) = found["trainings"]["added"]["others taught by the model"]
    assert list(taught["dice"]) == list(LABELS.values())[1:]
    (left_out,) = found["trainings"]["added"]["others not annotated"]
    assert left_out["steps"] == taught["steps"] == 2
    transfer.main()  # trains nothing again
    assert json.loads((tmp_path / "transfer.json").read_text(encoding="utf-8")) == found
