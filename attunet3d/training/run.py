"""One training from its folder to its summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attunet3d.core import Config
from attunet3d.datasets import Manifest
from attunet3d.training import plan_file, run_folder, run_report
from attunet3d.training.run_folder import Cases
from attunet3d.training.trainer import Trainer


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
    hours: float | None = None
    """Train for as many steps as this takes."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], device: torch.device) -> "TrainingCall":
        """The call that the flags of a command describe, on this process's device.

        Raises:
            UserError: A file cannot be read, or does not describe a training.
        """
        manifest = Manifest.load(flags["manifest"], flags["root"]).require_files()
        names = ("memory", "cache", "steps_more", "init", "hours")
        return cls(
            manifest=manifest,
            config=plan_file.read_config(flags["config"], flags["set"], manifest, flags["init"]),
            plan=flags["plan"] or plan_file.default_path(flags["manifest"], flags["config"]),
            device=device,
            resume=flags["resume"] or flags["steps_more"] > 0,
            **{name: flags[name] for name in names},
        )


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
        trainer = Trainer(data, config, run_dir, call.device)
        trainer.start(resume=resume, init=call.init)
        run_report.finish(trainer, trainer.fit(call.hours))
