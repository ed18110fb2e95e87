"""MONAI Label's own bundle app loads a bundle, segments a scan as `infer` does, and trains it.

Runs where MONAI Label is installed: docs/howto/deploying.md says how.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from attunet3d import Predictor
from attunet3d.core import Array
from attunet3d.imaging.geometry import Grid
from attunet3d.packaging.formats import package
from attunet3d.phantoms.dataset import make_phantom
from tests.known_network import dice, write_scan
from tests.packaging.test_bundle import save, uneven

pytest.importorskip("monailabel")

APP = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle")
CONFIGURATION = {"models": "organ", "zoo_source": "local", "sam2": "false"}  # no downloads
ORGAN = {"model": "organ", "device": "cpu"}
CALL = """
import json, sys
from monailabel.interfaces.utils.app import app_instance

app = app_instance("app", "studies", json.loads(sys.argv[1]))
requests = json.loads(sys.argv[2])
results = [getattr(app, method)(request) for method, request in requests]
open("results.json", "w").write(json.dumps([app.info(), *results]))
"""
SETTINGS = ["preprocessing.spacing_mm=[9, 10, 11]", "preprocessing.crop_to_body=true"]
COS, SIN = np.cos(0.1), np.sin(0.1)
OBLIQUE = np.array(  # LPS, turned about z
    [[-9 * SIN, -8 * COS, 0, 170], [-9 * COS, 8 * SIN, 0, 120], [0, 0, 9, -80], [0, 0, 0, 1]]
)


def write_studies(folder: Path) -> None:
    """Four phantoms with their labels, where MONAI Label looks for them."""
    (folder / "labels" / "final").mkdir(parents=True)
    for seed in range(4):
        scan, label = make_phantom(seed, grid=Grid((28, 36, 18), OBLIQUE))
        for kind, array in (("", scan.array), ("labels/final", label.array)):
            write_scan(folder / kind / f"scan_{seed}.nii.gz", np.asfortranarray(array), OBLIQUE)


def label_map(result: dict[str, Any]) -> Array:
    image = nibabel.load(result["file"])
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-4)
    return np.asanyarray(image.dataobj)


def test_the_app_segments_as_inference_does_and_trains_the_bundle_further(tmp_path: Path) -> None:
    write_studies(tmp_path / "studies")
    shutil.copytree(APP, tmp_path / "app")
    labels = {0: "background", 1: "pancreas"}
    model = save(tmp_path / "model.safetensors", *SETTINGS, labels=labels, change=uneven)
    package(model, tmp_path / "app" / "model" / "organ", "bundle")
    infer = ["infer", {**ORGAN, "image": "scan_0", "result_dtype": "uint8"}]
    train = ["train", {**ORGAN, "max_epochs": 1, "val_split": 0.25}]
    requests = json.dumps([infer, train, infer])
    command = [sys.executable, "-W", "ignore", "-c", CALL, json.dumps(CONFIGURATION), requests]
    environment = {"TMPDIR": str(tmp_path), "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", cwd=tmp_path, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    info, before, trained, after = results
    assert info["models"]["organ"]["labels"] == {"pancreas": 1}
    predictor = Predictor.load(model, "cpu", ["inference.mode=window"])
    wanted = predictor.predict(tmp_path / "studies" / "scan_0.nii.gz").array
    assert 500 < np.count_nonzero(wanted) < wanted.size / 1.2
    assert dice(label_map(before) == 1, wanted == 1) >= 0.999
    assert trained == {}
    assert np.any(label_map(after) != wanted)
