"""One training from its folder to its summary."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attunet3d.core import Config, SettingsError, TrainingError
from attunet3d.datasets import Manifest
from attunet3d.training import (
    distributed,
    epochs,
    plan_file,
    run_folder,
    run_report,
    taught_labels,
)
from attunet3d.training.run_folder import Cases
from attunet3d.training.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingCall:
    """What a call of `train` asks for, whatever the number of trainings that it takes."""

    manifest: Manifest
    config: Config
    """With gaps, which the plan fills."""
    plan: Path
    """The file of the plan that all trainings on this data set share."""
    device: torch.device
    memory: str | None = None
    """What a new plan is made for, such as "24GB"; None: the device's."""
    cache: Path | None = None
    """Folder of prepared cases; None: in the run's folder."""
    resume: bool = False
    steps_more: int = 0
    """Resume for so many steps beyond the run's end."""
    init: Path | None = None
    """The model whose weights are the first."""
    keep_labels: bool = False
    """Teach its labels, by its own answers, where a case lacks them."""
    hours: float | None = None
    """Train for as many steps as this takes."""
    manifest_file: Path | None = None
    """Where the manifest was read, for messages."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], device: torch.device) -> "TrainingCall":
        """The call that the flags of a command describe, on this process's device.

        Raises:
            UserError: A file cannot be read, or does not describe a training.
        """
        _refuse_wrong_flags(flags)
        manifest = Manifest.load(flags["manifest"], flags["root"]).require_files()
        if flags["keep_labels"]:
            manifest = taught_labels.with_labels_of(flags["init"], manifest)
        settings = [*flags["set"], *(["training.encoder_rate=0"] if flags["freeze"] else [])]
        names = ("memory", "cache", "init", "keep_labels", "hours")
        steps_more = flags["steps_more"] or 0
        return cls(
            manifest=manifest,
            config=plan_file.read_config(flags["config"], settings, manifest, flags["init"]),
            plan=flags["plan"] or plan_file.default_path(flags["manifest"], flags["config"]),
            device=device,
            resume=flags["resume"] or steps_more > 0,
            steps_more=steps_more,
            manifest_file=flags["manifest"],
            **{name: flags[name] for name in names},
        )


def _refuse_wrong_flags(flags: Mapping[str, Any]) -> None:
    """Refuse numbers out of range and flags that do not go together, before anything is read."""
    everything = flags["fold"] == "all"
    if flags["final"] and not everything:
        raise SettingsError("--final goes with --fold all", cure="add it, or leave --final out")
    if flags["seeds"] is not None and everything:
        raise SettingsError("--seeds goes with one fold", cure="name it by --fold K")
    for name in ("keep_labels", "freeze"):
        if flags[name] and flags["init"] is None:
            flag = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{flag} goes with --init", cure="name the model by it")
    hours, more = flags["hours"], flags["steps_more"]
    if hours is not None and not 0 < hours < math.inf:
        rule = f"--hours {hours}: must be a finite number above 0"
        raise SettingsError(rule, value=hours, cure="correct it, or leave it out")
    if more is not None and more < 1:
        rule = f"--steps-more {more}: must be a whole number from 1 upwards"
        raise SettingsError(rule, value=more, cure="correct it, or leave it out")


def train_run(call: TrainingCall, run_dir: Path, cases: Cases) -> None:
    """Train one model in `run_dir`, or go on with it; see `run_folder` for what it leaves there.

    Raises:
        UserError: The folder holds what it should not, the data or settings are not those of the
            run to resume, or the training cannot go on.
    """
    resume = run_folder.goes_on(run_dir, call.resume)
    with run_folder.held(run_dir, resume=resume):
        if resume:
            config = run_folder.go_on(run_dir, call.config, cases, call.device, call.steps_more)
        else:
            plan = plan_file.shared_plan(
                call.manifest, call.config, call.plan, call.device, call.memory
            )
            config = run_folder.begin(run_dir, plan, cases, call.device)
        data = run_folder.prepare(cases, call.manifest, config, call.cache or run_dir / "cache")
        if call.keep_labels and call.init is not None:
            data = taught_labels.teach(data, config, call.init, call.device, run_dir / "taught")
        trainer = Trainer(data, config, run_dir, call.device)
        with _tells_how_to_go_on():
            trainer.start(resume=resume, init=call.init)
        result = trainer.fit(call.hours)  # which tells it by itself, with the step
        with _tells_how_to_go_on():
            run_report.finish(trainer, result)


@contextlib.contextmanager
def _tells_how_to_go_on() -> Iterator[None]:
    """Say so when a signal ends the block."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        _log.warning("stopped; the same command with --resume goes on from here")
        raise


@distributed.by_first
def refuse_wrong_folders(call: TrainingCall, run_dir: Path, names: Sequence[str]) -> None:
    """Refuse to begin several trainings where some are, and to resume some where none is.

    Raises:
        TrainingError: `run_dir` is a run itself, holds trainings of another kind, holds trainings
            and is not to be resumed, or is to be resumed and holds none.
        SettingsError: More steps are asked for, which one run can take.
    """
    if (run_dir / run_folder.CONFIG).exists():
        raise TrainingError("holds a run of one fold", path=run_dir, cure="name another folder")
    run_folder.refuse_trainings(run_dir, but=names[0].rstrip("0123456789"))
    begun = any((run_dir / name / run_folder.CONFIG).exists() for name in names)
    if begun and not (call.resume or distributed.restarted()):
        cure = "add --resume to go on with them, or name another folder"
        raise TrainingError(f"holds trainings ({names[0]} …)", path=run_dir, cure=cure)
    if call.resume and not begun:
        cure = "check the path, or leave --resume out to begin"
        raise TrainingError(f"holds no training to resume ({names[0]} …)", path=run_dir, cure=cure)
    if call.steps_more:
        raise SettingsError("--steps-more: lengthens one run", cure="name the run's own folder")


def begin_or_go_on(call: TrainingCall, run_dir: Path, cases: Cases) -> None:
    """Begin one of several trainings, go on with it, or see that it is done.

    Raises:
        UserError: As `train_run`; a training that is done was made with other settings or cases.
    """
    begun = (run_dir / run_folder.CONFIG).exists()
    if not begun or not (run_dir / "summary.json").exists():
        train_run(replace(call, resume=begun), run_dir, cases)
        return
    same = with_steps_of(call, run_dir)
    run_folder.go_on(run_dir, same.config, cases, call.device)  # refuses other settings
    _log.info("%s: is done", run_dir)


def with_steps_of(call: TrainingCall, run_dir: Path) -> TrainingCall:
    """The same call; for a duration, with as many steps as a run took."""
    if call.hours is None:
        return call
    values = Config.load(run_dir / run_folder.CONFIG).by_name()
    taken = {name: values[name] for name in ("training.epochs", *epochs.COUNTED)}
    return replace(call, config=call.config.replaced(taken))
