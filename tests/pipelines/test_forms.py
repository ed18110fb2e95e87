"""Every published form goes from a manifest to label maps on the scans' grids."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from attunet3d import __main__ as command
from attunet3d.core import command_line
from attunet3d.models.build import build_network
from attunet3d.models.checkpoint import load_model
from attunet3d.models.published.forms import FORMS
from attunet3d.phantoms.dataset import write_phantoms

FAST = ["training.steps=3", "training.validate_every=3", "training.patch_size=[16,16,16]"]
FAST += ["preprocessing.spacing_mm=[8,8,8]", "network.width=2"]


def call(*arguments: Any) -> int:
    return command_line.run(command.dispatch, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("forms")
    write_phantoms(home / "data", 2, 1, matrix=48)
    assert call("manifest", home / "data", "--out", home / "m.json", "--folds", 2) == 0
    return home


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_trained_and_segments_a_scan(form: str, home: Path) -> None:
    run, out = home / form, home / f"{form}_maps"
    sets = [part for name in [*FAST, f"network.form={form}"] for part in ("--set", name)]
    sets += ["--plan", f"{run}.plan.json"]  # forms have strides of their own
    assert call("train", home / "m.json", "demo_cpu", run, "--device", "cpu", *sets) == 0
    model = load_model(run)
    assert type(model.network) is type(build_network(model.config.network, 1, 2))
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"] == 3
    scan = min((home / "data" / "imagesTr").glob("*.nii.gz"))
    options = ["--save-attention", "--device", "cpu"]
    assert call("infer", run, scan, out, *options) == 0
    image, found = nibabel.load(scan), nibabel.load(out / scan.name)
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine)
    assert set(np.unique(np.asanyarray(found.dataobj))) <= {0, 1}
