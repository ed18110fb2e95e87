"""Scans that several tests of cohorts segment."""

from pathlib import Path

import pytest

from attunet3d.pipelines import infer
from benchmarks.reliability import inputs
from tests.known_network import write_scan


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two good scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b"):
        write_scan(folder / f"{name}.nii.gz")
    return folder


def write_and_segment(folder: Path, cases: int) -> Path:
    """Write a model, scans and one that cannot be read; segment them in this process to `alone`."""
    inputs.write_model(str(folder / "model.safetensors"))
    inputs.write_scans(str(folder / "scans"), cases, 32)
    (folder / "scans" / "text.nii.gz").write_text("not a scan")
    names = [str(folder / name) for name in ("model.safetensors", "scans", "alone")]
    assert infer.main([*names, "--device", "cpu"]) == 1
    return folder
