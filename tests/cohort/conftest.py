"""Scans that several tests of cohorts segment."""

from pathlib import Path

import pytest

from attunet3d.pipelines import infer
from benchmarks.reliability import inputs
from tests.known_network import write_scan

CASES = 4


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, scans of which one cannot be read, and what a call makes of them here."""
    return write_and_segment(tmp_path_factory.mktemp("here"), CASES)


def maps(folder: Path) -> dict[str, bytes]:
    """The label maps of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}
