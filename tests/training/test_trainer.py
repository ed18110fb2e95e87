"""A run learns, repeats itself to the last bit, survives being killed, and never trains on NaN."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attunet3d.core import (
    DeviceError,
    ModelError,
    Progress,
    TrainingError,
    machine,
    progress,
)
from attunet3d.core.config import Config
from attunet3d.models import checkpoint
from attunet3d.training import distributed
from attunet3d.training import trainer as trainer_module
from attunet3d.training.batches import Batch, PatchBatches
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.components import Components
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.optimisation import set_rate
from attunet3d.training.run_log import Row, read_rows
from attunet3d.training.step import TrainingStep, training_dtype
from attunet3d.training.torch_state import step_seed
from attunet3d.training.trainer import Trainer, TrainingData
from attunet3d.training.validation import NetworkGridScores, score_network_grid
from tests.conftest import present
from tests.training.conftest import stored_case

LABELS = {0: "background", 1: "ball"}
CONFIG = Config().with_overrides(
    [
        "network.channels=[4, 8]",
        "network.dropout=0.1",
        "preprocessing.spacing_mm=[2, 2, 2]",
        "augmentation.noise_probability=0.5",
        "training.patch_size=[12, 12, 12]",
        "training.batch_size=2",
        "training.steps=12",
        "training.validate_every=4",
        "training.save_every=2",
        "training.optimiser=adamw",
        "training.learning_rate=0.01",
        "training.ema_decay=0.5",
        "training.schedule=cosine",
        "inference.window=[12, 12, 12]",
    ]
)
CPU = torch.device("cpu")
CLASSES = LabelClasses.of(LABELS, CONFIG)
CLOCK: Row = dict.fromkeys(("seconds", "waiting", "validation_seconds"), "")


def case(folder: Path, name: str, seed: int) -> CachedCase:
    """A bright ball in noise, prepared as the cache does."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(6, 10, 3)
    index = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
    label = (np.linalg.norm(index - centre, axis=-1) < 4).astype(np.uint8)
    return stored_case(folder / name, label * 2.0 + generator.normal(0, 0.3, label.shape), label)


def data_in(folder: Path) -> TrainingData:
    cases = [case(folder, f"case_{n}", n) for n in range(3)]
    return TrainingData(training=cases[:2], validation=cases[2:], labels=LABELS)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return data_in(tmp_path / "data")


def trainer(data: TrainingData, folder: Path, **changes: object) -> Trainer:
    config = CONFIG.with_overrides([f"training.{key}={value}" for key, value in changes.items()])
    folder.mkdir(exist_ok=True)
    return Trainer(data, config, folder, CPU)


def weights(folder: Path) -> str:
    return checkpoint.load_model(folder).checksum


def number(row: Row, name: str) -> float:
    return float(row[name] or "nan")


def test_a_run_leaves_its_best_weights_its_numbers_and_its_state(
    data: TrainingData, tmp_path: Path
) -> None:
    result = trainer(data, tmp_path / "run").fit()
    assert result.step == 12
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == ["4", "8", "10", "12"]  # at 10: the loss alone
    assert {"loss", "learning_rate", "dice_network_grid", "dice_ball", "seconds"} <= set(rows[0])
    assert all(number(row, "loss") > 0 for row in rows)
    validated = [number(row, "dice_network_grid") for row in rows if row["dice_network_grid"]]
    assert len(validated) == 3
    best = max(validated)
    assert result.best_dice == best
    found = checkpoint.load_model(tmp_path / "run")
    assert found.labels == LABELS
    assert found.config == CONFIG
    with torch.inference_mode():
        scores = score_network_grid(data.validation, found.network, (12, 12, 12), CPU, CLASSES)
    assert scores.dice[1] == pytest.approx(best, abs=1e-6)


def test_it_learns(data: TrainingData, tmp_path: Path) -> None:
    result = trainer(data, tmp_path / "run", steps=80, validate_every=80, ema_decay=0).fit()
    assert present(result.best_dice) > 0.8


