"""The page on parts of one's own runs as it stands, and each part is really used."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.core import Config
from attunet3d.phantoms import write_phantoms
from attunet3d.pipelines import manifest as manifest_command
from attunet3d.training import Components, PatchBatches
from attunet3d.training.cached_case import CachedCase
from tests.training.test_batches import config as batch_config
from tests.training.test_batches import make_case

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SETTINGS = {
    "network.channels": (4, 8),
    "network.strides": ((2, 2, 2),),
    "preprocessing.spacing_mm": (8, 8, 8),
    "preprocessing.hu_window": (-100, 200),
    "preprocessing.mean_hu": 40,
    "preprocessing.std_hu": 60,
    "training.patch_size": (16, 16, 16),
    "training.batch_size": 2,
    "training.steps": 4,
    "training.validate_every": 2,
}


def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phantoms(tmp_path / "data", 2, 1, matrix=32)
    assert manifest_command.main(["data", "--out", "m.json", "--folds", "2"]) == 0
    Config().replaced(SETTINGS).save(tmp_path / "config.json")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 8
    mlflow: Any = ModuleType("mlflow")
    logged: list[Any] = []
    mlflow.log_metrics = lambda numbers, step: logged.append((numbers, step))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    variables: dict[str, Any] = {"__name__": "page"}
    exec("\n".join(blocks), variables)
    variables["to_mlflow"]({"step": 3, "loss": 0.5, "dice_network_grid": None})
    assert logged == [({"loss": 0.5}, 3)]
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.fixture
def case(tmp_path: Path) -> CachedCase:
    return make_case(tmp_path / "a")


def test_a_transform_sees_patches_and_draws_from_their_generator(case: CachedCase) -> None:
    def shifted(
        image: Tensor, label: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        assert image.shape == label.shape == (1, 16, 12, 8)
        return image + float(generator.random()), label

    plain = PatchBatches([case], batch_config()).batch(3)
    ours = PatchBatches([case], batch_config(), Components(transforms=(shifted,)))
    assert torch.equal(ours.batch(3).image, ours.batch(3).image)
    shifts = (ours.batch(3).image - plain.image).flatten(1)
    assert (shifts.max(1).values - shifts.min(1).values < 1e-5).all()
    assert shifts[0, 0] != shifts[1, 0]


def test_a_sampler_tells_the_centre_of_each_patch(case: CachedCase) -> None:
    components = Components(sampler=lambda case, generator: (20, 18, 15))
    batch = PatchBatches([case], batch_config(), components).batch(0)
    image = case.image().astype(np.float32)
    wanted = torch.from_numpy(image[12:28, 12:24, 11:19])
    assert all(torch.equal(patch[0], wanted) for patch in batch.image)
