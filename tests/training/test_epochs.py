"""Epochs are steps by another name: counted by hand."""

from pathlib import Path

import pytest
from torch import Tensor

from attunet3d.core import Config, SettingsError
from attunet3d.training.batches import Batch
from attunet3d.training.epochs import epoch_line, in_steps, refuse_steps
from attunet3d.training.optimisation import learning_rate
from attunet3d.training.run_log import Row, read_rows
from attunet3d.training.trainer import TrainingData
from tests.training.test_trainer import data, number, trainer, weights

__all__ = ["data"]  # a fixture
BASE = Config().with_overrides(["training.batch_size=2"])


def test_an_epoch_draws_its_patches_from_every_case_once_around() -> None:
    config = BASE.replaced({"training.epochs": 4, "training.epoch_patches": 3})
    found = in_steps(config, cases=5).training  # 15 patches: 8 batches
    assert (found.steps, found.validate_every, found.step_size) == (32, 8, 240)
    halved = in_steps(config.replaced({"training.accumulation": 2}), cases=5).training
    assert (halved.steps, halved.validate_every) == (16, 4)
    assert in_steps(in_steps(config, 5), 5) == in_steps(config, 5)
    assert in_steps(BASE, 5) is BASE


def test_the_rate_falls_at_the_end_of_an_epoch() -> None:
    config = BASE.replaced(
        {
            "training.epochs": 4,
            "training.schedule": "step",
            "training.step_epochs": 2,
            "training.step_gamma": 0.1,
            "training.learning_rate": 1.0,
        }
    )
    settings = in_steps(config, cases=6).training
    rates = [learning_rate(settings, step) for step in range(settings.steps)]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6)


def test_steps_beside_epochs_are_refused() -> None:
    config = BASE.replaced({"training.epochs": 4})
    with pytest.raises(SettingsError, match=r"training\.epochs=4 gives training\.steps"):
        refuse_steps(config, ["training.seed=1", " training.steps = 10"])
    refuse_steps(config, ["training.seed=1"])
    refuse_steps(BASE, ["training.steps=10"])


def test_the_line_of_an_epoch_has_the_mean_loss_of_its_steps_and_all_its_seconds() -> None:
    config = in_steps(BASE.replaced({"training.epochs": 9}), cases=50)  # 25 steps
    scores: Row = {"dice_network_grid": None, "iou": None, "accuracy": 0.5}
    rows: list[Row] = [
        {"step": "25", "loss": "9", "seconds": "9"},  # the epoch before, read from the file
        {"step": 30, "loss": 1.0, "seconds": 1},
        {"step": 40, "loss": 2.0, "seconds": 2},
        {"step": 50, "loss": 4.0, "seconds": 3.5, **scores},
    ]
    mean = (5 * 1 + 10 * 2 + 10 * 4) / 25
    assert epoch_line(rows, config) == (
        f"epoch   2/9    loss {mean:.4f}  accuracy 0.5000  IoU      –  Dice      –      6.5 s"
    )


def test_a_run_of_epochs_prints_a_line_each_and_goes_on_where_it_was_stopped(
    data: TrainingData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: dict[str, object] = {"epochs": 3, "epoch_patches": 3, "save_every": 1}
    trainer(data, tmp_path / "whole", **changes).fit()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    rows = [row for row in read_rows(tmp_path / "whole" / "metrics.csv") if row["accuracy"]]
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    assert all(number(row, "iou") <= number(row, "dice_network_grid") for row in rows)
    assert f"Dice {number(rows[-1], 'dice_network_grid'):.4f}" in lines[-1]

    broken = trainer(data, tmp_path / "broken", **changes)
    step = broken._train_step

    def dying(batches: list[Batch]) -> float:
        if broken.state.step == 4:
            raise RuntimeError("killed")
        return step(batches)

    monkeypatch.setattr(broken, "_train_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        broken.fit()
    again = trainer(data, tmp_path / "broken", **changes)
    again.resume()
    again.fit()
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    told = [line.rpartition("  ")[0] for line in lines]  # without the seconds
    found = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[0] for line in found] == told


def test_the_initialisation_is_that_of_its_name_and_of_the_seed(
    data: TrainingData, tmp_path: Path
) -> None:
    def start(folder: str, **changes: object) -> dict[str, Tensor]:
        return trainer(data, tmp_path / folder, **changes).update.network.state_dict()

    one, same = (start(name, initialisation="normal") for name in ("a", "b"))
    other = start("c", initialisation="normal", seed=1)
    name = "decoder.0.0.weight"
    assert one[name].equal(same[name])
    assert not one[name].equal(other[name])
    assert 0.018 < float(one[name].std()) < 0.022
    assert float(start("d")[name].std()) > 0.05
