"""A run's folder: begun from a plan, or entered again to go on.

config.json         all settings, resolved; a valid CONFIG for another run
plan.json           the numbers that the plan chose, and why; who trains and who validates
model.safetensors   the best weights with their settings and labels
last.pt             the state from which --resume goes on (previous.pt: the one before)
metrics.csv         training loss and validation Dice by step; TensorBoard events beside it
curves.png          loss, learning rate and Dice against the step
calibration.json    how far probabilities can be taken at their word (calibration.png: a diagram)
validation/*.png    the best weights' answers on validation cases
summary.json        how the run ended
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attunet3d.core import (
    ENSEMBLE,
    Config,
    DeviceError,
    TrainingError,
    available_bytes,
    changed_settings,
    locked_folder,
    read_json,
    whole_file,
)
from attunet3d.datasets import Case, Manifest, annotated_values
from attunet3d.training import cache, distributed
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.distributed import by_first
from attunet3d.training.epochs import in_steps
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.plan import PLANNED, Plan, setting
from attunet3d.training.plan_file import save_plan
from attunet3d.training.trainer import TrainingData

CONFIG = "config.json"
MAY_CHANGE = ("training.workers", "training.save_every")  # on --resume: they change no result

SEVERAL = {"fold": "a cross-validation", "seed": "trainings of several seeds"}

Cases = tuple[Sequence[Case], Sequence[Case]]  # to train on, to validate on


def refuse_wrong_folder(run_dir: Path, *, resume: bool) -> None:
    """Refuse to begin a run where there are some, and to resume one where there is none.

    Raises:
        TrainingError: Either is the case.
    """
    holds_run = (run_dir / CONFIG).is_file()
    if not holds_run:
        refuse_trainings(run_dir)
    if holds_run and not resume:
        cure = "add --resume to go on with it, or name another folder"
        raise TrainingError("holds a run", path=run_dir, cure=cure)
    if resume and not holds_run:
        cure = "check the path, or leave --resume out to begin a run"
        raise TrainingError("holds no run to resume", path=run_dir, cure=cure)


def refuse_trainings(run_dir: Path, but: str = "") -> None:
    """Refuse a folder that holds the runs of a cross-validation or of several seeds.

    Args:
        run_dir: The folder.
        but: The kind that may be there: "fold" or "seed".

    Raises:
        TrainingError: It does.
    """
    for kind, what in SEVERAL.items():
        names = sorted(file.parent.name for file in run_dir.glob(f"{kind}[0-9]*/{CONFIG}"))
        names += [ENSEMBLE] if kind == "fold" and (run_dir / ENSEMBLE).is_file() else []
        if names and kind != but:
            raise TrainingError(
                f"holds {what} ({', '.join(names)})", path=run_dir, cure="name another folder"
            )


@by_first
def goes_on(run_dir: Path, asked: bool) -> bool:
    """Whether a call resumes a run: asked to, or begun by processes that `torchrun` restarted."""
    return asked or (distributed.restarted() and (run_dir / CONFIG).is_file())


@contextmanager
def held(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """Hold the folder of a run, which `refuse_wrong_folder` finds right, for all its processes."""
    by_first(refuse_wrong_folder)(run_dir, resume=resume)
    with distributed.held_by_first(lambda: locked_folder(run_dir, "train")):
        yield


@by_first
def begin(run_dir: Path, plan: Plan, cases: Cases, device: torch.device) -> Config:
    """Write the plan and the configuration of a new run.

    Returns:
        The resolved configuration.

    Raises:
        DeviceError: The device has too little memory.
        WriteError: The folder cannot be written to.
    """
    refuse_wrong_folder(run_dir, resume=False)
    distributed.refuse_idle_processes(plan.config.training.batch_size)
    print(plan.table())
    refuse_too_little_memory(plan.needed_bytes, device)
    whole_file.make_folder(run_dir)
    save_plan(plan, run_dir / "plan.json", split=_split(cases))
    config = in_steps(plan.config, len(cases[0]))
    config.save(run_dir / CONFIG)
    return config


@by_first
def go_on(
    run_dir: Path, config: Config, cases: Cases, device: torch.device, more_steps: int = 0
) -> Config:
    """The configuration of a run to go on with; settings that may change are taken from `config`.

    Args:
        run_dir: Of the run.
        config: What is asked for now; what it leaves to the plan is the run's.
        cases: Must be those of the run.
        device: Where to train.
        more_steps: To train longer than the run was to last; the learning rate is then that of a
            run of this length.

    Raises:
        TrainingError: There is no run, or it has other settings or other cases.
        DeviceError: The device has too little memory.
    """
    refuse_wrong_folder(run_dir, resume=True)
    if distributed.restarted():  # the first start has added them
        more_steps = 0
    file = run_dir / CONFIG
    saved = Config.load(file)
    _refuse_other_cases(run_dir, cases)
    open_settings = [name for name in PLANNED if setting(config, name) is None]
    asked = config.replaced({name: setting(saved, name) for name in open_settings})
    asked = in_steps(asked, len(cases[0]))
    for name, (old, new) in changed_settings(saved, asked).items():
        longer = name == "training.steps" and more_steps
        if name not in MAY_CHANGE and not longer:
            raise TrainingError(
                f"{name} is {old} in this run, not {new}",
                path=run_dir,
                cure=f"resume with {file} as CONFIG, or begin another run",
            )
    changes = {name: setting(config, name) for name in MAY_CHANGE}
    if more_steps:  # from here on steps count, not epochs
        steps = saved.training.steps + more_steps
        changes |= {"training.steps": steps, "training.epochs": 0}
    resumed = saved.replaced(changes)
    distributed.refuse_idle_processes(resumed.training.batch_size)
    plan_file = _read_plan(run_dir)
    refuse_too_little_memory(int(plan_file.get("needed_bytes", 0)), device)
    if more_steps:
        resumed.save(file)
    return resumed


def _refuse_other_cases(run_dir: Path, cases: Cases) -> None:
    """Refuse to go on with other cases: those validated on would have been trained on."""
    if _read_plan(run_dir).get("split") != _split(cases):
        raise TrainingError(
            "was begun with other training or validation cases",
            path=run_dir,
            cure="resume with the same manifest and --fold, or begin another run",
        )


def _read_plan(run_dir: Path) -> dict[str, Any]:
    found = read_json(run_dir / "plan.json")
    return found if isinstance(found, dict) else {}


def _split(cases: Cases) -> dict[str, list[str]]:
    training, validation = ([case.id for case in part] for part in cases)
    return {"training": training, "validation": validation}


def refuse_too_little_memory(needed: int, device: torch.device) -> None:
    """Compare the bytes that training takes with what the device can give, before it begins.

    Raises:
        DeviceError: The device has too little.
    """
    needed *= distributed.on_one_device(device)
    free = available_bytes(device)
    if needed > free:
        raise DeviceError(
            f"training takes about {needed / 1e9:.1f} GB of memory, and {device} has"
            f" {free / 1e9:.1f} GB free",
            value=needed,
            cure="state less by --memory, or set a smaller training.patch_size or"
            " training.batch_size",
        )


@by_first
def prepare(cases: Cases, manifest: Manifest, config: Config, folder: Path) -> TrainingData:
    """Bring (training, validation) cases onto the network's grid, once, on disk."""
    labels = manifest.labels
    training, validation = (
        _annotated(cache.build_cache(part, labels, config, folder), part, manifest, config)
        for part in cases
    )
    cache.report_unused(folder, (*training, *validation))
    return TrainingData(training=training, validation=validation, labels=labels)


def _annotated(
    prepared: Sequence[CachedCase], cases: Sequence[Case], manifest: Manifest, config: Config
) -> list[CachedCase]:
    """The prepared cases with the classes that were annotated in each of them."""
    labels, found = LabelClasses.of(manifest.labels, config), []
    for here, case in zip(prepared, cases, strict=True):
        values = annotated_values(case, manifest.labels)
        if values is not None:
            classes = labels.classes(values)
            here = replace(here, annotated=classes, sampled=labels.parts(classes))
        found.append(here)
    return found
