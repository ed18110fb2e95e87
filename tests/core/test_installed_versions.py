"""Versions for sidecars and for `attunet3d --version`."""

import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from attunet3d.__main__ import dispatch
from attunet3d.core import installed_versions, versions


def test_versions_name_what_computes_the_numbers() -> None:
    found = versions()
    assert set(found) == {"python", "attunet3d", "torch", "monai", "numpy", "nibabel", "SimpleITK"}
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_what_is_not_installed_is_called_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "monai":
            raise metadata.PackageNotFoundError(name)
        found: str = real(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    found = versions()
    assert found["monai"] == "absent"
    assert found["numpy"] == np.__version__


def test_the_version_command_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attunet3d ")
    assert f"torch {torch.__version__}" in lines
    cuda = torch.version.cuda or "none: torch was built for CPUs"
    assert lines[3] == f"CUDA {cuda}"


def test_the_cuda_of_a_build_is_read_from_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.11.0'\ncuda: str | None = '12.8'\n")

    class Distribution:
        @staticmethod
        def locate_file(name: str) -> Path:
            return tmp_path / "version.py"

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution)
    assert installed_versions.cuda_of_torch() == "12.8"