def test_two_runs_of_one_seed_are_one_to_the_last_bit(data: TrainingData, tmp_path: Path) -> None:
    for name in ("a", "b"):
        trainer(data, tmp_path / name).fit()
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    trainer(data, tmp_path / "c", seed=1).fit()
    states = [checkpoint.load_state(tmp_path / name / "last.pt")[0] for name in ("a", "c")]
    first, other = (next(iter(state["network"].values())) for state in states)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("stop", [3, 4, 7, 11])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    data: TrainingData, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(data, tmp_path / "whole").fit()
    broken = trainer(data, tmp_path / "broken")
    step = broken._train_step

    def dying(batches: list[Batch]) -> float:
        if broken.state.step == stop:
            raise RuntimeError("killed")
        return step(batches)

    monkeypatch.setattr(broken, "_train_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        broken.fit()
    again = trainer(data, tmp_path / "broken")
    again.resume()
    assert again.state.step == stop // 2 * 2
    again.fit()
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    ends = [checkpoint.load_state(tmp_path / name / "last.pt")[0] for name in ("whole", "broken")]
    for one, other in zip(*(state["network"].values() for state in ends), strict=True):
        assert torch.equal(one, other)
    rows = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    assert [row | CLOCK for row in rows[0]] == [row | CLOCK for row in rows[1]]


def test_a_run_stopped_while_it_validates_leaves_at_once_and_validates_when_it_goes_on(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(data, tmp_path / "whole").fit()
    broken = trainer(data, tmp_path / "broken")
    calls = []

    def stopped(*arguments: object) -> None:
        calls.append(broken.state.step)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(trainer_module, "score_network_grid", stopped)
    with pytest.raises(SystemExit, match="143"):
        broken.fit()
    monkeypatch.undo()
    again = trainer(data, tmp_path / "broken")
    again.resume()
    assert [again.state.step] == calls
    again.fit()
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    rows = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    assert [row | CLOCK for row in rows[0]] == [row | CLOCK for row in rows[1]]


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.training.test_trainer import *
from attunet3d.core import command_line

def main(argv):
    folder = Path(argv[1])
    cases = [CachedCase(f"case_{n}", folder / "data" / f"case_{n}", (16, 16, 16), -1.0,
             (0, 0, len(np.load(folder / "data" / f"case_{n}" / "foreground.npy"))))
             for n in range(3)]
    data = TrainingData(training=cases[:2], validation=cases[2:], labels=LABELS)
    workers = int(argv[2])
    run = trainer(data, folder / "run", steps=2000, validate_every=2000, workers=workers)
    print("ready", flush=True)
    run.fit()
    return 0

raise SystemExit(command_line.run(main, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 3)]
)
def test_a_stop_request_saves_and_says_how_to_go_on(
    data: TrainingData, tmp_path: Path, number: int, workers: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(Path(__file__).parents[2]), str(tmp_path), str(workers)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert present(process.stdout).readline() == "ready\n"
        while not (tmp_path / "run" / "last.pt").exists():
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in error
    assert "Traceback" not in error
    assert checkpoint.load_state(tmp_path / "run" / "last.pt")[0]["step"] > 0


def poisoned(data: TrainingData) -> TrainingData:
    """The second case holds NaN."""
    bad = data.training[1]
    image = np.load(bad.folder / "image.npy")
    image[:] = np.nan
    np.save(bad.folder / "image.npy", image)
    return dataclasses.replace(data)


def test_a_loss_that_is_no_number_stops_with_the_cases_named(
    data: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as caught:
        trainer(poisoned(data), tmp_path / "run").fit()
    message = str(caught.value)
    assert "case_1" in message
    assert "step 0" in message
    assert "the last good state" not in message  # there is none yet


def test_a_loss_that_is_no_number_is_skipped_on_request(data: TrainingData, tmp_path: Path) -> None:
    result = trainer(
        poisoned(data), tmp_path / "run", batch_size=1, on_nonfinite_loss="skip", ema_decay=0
    ).fit()
    assert result.skipped_steps == 6  # each case comes as often
    state = checkpoint.load_state(tmp_path / "run" / "last.pt")[0]
    weights = state["network"].values()  # running statistics of normalisation included
    assert all(torch.isfinite(value).all() for value in weights if value.is_floating_point())
    assert checkpoint.load_model(tmp_path / "run").path.exists()


def test_early_stop_and_no_validation_cases(data: TrainingData, tmp_path: Path) -> None:
    result = trainer(data, tmp_path / "a", learning_rate=1e-12, early_stop=1, steps=100).fit()
    assert result.step < 100
    alone = dataclasses.replace(data, validation=())
    result = trainer(alone, tmp_path / "b").fit()
    assert result.best_dice is None
    assert result.best_step == 12
    checkpoint.load_model(tmp_path / "b")


def test_a_run_stopped_before_its_first_save_begins_anew(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(data, tmp_path / "run")
    (tmp_path / "run" / ".writing-0123abcd.last.pt.tmp").write_bytes(b"half")
    run.resume()
    assert "begins at step 0" in caplog.text
    assert run.state.step == 0
    assert list((tmp_path / "run").iterdir()) == []
    run.fit()
    (tmp_path / "run" / "summary.json").touch()  # it was finished: its state was taken away
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ModelError):
        trainer(data, tmp_path / "run").resume()


def test_a_state_of_another_network_is_refused(data: TrainingData, tmp_path: Path) -> None:
    trainer(data, tmp_path / "run").save()
    other = CONFIG.with_overrides(["network.channels=[4, 16]"])
    with pytest.raises(TrainingError, match=r"config\.json"):
        Trainer(data, other, tmp_path / "run", CPU).resume()


def test_a_process_weighs_its_patches_by_their_share_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step: Any = SimpleNamespace(settings=SimpleNamespace(batch_size=4))
    part: Any = SimpleNamespace(case_ids=("a",))
    assert TrainingStep._weight(step, part) == 1
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert TrainingStep._weight(step, part) == 0.25


def test_accumulated_batches_give_the_gradient_of_their_mean(data: TrainingData) -> None:
    """One update by two batches, against one by the mean of their losses."""
    settings = ["network.dropout=0", "training.optimiser=sgd", "training.clip_gradient_norm=0"]
    config = CONFIG.with_overrides(settings)
    batches = PatchBatches(data.training, config)
    both = [batches.batch(step) for step in range(2)]
    one, other = (TrainingStep(config, len(LABELS), CPU, Components()) for _ in range(2))
    before = [part.detach().clone() for part in one.network.parameters()]
    value, updated = one.update(both, 0)

    other.network.train()
    losses = [other.criterion(other.network(batch.image), batch.label) for batch in both]
    mean = (losses[0] + losses[1]) / 2
    mean.backward()
    set_rate(other.optimiser, config.training, 0)
    other.optimiser.step()
    assert updated
    assert value == pytest.approx(mean.item(), rel=1e-5)
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    for (got, wanted), start in zip(pairs, before, strict=True):
        torch.testing.assert_close(got - start, wanted - start, rtol=1e-3, atol=1e-6)
    assert not torch.equal(next(iter(one.network.parameters())), before[0])


@pytest.mark.parametrize(("size", "wrong"), [(4, True), (3, True), (2, True), (6, False)])
def test_bfloat16_is_refused_where_cpus_compute_wrong_gradients(
    data: TrainingData, tmp_path: Path, size: int, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: True)
    settings = {"precision": "bfloat16", "patch_size": f"[{size},8,8]"}
    if wrong:  # a level of 2 voxels: 4 / 2, 3 / 2 padded, 2 itself
        with pytest.raises(TrainingError, match="wrong gradients where a level is 2 voxels long"):
            trainer(data, tmp_path / "run", **settings)
    else:
        assert trainer(data, tmp_path / "run", **settings).update.dtype == torch.bfloat16
    assert trainer(data, tmp_path / "run", patch_size=f"[{size},8,8]").update.dtype == torch.float32


def test_precision_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_dtype(CONFIG, CPU) == torch.float32
    half = CONFIG.with_overrides(["training.precision=bfloat16"])
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: True)
    assert training_dtype(half, CPU) == torch.bfloat16
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: False)
    with pytest.raises(TrainingError, match="cpu has no instructions for it"):
        training_dtype(half, CPU)


def test_bfloat16_trains_on_a_cpu(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: True)
    result = trainer(data, tmp_path / "run", precision="bfloat16", steps=4).fit()
    assert result.best_dice is not None
    assert json.loads(json.dumps(dataclasses.asdict(result)))["step"] == 4


def flat(network: nn.Module) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in network.parameters()])


