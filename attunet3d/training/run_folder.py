"""A run's folder: what must be there before training, and what a finished run leaves.

config.json         all settings, resolved; a valid CONFIG for another run
plan.json           the numbers that the plan chose, and why
model.safetensors   the best weights with their settings and labels
last.pt             the state from which --resume goes on (previous.pt: the one before)
metrics.csv         a row a validation; TensorBoard events beside it
curves.png          loss, learning rate and Dice against the step
validation/*.png    the best weights' answers on validation cases
summary.json        how the run ended
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attunet3d.core import (
    Config,
    TrainingError,
    available_bytes,
    machine,
    read_json,
    whole_file,
)
from attunet3d.datasets import Case, measure_fingerprint
from attunet3d.evaluation import charts, figures
from attunet3d.imaging import Grid, Volume
from attunet3d.models import checkpoint
from attunet3d.training import cache, plan
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.run_log import read_rows
from attunet3d.training.trainer import Result, Trainer, TrainingData
from attunet3d.training.validation import predict_classes

_log = logging.getLogger(__name__)
CPU_SHARE = 0.5  # of the free RAM that a training step may take; the rest is for the data
MOST_OVERLAYS = 4
OF_THE_MACHINE = ("workers", "save_every")  # training settings that change no result


Cases = tuple[Sequence[Case], Sequence[Case]]  # to train on, to validate on


def open_run(run_dir: Path, config: Config, cases: Cases, *, resume: bool) -> tuple[Config, bool]:
    """Make the run's folder, or enter it to go on.

    Returns:
        The configuration, and whether it is that of the run to go on with (resolved already).

    Raises:
        TrainingError: The folder holds a run and `resume` is not asked for, or it is a run with
            other settings or on other cases.
    """
    begun = (run_dir / "config.json").is_file()
    if begun and not resume:
        raise TrainingError(
            f"{run_dir}: holds a run; add --resume to go on with it, or name another"
        )
    whole_file.make_folder(run_dir)
    if not begun:
        return config, False
    saved = Config.load(run_dir / "config.json")
    _same_settings(run_dir, config.to_dict(), saved.to_dict())
    _same_cases(run_dir, cases)
    now = [f"training.{name}={getattr(config.training, name)}" for name in OF_THE_MACHINE]
    return saved.with_overrides(now), True


def _same_settings(run_dir: Path, wanted: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a setting that is asked for and not the run's; None leaves it to the run's plan."""
    for section, values in wanted.items():
        for name, value in values.items():
            same = value is None or value == saved[section][name]
            if not same and (section != "training" or name not in OF_THE_MACHINE):
                raise TrainingError(
                    f"{run_dir}: {section}.{name} is {saved[section][name]} in this run, not"
                    f" {value}; resume with {run_dir / 'config.json'} as CONFIG, or begin another"
                    " run"
                )


def _same_cases(run_dir: Path, cases: Cases) -> None:
    """Refuse to go on with other cases: those validated on would have been trained on."""
    plan_file = read_json(run_dir / "plan.json")
    if not isinstance(plan_file, dict) or plan_file.get("split") != _split(cases):
        raise TrainingError(
            f"{run_dir}: was begun with other training or validation cases; resume with the same"
            " manifest and --fold, or begin another run"
        )


def _split(cases: Cases) -> dict[str, list[str]]:
    training, validation = ([case.id for case in part] for part in cases)
    return {"training": training, "validation": validation}


def plan_run(cases: Cases, config: Config, run_dir: Path, device: torch.device) -> Config:
    """Fill the configuration's gaps from all labelled cases; print and save the plan.

    The validation cases count, too, as in nnU-Net: the folds of a data set then share one plan,
    and their models make an ensemble.
    """
    memory = available_bytes(device)
    share = CPU_SHARE if device.type == "cpu" else 1.0
    everyone = sorted((*cases[0], *cases[1]), key=lambda case: case.id)
    facts = measure_fingerprint(everyone, ignored=config.training.ignore_index)
    planned = plan.make_plan(facts, config, int(memory * share))
    print(planned.table())
    planned.save(run_dir / "plan.json", _split(cases))
    planned.config.save(run_dir / "config.json")
    return planned.config


def prepare_data(
    cases: Cases,
    labels: dict[int, str],
    config: Config,
    folder: Path,
) -> TrainingData:
    """Bring (training, validation) cases onto the network's grid, once, on disk."""
    training, validation = (cache.build_cache(part, labels, config, folder) for part in cases)
    return TrainingData(training=training, validation=validation, labels=labels)


def finish(trainer: Trainer, result: Result) -> None:
    """Write curves, overlays and the summary, and say how it went."""
    run_dir = trainer.run_dir
    figures.save(charts.curves_figure(read_rows(run_dir / "metrics.csv")), run_dir / "curves.png")
    _overlays(trainer)
    whole_file.write_text(run_dir / "summary.json", json.dumps(_summary(trainer, result), indent=2))
    if result.best_dice is None:
        _log.warning("%s: no validation case; the last weights are kept", run_dir)
        print(f"{run_dir}: {result.step} steps in {result.seconds:.0f} s")
        return
    print(
        f"{run_dir}: {result.step} steps in {result.seconds:.0f} s; best dice_network_grid"
        f" {result.best_dice:.3f} at step {result.best_step}"
    )


def _summary(trainer: Trainer, result: Result) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in trainer.update.network.parameters())
    return {
        "steps": result.step,
        "best_dice_network_grid": result.best_dice,
        "best_step": result.best_step,
        "skipped_steps": result.skipped_steps,
        "seconds_of_last_call": result.seconds,
        "parameters": parameters,
        "device": str(trainer.device),
        "precision": str(trainer.update.dtype).removeprefix("torch."),
        "training_cases": [case.id for case in trainer.data.training],
        "validation_cases": [case.id for case in trainer.data.validation],
        "versions": machine.versions(),
    }


def _overlays(trainer: Trainer) -> None:
    """Outlines of the best weights' answer on validation cases, on the network's grid."""
    if not trainer.data.validation:
        return
    network = checkpoint.load_model(trainer.run_dir).network.to(trainer.device)
    window = trainer.config.window
    assert window is not None
    folder = whole_file.make_folder(trainer.run_dir / "validation")
    for case in trainer.data.validation[:MOST_OVERLAYS]:
        classes = predict_classes(
            case, lambda patch: trainer.update.forward(network, patch), window, trainer.device
        )
        scan, reference, prediction = (
            _volume(array, case, trainer) for array in (case.image(), case.label(), classes)
        )
        low, high = np.percentile(np.asarray(case.image(), np.float32), (5, 99.5))
        sizes = {index: case.starts[index + 1] - case.starts[index] for index in case.classes}
        value = max(sizes, key=lambda index: sizes[index], default=1)  # 1: nothing is labelled
        figure = figures.overlay_figure(
            scan, reference, prediction, value, title=case.id, window=(float(low), float(high))
        )
        figures.save(figure, folder / f"{case.folder.name}.png")


def _volume(array: Any, case: CachedCase, trainer: Trainer) -> Volume:
    spacing = trainer.config.preprocessing.spacing_mm
    assert spacing is not None
    return Volume(np.asarray(array), Grid(case.shape, np.diag([*spacing, 1.0])), name=case.id)
