"""Learning rates at known steps, and the moving average by hand."""

import copy
import math
from typing import Any

import pytest
import torch

from attunet3d.core import Config, NetworkConfig, SettingsError
from attunet3d.core.training_config import TrainingConfig
from attunet3d.models import build_network
from attunet3d.training.batches import Batch
from attunet3d.training.optimisation import (
    build_optimiser,
    learning_rate,
    moving_average,
    parameter_groups,
    set_rate,
    update_average,
)
from attunet3d.training.step import TrainingStep
from tests.conftest import present


def rates(**settings: Any) -> list[float]:
    """The learning rate of each step."""
    config = TrainingConfig(learning_rate=1.0, **settings)
    return [learning_rate(config, step) for step in range(config.steps)]


def test_polynomial_cosine_step_and_constant() -> None:
    assert rates(schedule="polynomial", steps=4) == pytest.approx(
        [(1 - n / 4) ** 0.9 for n in range(4)]
    )
    assert rates(schedule="cosine", steps=4) == pytest.approx(
        [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    )
    assert rates(schedule="step", steps=5, step_size=2, step_gamma=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(schedule="constant", steps=3) == [1, 1, 1]


def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone() -> None:
    assert rates(schedule="constant", steps=5, warmup_steps=3) == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 1]
    )
    plain = rates(schedule="polynomial", steps=10)
    assert rates(schedule="polynomial", steps=10, warmup_steps=3)[3:] == pytest.approx(plain[3:])


def test_one_cycle_rises_to_the_rate_and_falls() -> None:
    found = rates(schedule="one_cycle", steps=40)
    assert max(found) == pytest.approx(1.0, abs=0.02)
    assert found.index(max(found)) in (9, 10)  # a quarter of the way
    assert found[0] == pytest.approx(1 / 25)
    assert found[-1] < 0.01


def test_optimisers_are_those_of_the_names() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    sgd = build_optimiser(weights, TrainingConfig(optimiser="sgd", momentum=0.9))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"]
    assert not build_optimiser(weights, TrainingConfig(optimiser="sgd", momentum=0)).defaults[
        "nesterov"
    ]
    adam = build_optimiser(weights, TrainingConfig(optimiser="adam", weight_decay=0.1))
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["weight_decay"] == 0.1
    assert type(build_optimiser(weights, TrainingConfig(optimiser="adamw"))) is torch.optim.AdamW


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("steps", [4, 7, 40])
def test_one_cycle_is_that_of_torch(optimiser: str, steps: int) -> None:
    settings = {"schedule": "one_cycle", "optimiser": optimiser, "steps": steps}
    config = TrainingConfig.from_dict({**settings, "learning_rate": 0.5})
    ours, theirs = (build_optimiser([torch.nn.Parameter(torch.zeros(1))], config) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.5, total_steps=steps + 1, pct_start=0.25
    )
    for step in range(steps):
        set_rate(ours, config, step)
        for name in ("lr", "betas" if optimiser == "adamw" else "momentum"):
            assert ours.param_groups[0][name] == pytest.approx(theirs.param_groups[0][name])
        theirs.step()
        schedule.step()


def test_one_cycle_of_three_steps_has_finite_rates() -> None:
    """torch's own divides by zero here."""
    assert rates(schedule="one_cycle", steps=3)[0] == 1.0
    assert all(0 < rate <= 1 for rate in rates(schedule="one_cycle", steps=3))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0.1, [1.0, 1.9, 2.89]),  # the first is a copy
        (0.9, [1.0, 2 / 11 + 9 / 11 * 2, (2 / 11 + 9 / 11 * 2) / 4 + 3 / 4 * 3]),  # 2/11, 3/12
    ],
)
def test_moving_average_by_hand(decay: float, expected: list[float]) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    average = present(moving_average(layer, decay))
    values = []
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(layer.weight, value)
        update_average(average, layer, decay)
        values += [weight.item() for weight in average.module.parameters()]
    assert values == pytest.approx(expected)