def test_gradients_are_clipped_to_the_norm_set(data: TrainingData) -> None:
    """One update of plain SGD moves the weights by the rate times the clipped norm."""
    settings = ["network.dropout=0", "training.optimiser=sgd", "training.momentum=0"]
    settings += ["training.weight_decay=0", "training.schedule=constant"]
    limit, rate = 1e-3, CONFIG.training.learning_rate
    moved = []
    for clip in (limit, 0):
        config = CONFIG.with_overrides([*settings, f"training.clip_gradient_norm={clip}"])
        step = TrainingStep(config, len(LABELS), CPU, Components())
        before = flat(step.network)
        step.update([PatchBatches(data.training, config).batch(0)], 0)
        moved.append(float((flat(step.network) - before).norm()))
    assert moved[0] == pytest.approx(rate * limit, rel=0.02)
    assert moved[1] > 10 * rate * limit


def test_making_and_running_a_trainer_leaves_torchs_global_state_alone(
    data: TrainingData, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    before, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    generator = np.random.get_state(legacy=False)["state"]["key"].copy()
    trainer(data, tmp_path / "run", steps=2).fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.cudnn.benchmark == benchmark
    assert (np.random.get_state(legacy=False)["state"]["key"] == generator).all()


def test_seeds_of_steps_do_not_depend_on_the_version_of_python() -> None:
    assert step_seed(0, 0) == 6569863346532939966
    assert len({step_seed(seed, step) for seed in range(10) for step in range(100)}) == 1000


def test_memory_that_runs_out_in_training_is_one_line_with_a_cure(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"
    run = trainer(data, tmp_path / "run")

    def greedy(batches: object, number: int) -> NoReturn:
        raise RuntimeError(words)

    monkeypatch.setattr(run.update, "update", greedy)
    with pytest.raises(DeviceError, match="memory of cpu ran out in training") as caught:
        run.fit()
    assert "training.patch_size" in str(caught.value.cure)


def test_a_stop_request_during_validation_is_followed_at_once_and_validation_made_up(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(data, tmp_path / "whole").fit()
    run = trainer(data, tmp_path / "run")

    def interrupted(*_: object) -> NoReturn:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("validation went on")

    monkeypatch.setattr("attunet3d.training.trainer.score_network_grid", interrupted)
    with pytest.raises(SystemExit) as caught:
        run.fit()
    assert caught.value.code == 128 + signal.SIGINT
    monkeypatch.undo()
    again = trainer(data, tmp_path / "run")
    again.resume()
    assert again.state.step == 4
    assert again.state.validation_due
    again.fit()
    assert weights(tmp_path / "whole") == weights(tmp_path / "run")
    rows = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "run")]
    assert [row | CLOCK for row in rows[0]] == [row | CLOCK for row in rows[1]]


def test_the_time_spent_waiting_for_data_is_told(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatchBatches, "iterate", lambda self, *_: slow(self))

    def slow(batches: PatchBatches) -> Iterator[Batch]:
        for step in range(12):
            time.sleep(0.05)
            yield batches.batch(step)

    result = trainer(data, tmp_path / "run").fit()
    assert result.waiting * result.seconds >= 0.4  # 12 times 0.05 s, rounded
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    waiting = [number(row, "waiting") for row in rows]
    assert all(0 < share <= 1 for share in waiting)


def test_of_equally_good_weights_the_later_are_kept_but_count_as_no_improvement(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.5, 0.5, 0.4])
    monkeypatch.setattr(
        "attunet3d.training.trainer.score_network_grid",
        lambda *_: NetworkGridScores({1: next(scores)}, {1: 0.5}, None),
    )
    result = trainer(data, tmp_path / "run", steps=100, early_stop=2).fit()
    assert (result.step, result.best_dice, result.best_step) == (16, 0.5, 12)


def test_a_run_of_so_many_hours_fits_its_steps_and_schedule_to_them(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(10**6))  # a second per look at the clock
    monkeypatch.setattr("attunet3d.training.run_log.time.monotonic", lambda: float(next(seconds)))
    bars: list[Progress] = []

    @contextmanager
    def watched(*arguments: Any) -> Iterator[Progress]:
        with progress(*arguments) as bar:
            bars.append(bar)
            yield bar

    monkeypatch.setattr(trainer_module, "progress", watched)
    run = trainer(data, tmp_path / "run", steps=100000, validate_every=50, save_every=50)
    result = run.fit(hours=0.05)
    assert 5 < result.step < 100
    assert run.config.training.steps == result.step
    assert bars[0].total == result.step  # which the time left is told from
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["dice_network_grid"]
    assert number(rows[-1], "learning_rate") < 0.001  # the cosine has come down
