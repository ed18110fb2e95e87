"""The page's program segments with the ONNX file alone, and its label map is that of `infer`."""

import re
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from attunet3d import Predictor
from attunet3d.imaging.geometry import Grid
from attunet3d.packaging.formats import package
from attunet3d.phantoms.dataset import make_phantom
from tests.known_network import dice, write_scan
from tests.packaging.test_bundle import save, uneven

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "deploying.md"
OBLIQUE = np.array([[0.3, -5.8, 0, 120], [-5.6, -0.3, 0, 150], [0, 0, 7, -80], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def program() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if "onnxruntime" in block]
    lines = [line for line in found.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert "attunet3d" not in found
    return str(found)


def test_its_label_map_is_that_of_infer(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["preprocessing.crop_to_body=false", "preprocessing.spacing_mm=[8.0, 7.0, 6.0]"]
    model = save(tmp_path / "model.safetensors", *settings, change=uneven)
    onnx, _ = package(model, tmp_path / "model.onnx", "onnx")
    scan, _ = make_phantom(0, grid=Grid((41, 55, 22), OBLIQUE))
    source = write_scan(tmp_path / "scan.nii.gz", np.asfortranarray(scan.array), OBLIQUE)
    monkeypatch.setattr(sys, "argv", ["x", str(onnx), str(source), str(tmp_path / "out.nii.gz")])
    variables: dict[str, Any] = {}
    exec(compile(program, PAGE, "exec"), variables)
    image = nibabel.load(tmp_path / "out.nii.gz")
    found = np.asanyarray(image.dataobj)
    wanted = Predictor.load(model, "cpu", ["inference.mode=whole"]).predict(source).array
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-4)
    assert found.shape == wanted.shape
    assert 500 < np.count_nonzero(wanted) < wanted.size / 1.2
    assert dice(found == 5, wanted == 5) >= 0.9999
