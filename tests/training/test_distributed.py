"""Runs of several real processes give the numbers of one, and survive the death of a process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from attunet3d.core import Config, TrainingError, UserError
from attunet3d.datasets import Manifest
from attunet3d.models import build_network, checkpoint
from attunet3d.pipelines import train
from attunet3d.training import distributed, run_folder
from attunet3d.training.batches import PatchBatches
from attunet3d.training.checkpointing import checkpoint_blocks
from attunet3d.training.run_log import read_rows
from attunet3d.training.step import synchronised
from attunet3d.training.torch_state import step_seed

SETTINGS = [
    "network.channels=[4, 8]",
    "network.norm=instance",
    "preprocessing.spacing_mm=[2, 2, 2]",
    "training.patch_size=[12, 12, 12]",
    "training.batch_size=2",
    "training.steps=20",
    "training.validate_every=10",
    "training.schedule=constant",
    "training.momentum=0.9",
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans of a bright ball, two of them to validate on."""
    folder = tmp_path_factory.mktemp("balls")
    generator = np.random.default_rng(0)
    cases = []
    for number in range(5):
        centre = generator.uniform(8, 12, 3)
        index = np.moveaxis(np.indices((20, 20, 20)), 0, -1)
        label = (np.linalg.norm(index - centre, axis=-1) < 5).astype(np.uint8)
        image = (label * 100 + generator.normal(0, 20, label.shape)).astype(np.int16)
        for name, array in (("image", image), ("label", label)):
            scan = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
            scan.header.set_xyzt_units("mm")
            nibabel.save(scan, folder / f"{name}_{number}.nii.gz")
        files = {"image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz"}
        cases.append({"id": f"case_{number}", "fold": int(number > 2), **files})
    path = folder / "balls.json"
    labels = {"0": "background", "1": "ball"}
    path.write_text(json.dumps({"name": "balls", "labels": labels, "training": cases}))
    return path


def arguments(manifest: Path, run_dir: Path, *more: str, settings: Sequence[str] = ()) -> list[str]:
    (run_dir.parent / "config.yaml").write_text("{}")
    sets = [part for setting in [*SETTINGS, *settings] for part in ("--set", setting)]
    paths = [str(manifest), str(run_dir.parent / "config.yaml"), str(run_dir)]
    plan = str(run_dir.parent / f"{run_dir.name}.plan.json")
    cache = str(manifest.parent / "cache")
    return [
        *paths,
        "--fold",
        "1",
        "--device",
        "cpu",
        "--plan",
        plan,
        "--cache",
        cache,
        *sets,
        *more,
    ]


