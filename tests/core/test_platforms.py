"""manifest, train and infer without what only Linux has; see `platforms`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attunet3d.phantoms import write_phantoms

SETTINGS = ["network.channels=[4,8,8]", "network.strides=[[2,2,2],[2,2,2]]", "training.steps=2"]
SETTINGS += ["training.validate_every=1", "training.patch_size=[16,16,16]"]
SETTINGS += ["preprocessing.spacing_mm=[8,8,8]", "inference.mode=whole"]


@pytest.mark.parametrize("platform", ["mac", "windows"])
def test_a_model_is_trained_and_used_on_other_platforms(platform: str, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 2, 1, matrix=32)
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    for command in (
        ["manifest", "data", "--out", "m.json", "--folds", "2"],
        ["train", "m.json", "demo_cpu", "run", "--fold", "0", "--device", "cpu", *sets],
        ["infer", "run", "data/imagesTr", "out", "--save-attention", "--device", "cpu"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tests.core.platforms", platform, *command],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    assert not list(tmp_path.rglob(".writing-*"))
