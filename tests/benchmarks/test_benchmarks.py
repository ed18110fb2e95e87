"""The scripts of benchmarks/ load, compare like with like, and hold on small scans."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attunet3d.core import machine
from attunet3d.imaging.volume import read_label, read_volume
from benchmarks import measure

TINY = (64, 60, 24)


@pytest.fixture(scope="module")
def script() -> Callable[..., Any]:
    """Loads a module of benchmarks/speed by its name."""
    return lambda name: importlib.import_module(f"benchmarks.speed.{name}")


@pytest.fixture(scope="module")
def scan(script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = script("clinical_scan").write_clinical_scan(tmp_path_factory.mktemp("scan"), TINY)
    return found


def test_the_scan_is_the_middle_of_a_clinical_one(scan: Path) -> None:
    volume = read_volume(scan)
    assert volume.array.dtype == np.int16
    assert volume.grid.shape == TINY
    assert volume.grid.axis_codes == "LAS"
    assert volume.grid.spacing_mm == pytest.approx((0.78, 0.78, 1.25))
    np.testing.assert_allclose(volume.grid.corners_mm().mean(0), 0, atol=1e-4)
    assert volume.array[0, 0, 0] == -1024  # beyond the reconstruction circle
    assert -100 < np.median(volume.array[16:48, 16:44]) < 200


def test_around_the_network_our_labels_are_those_of_float64(
    script: Callable[..., Any], scan: Path, tmp_path: Path
) -> None:
    around = script("around_network")
    labels = read_label(Path(around.ours(scan, tmp_path, False)())).array[..., around.PLANES]
    exact = around.reference(scan)
    assert 0.05 < exact.mean() < 0.95
    assert (labels == exact).mean() >= around.LEAST_AGREEMENT


def test_monais_chain_answers_the_same_question(
    script: Callable[..., Any], scan: Path, tmp_path: Path
) -> None:
    around = script("around_network")
    theirs = read_label(Path(around.monai(scan, tmp_path)()))
    assert theirs.grid.matches(read_volume(scan).grid)
    agreement = (theirs.array[..., around.PLANES] == around.reference(scan)).mean()
    assert agreement > 0.98  # its first centres lie elsewhere, and the labels are noise


@pytest.mark.parametrize("classes", [2, 14])
@pytest.mark.parametrize("side", ["ours", "monai"])
def test_stitching_labels_as_the_network_does_on_the_whole(
    script: Callable[..., Any], tmp_path: Path, classes: int, side: str
) -> None:
    stitching = script("stitching")
    shape, window = (40, 36, 50), (16, 20, 24)
    answer = getattr(stitching, side)(shape, window, classes, tmp_path / "labels.npy")()
    outcome = measure.Outcome(side, [1.0], 1.0, answer)
    assert len(np.unique(np.load(answer))) == classes
    assert stitching.agreement(outcome, shape, classes) >= stitching.LEAST_AGREEMENT


@pytest.mark.parametrize("settings", ["WINDOWS", "WHOLE", "WHOLE_BFLOAT16"])
def test_end_to_end_gives_a_label_map_on_the_scans_grid(
    script: Callable[..., Any], scan: Path, tmp_path: Path, settings: str
) -> None:
    end = script("end_to_end")
    path = Path(end.ours(scan, tmp_path, 32, True, getattr(end, settings))())
    assert read_label(path).grid.matches(read_volume(scan).grid)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["mode"] == ("window" if settings == "WINDOWS" else "whole")
    half = settings == "WHOLE_BFLOAT16" and machine.computes_in_bfloat16(torch.device("cpu"))
    assert sidecar["precision"] == ("bfloat16" if half else "float32")


def test_windows_are_counted_on_the_networks_grid(script: Callable[..., Any], scan: Path) -> None:
    end = script("end_to_end")  # 64·0.78/1.5, 60·0.78/1.5 and 24·1.25/1.5 voxels: 33, 31, 20
    assert end.number_of_windows(scan, 16, crop_to_body=False) == 4 * 3 * 2


def test_nnunets_plans_are_json_for_the_windows_asked_for(script: Callable[..., Any]) -> None:
    plans = json.loads(json.dumps(script("nnunet").plans(96)))
    full = plans["configurations"]["3d_fullres"]
    assert full["patch_size"] == [96, 96, 96]
    assert full["spacing"] == [1.5, 1.5, 1.5]
    kinds = full["architecture"]["arch_kwargs"]
    assert {len(kinds[name]) for name in ("features_per_stage", "kernel_sizes", "strides")} == {5}


def test_a_commands_peak_memory_is_told_and_its_failure_shown() -> None:
    _, small = measure.launched([sys.executable, "-c", "pass"])
    _, large = measure.launched([sys.executable, "-c", "bytearray(200_000_000)"])
    assert 150 < large - small < 250
    with pytest.raises(SystemExit, match="what went wrong"):
        measure.launched([sys.executable, "-c", "raise ValueError('what went wrong')"])