def test_no_average_for_a_decay_of_zero() -> None:
    layer = torch.nn.Linear(1, 1)
    assert moving_average(layer, 0.0) is None


def test_the_encoder_gets_its_own_rate_or_none() -> None:
    network: Any = build_network(NetworkConfig(channels=(2, 4)), 1, 2)
    count = len(list(network.encoder.parameters()))
    config = TrainingConfig(learning_rate=0.5, schedule="constant", encoder_rate=0.1)
    optimiser = build_optimiser(parameter_groups(network, config), config)
    set_rate(optimiser, config, 0)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.05]
    assert len(optimiser.param_groups[1]["params"]) == count
    (rest,) = parameter_groups(network, TrainingConfig(encoder_rate=0))
    assert len(rest["params"]) == len(list(network.parameters())) - count
    assert not any(part.requires_grad for part in network.encoder.parameters())
    with pytest.raises(SettingsError, match=r"encoder_rate 0.1: a Linear has no encoder"):
        parameter_groups(torch.nn.Linear(1, 1), config)


def test_weights_of_another_model_get_a_rate_of_their_own() -> None:
    network = torch.nn.ModuleDict({part: torch.nn.Linear(1, 1) for part in ("encoder", "head")})
    config = TrainingConfig(encoder_rate=0.5, taken_rate=0.2)
    taken = {"encoder.weight", "head.weight"}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        group["factor"]: [names[id(parameter)] for parameter in group["params"]]
        for group in parameter_groups(network, config, taken)
    }
    one_each = {1: "head.bias", 0.5: "encoder.bias", 0.2: "head.weight", 0.1: "encoder.weight"}
    assert found == {factor: [name] for factor, name in one_each.items()}
    assert list(found) == sorted(found, reverse=True)
    rates = parameter_groups(network, TrainingConfig())
    assert [(group["factor"], len(group["params"])) for group in rates] == [(1.0, 4)]


def test_rates_of_taken_weights_are_resumed() -> None:
    """By the state alone: it tells which weights were taken."""
    settings = ["network.channels=[2, 4]", "training.patch_size=[8, 8, 8]", "training.batch_size=1"]
    config = Config().with_overrides([*settings, "training.schedule=constant"])
    image, label = torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8, dtype=torch.uint8)
    batch = Batch(image, label, ("a",), (None,))
    steps = [TrainingStep(config, 2, torch.device("cpu")) for _ in range(2)]
    steps[0].slow_down(["encoder.0.0.weight", "decoder.0.0.weight"])
    steps[0].update([batch], 0)
    steps[1].load(copy.deepcopy(steps[0].state()))
    for step in steps:
        step.update([batch], 1)
        assert [len(group["params"]) for group in step.optimiser.param_groups][1:] == [2]
        rates = [group["lr"] for group in step.optimiser.param_groups]
        assert rates == pytest.approx([1e-2, 5e-3])
        assert step.learning_rate == pytest.approx(1e-2)
    one, other = (step.network.state_dict() for step in steps)
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_a_frozen_encoder_stays_as_it_is_with_its_statistics() -> None:
    settings = ["network.channels=[2, 4]", "training.encoder_rate=0", "training.ema_decay=0.9"]
    settings += ["training.patch_size=[8, 8, 8]", "training.batch_size=1"]
    step = TrainingStep(Config().with_overrides(settings), 2, torch.device("cpu"))
    before = copy.deepcopy(step.network.state_dict())
    image, label = torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8, dtype=torch.uint8)
    batch = Batch(image, label, ("a",), (None,))
    for number in range(2):
        step.update([batch], number)
    for after in (step.network.state_dict(), step.evaluated([image]).state_dict()):
        same = {name for name, value in before.items() if torch.equal(after[name], value)}
        assert {name for name in before if name.startswith("encoder.")} <= same
        assert not same & {"decoder.0.0.weight", "decoder.0.1.running_mean", "heads.0.weight"}
