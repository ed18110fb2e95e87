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
from attunet3d.imaging.preprocessing import body_box
from attunet3d.imaging.volume import read_volume
from attunet3d.packaging.formats import package
from attunet3d.phantoms.dataset import make_phantom
from tests.known_network import dice, write_scan
from tests.packaging.test_bundle import save, uneven

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "deploying.md"
OBLIQUE = np.array([[0.3, -5.8, 0, 120], [-5.6, -0.3, 0, 150], [0, 0, 7, -80], [0, 0, 0, 1]])


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `segment.py` holds; `body.py` lies where it is imported from."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (body,) = [block for block in blocks if "def body_box" in block]
    (found,) = [block for block in blocks if "onnxruntime" in block]
    lines = [line for line in found.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 40
    assert "attunet3d" not in found + body
    (tmp_path / "body.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "body", raising=False)
    return str(found)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("fine", [False, True], ids=["coarse", "fine"])
def test_its_label_map_is_that_of_infer(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: bool, fine: bool
) -> None:
    settings = [f"preprocessing.crop_to_body={crop}".lower()]
    settings.append(f"preprocessing.spacing_mm={[15.0, 13.0, 16.0] if fine else [8.0, 7.0, 6.0]}")
    model = save(tmp_path / "model.safetensors", *settings, change=uneven)
    onnx, _ = package(model, tmp_path / "model.onnx", "onnx")
    scan, _ = make_phantom(0, grid=Grid((41, 55, 22), OBLIQUE))
    wide = np.pad(scan.array, [(6, 11), (9, 4), (0, 0)], constant_values=-1000)
    source = write_scan(tmp_path / "scan.nii.gz", np.asfortranarray(wide), OBLIQUE)
    box = body_box(read_volume(source))
    assert np.prod([part.stop - part.start for part in box]) < 0.8 * wide.size
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
