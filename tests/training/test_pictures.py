"""Pictures of a validation case: outlines where the label maps end, gates where they are open."""

from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from attunet3d.training.pictures import COLOURS, validation_pictures
from attunet3d.training.step import TrainingStep
from attunet3d.training.trainer import Trainer, TrainingData
from tests.training.test_trainer import CLASSES, CONFIG, CPU, data  # noqa: F401 (fixture)
from tests.training.test_trainer import case as make_case


class Known(torch.nn.Module):
    """Foreground in the half to the patient's right; a gate that is open to the front."""

    def forward(self, x: Tensor) -> Tensor:
        right = torch.arange(x.shape[2]).view(1, 1, -1, 1, 1) >= x.shape[2] // 2
        return torch.cat([torch.zeros_like(x), right.expand_as(x) * 2.0 - 1.0], 1)

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        front = torch.arange(x.shape[3]).view(1, 1, 1, -1, 1) >= x.shape[3] // 2
        return self(x), [front.expand_as(x).float()]


def test_the_patients_right_is_on_the_left_and_the_front_above(tmp_path: Path) -> None:
    update = TrainingStep(CONFIG, 2, CPU)
    case = make_case(tmp_path, "a", 0)
    found = validation_pictures([case], update, Known().eval(), (12, 12, 12), CLASSES)
    assert sorted(found) == ["gate 1", "outlines"]
    assert {picture.shape for picture in found.values()} == {(240, 240, 3)}  # 20 pixels a voxel
    outlines = (found["outlines"] == np.array(COLOURS["prediction"])).all(-1)
    assert outlines[:, 0].all()
    assert not outlines[:, 120:].any()
    assert outlines[0, :120].all()
    gate = found["gate 1"].astype(int)
    yellow = gate[..., 0] - gate[..., 2]
    assert (yellow[:120] > 100).all()
    assert (yellow[120:] == 0).all()


def test_a_window_beyond_the_case_shows_the_whole_case(tmp_path: Path) -> None:
    settings = ["network.channels=[2, 4, 4]", "network.strides=[[2, 2, 2], [2, 2, 2]]"]
    update = TrainingStep(CONFIG.with_overrides(settings), 2, CPU)
    case = make_case(tmp_path, "a", 0)
    window = (case.shape[0] + 3, case.shape[1], case.shape[2] + 1)
    found = validation_pictures([case], update, update.network.eval(), window, CLASSES)
    assert len(found) > 1, "gates too"
    times = -(-240 // min(case.shape[:2]))
    wanted = (times * case.shape[1], times * case.shape[0], 3)
    assert {picture.shape for picture in found.values()} == {wanted}


def test_a_run_shows_losses_by_scale_waiting_and_pictures_over_time(
    data: TrainingData,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ["network.channels=[2, 4, 4, 4]", "network.deep_supervision=per-scale"]
    settings += ["network.strides=[[2, 2, 2], [2, 2, 2], [1, 1, 1]]"]
    (tmp_path / "run").mkdir()
    deep = Trainer(data, CONFIG.with_overrides(settings), tmp_path / "run", CPU)
    deep.fit()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()
    assert {"outlines", "gate 1"} <= set(tags["images"])
    assert [event.step for event in events.Images("gate 1")] == [4, 8, 12]
    assert {"loss", "learning_rate", "dice_ball", "waiting_seconds"} <= set(tags["scalars"])
    losses = [name for name in tags["scalars"] if name.startswith("loss_by_scale/")]
    assert losses == [f"loss_by_scale/{n}" for n in range(1, len(losses) + 1)]
    assert len(losses) == len(deep.update.criterion.latest) > 1
