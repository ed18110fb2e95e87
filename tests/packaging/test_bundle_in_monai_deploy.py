"""The page's application of MONAI Deploy makes the label map of `infer` a DICOM Segmentation.

Runs where MONAI Deploy's App SDK is installed: docs/howto/deploying.md says how.
"""

import re
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pytest

from attunet3d import Predictor
from attunet3d.packaging.formats import package
from tests.imaging import source_series
from tests.packaging.test_bundle import save, threshold
from tests.packaging.test_dicom_seg import ordered
from tests.pipelines.test_pacs_dump import write_series

pytest.importorskip("holoscan")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "deploying.md"
NO_GATE = ["network.gate=none", "network.deep_supervision=none"]


@pytest.mark.parametrize("kind", ["axial", "oblique"])
def test_the_application_segments_a_series_as_inference_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (program,) = [block for block in blocks if "monai.deploy" in block]
    (tmp_path / "app.py").write_text(program, encoding="utf-8")
    labels = {0: "background", 1: "pancreas"}
    model = save(tmp_path / "model.safetensors", *NO_GATE, labels=labels, change=threshold)
    folder, _ = package(model, tmp_path / "bundle", "bundle")
    # The SDK's affine exchanges the spacings of rows and columns; those of a CT are equal.
    monkeypatch.setattr(source_series, "SPACING", (0.8, 0.8, 2.5))
    write_series(tmp_path / "series", kind, patient="Doe^Jane", number=1)
    command = [sys.executable, "app.py", "series", str(folder), "out"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    predictor = Predictor.load(model, "cpu", ["inference.mode=window"])
    segmentation = predictor.predict(tmp_path / "series")
    wanted = segmentation.grid.to_world(np.argwhere(segmentation.array == 1))
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    lps = volume.map_indices_to_reference(np.argwhere(volume.array == 1))
    assert 50 < len(wanted) < segmentation.array.size / 2
    np.testing.assert_allclose(ordered(lps @ source_series.LPS_TO_RAS), ordered(wanted), atol=1e-3)