def start(*train_arguments: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    command += ["-m", "attunet3d", "train", *train_arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )


def run(*train_arguments: str, processes: int = 2) -> tuple[int, str]:
    with start(*train_arguments, processes=processes) as process:
        _, error = process.communicate(timeout=900)
    return process.returncode, error


def weights(run_dir: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint.load_state(run_dir / "last.pt")[0]["network"]
    return found


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with batches of two."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert train.main(arguments(manifest, run_dir)) == 0
    return run_dir


def test_two_processes_give_the_weights_and_scores_of_one(
    manifest: Path, alone: Path, tmp_path: Path
) -> None:
    status, error = run(*arguments(manifest, tmp_path / "run"))
    assert status == 0, error
    assert largest_difference(weights(alone), weights(tmp_path / "run")) < 1e-5
    rows = [read_rows(folder / "metrics.csv") for folder in (alone, tmp_path / "run")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        for name in ("loss", "dice_network_grid"):
            assert float(one[name]) == pytest.approx(float(two[name]), abs=1e-4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_cases"] == ["case_3", "case_4"]
    assert error.count("best dice_network_grid") == 1  # one process speaks


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = ["training.steps=60", "training.save_every=5", "training.validate_every=60"]
LONG += ["training.accumulation=2", "training.checkpoint_activations=true"]


@pytest.fixture(scope="module")
def long(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A longer run of one process, each step of two batches."""
    run_dir = tmp_path_factory.mktemp("long") / "run"
    assert train.main(arguments(manifest, run_dir, settings=LONG)) == 0
    return run_dir


def test_a_killed_process_restarts_the_run_from_its_last_state(
    manifest: Path, long: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with start(*arguments(manifest, run_dir, settings=LONG), restarts=1) as process:
        wait_for(run_dir / "last.pt", process)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)
        _, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert largest_difference(weights(long), weights(run_dir)) < 1e-4
    rows = [read_rows(folder / "metrics.csv") for folder in (long, run_dir)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def test_a_run_of_two_processes_that_was_stopped_goes_on_as_one(
    manifest: Path, long: Path, tmp_path: Path
) -> None:
    for attempt in range(5):  # on a busy machine the signal may come after the last step
        run_dir = tmp_path / f"run{attempt}"
        with start(*arguments(manifest, run_dir, settings=LONG)) as process:
            wait_for(run_dir / "last.pt", process)
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=900)
        if (step := checkpoint.load_state(run_dir / "last.pt")[0]["step"]) < 60:
            break
    assert 0 < step < 60
    assert process.returncode != 0
    assert error.count("--resume goes on from here") == 1, error
    assert not (run_dir / ".attunet3d.lock").exists()
    assert train.main(arguments(manifest, run_dir, "--resume", settings=LONG)) == 0
    assert largest_difference(weights(long), weights(run_dir)) < 1e-4


def test_an_error_of_the_first_process_is_told_once_and_ends_all(
    manifest: Path, alone: Path
) -> None:
    status, error = run(*arguments(manifest, alone))
    assert status != 0
    assert error.count("add --resume to go on with it") == 1


def test_two_processes_train_a_fold_each_as_one_process_trains_both(
    manifest: Path, tmp_path: Path
) -> None:
    for name in ("alone", "two"):
        call = arguments(manifest, tmp_path / name)
        call[call.index("--fold") + 1] = "all"
        if name == "alone":
            assert train.main(call) == 0
        else:
            status, error = run(*call)
            assert status == 0, error
    for fold in ("fold0", "fold1"):
        one, two = (weights(tmp_path / name / fold) for name in ("alone", "two"))
        assert largest_difference(one, two) == 0
    ensembles = [json.loads((tmp_path / n / "ensemble.json").read_text()) for n in ("alone", "two")]
    assert ensembles[0]["members"] == ensembles[1]["members"] == ["fold0", "fold1"]
    assert len(list((tmp_path / "two" / "cross_validation" / "predictions").glob("*.nii.gz"))) == 5


# --- within one process ------------------------------------------------------------------------


def test_shares_are_disjoint_and_cover_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for processes in (1, 2, 3, 7):
        monkeypatch.setattr(distributed, "world_size", lambda n=processes: n)
        shares = [list(distributed.share(7, index)) for index in range(processes)]
        assert [item for part in shares for item in part] == list(range(7))
        assert {len(part) for part in shares} <= {7 // processes, -(-7 // processes)}
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="fewer patches than there are processes"):
        distributed.refuse_idle_processes(2)


def test_the_parts_of_a_batch_are_its_items(manifest: Path, alone: Path) -> None:
    config = Config.load(alone / "config.json")
    found = Manifest.load(manifest)
    data = run_folder.prepare(found.fold(1), found, config, manifest.parent / "cache")
    batches = PatchBatches(data.training, config)
    whole, second = batches.batch(3), batches.batch(3, slots=range(1, 2))
    assert torch.equal(whole.image[1:], second.image)
    assert whole.case_ids[1:] == second.case_ids


def test_processes_draw_different_random_numbers() -> None:
    seeds = {step_seed(0, step, rank) for step in range(3) for rank in range(3)}
    assert len(seeds) == 9
    assert step_seed(0, 1) == step_seed(0, 1, 0)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("form", ["attention_unet_3d", "plain"])
def test_checkpointed_blocks_give_the_same_gradients_and_statistics(norm: str, form: str) -> None:
    settings = ["network.channels=[4, 8, 8]", f"network.norm={norm}", "network.dropout=0.2"]
    settings += ["network.gate=none"] if form == "plain" else []
    config = Config().with_overrides(settings)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = build_network(config.network, 1, 2).train()
        if checkpointed:
            checkpoint_blocks(network)
        torch.manual_seed(1)
        logits = network(torch.randn(2, 1, 8, 8, 8))
        sum(part.square().mean() for part in logits).backward()
        gradients = [part.grad for part in network.parameters()]
        results.append([*gradients, *network.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def kept_values(network: nn.Module) -> int:
    """How many numbers autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(2, 1, 16, 16, 16))
    return sum(sizes)


def test_checkpointed_blocks_keep_less_for_the_backward_pass() -> None:
    network = build_network(Config().network, 1, 2).train()
    before = kept_values(network)
    checkpoint_blocks(network)
    assert kept_values(network) < before / 2


def test_batchnorm_is_synchronised_between_gpus_only() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(2))
    with pytest.raises(TrainingError, match="for GPUs only"):
        synchronised(network, torch.device("cpu"))
    converted = synchronised(network, torch.device("cuda"))
    assert [type(part) for part in converted.children()] == [torch.nn.SyncBatchNorm]
