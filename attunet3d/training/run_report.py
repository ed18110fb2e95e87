"""What a finished run leaves: calibrated weights, curves, pictures, a summary."""

import json
import logging
import math
from typing import Any

import numpy as np

from attunet3d.core import versions, whole_file
from attunet3d.evaluation import charts, figures
from attunet3d.imaging import Grid, Volume
from attunet3d.inference import activation
from attunet3d.models import checkpoint
from attunet3d.training import calibration, distributed
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.run_log import read_rows
from attunet3d.training.run_state import Result
from attunet3d.training.trainer import Trainer
from attunet3d.training.validation import predict_classes

MOST_OVERLAYS = 4
_log = logging.getLogger(__name__)


@distributed.by_first
def finish(trainer: Trainer, result: Result) -> None:
    """Write curves, overlays and the summary, and log how the run went."""
    run_dir = trainer.run_dir
    _calibrate(trainer)
    figures.save(charts.curves_figure(read_rows(run_dir / "metrics.csv")), run_dir / "curves.png")
    _overlays(trainer)
    whole_file.write_text(run_dir / "summary.json", json.dumps(_summary(trainer, result), indent=2))
    words = f"{result.step} steps in {result.seconds:.0f} s, {result.waiting:.0%} waiting for data"
    if result.best_dice is None:
        _log.warning("no validation case; the last weights are kept")
    else:
        words += f"; best dice_network_grid {result.best_dice:.3f} at step {result.best_step}"
    _log.info("%s: %s", run_dir, words)


def _calibrate(trainer: Trainer) -> None:
    """Give the kept model its temperature, and the volumes of training's labels."""
    model = checkpoint.load_model(trainer.run_dir)
    if "label_ranges" in model.notes:  # finished before
        return
    notes = {**model.notes, "label_ranges": _label_ranges(trainer)}
    network = model.network.to(trainer.device)
    window, classes = trainer.config.window, trainer.classes
    assert window is not None
    voxels = calibration.sample_voxels(
        trainer.data.validation,
        lambda patch: trainer.update.forward(network, patch),
        window,
        trainer.device,
        classes,
        activation(trainer.config),
        trainer.config.training.ignore_index,
    )
    if voxels is not None:
        temperature = round(calibration.fit_temperature(voxels), 3)
        if calibration.divide_logits_(network, temperature):
            notes["temperature"] = temperature
            calibration.save_reliability(voxels, temperature, trainer.run_dir)
    checkpoint.save_model(model.path, network.state_dict(), model.config, model.labels, notes)


def _label_ranges(trainer: Trainer) -> dict[str, dict[str, tuple[float, float]]]:
    """By label name, the least and the largest volume (ml) in training, on the network's grid.

    Of cases without voxels to ignore, where the rest of an organ may lie.
    """
    spacing = trainer.config.preprocessing.spacing_mm
    assert spacing is not None
    found: dict[str, list[float]] = {}
    for case in trainer.data.training:
        label = case.label()
        if (label == trainer.config.training.ignore_index).any():
            continue
        for index, name in enumerate(trainer.labels.values()):
            if index and (case.annotated is None or index in case.annotated):
                voxels = np.count_nonzero(trainer.classes.mask(label, index))
                found.setdefault(name, []).append(round(voxels * math.prod(spacing) / 1000, 3))
    return {name: {"ml": (min(volumes), max(volumes))} for name, volumes in found.items()}


def _summary(trainer: Trainer, result: Result) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in trainer.update.network.parameters())
    return {
        "steps": result.step,
        "best_dice_network_grid": result.best_dice,
        "best_step": result.best_step,
        "skipped_steps": result.skipped_steps,
        "seconds_of_last_call": result.seconds,
        "waiting_for_data": result.waiting,
        "parameters": parameters,
        "device": str(trainer.device),
        "precision": str(trainer.update.dtype).removeprefix("torch."),
        "training_cases": [case.id for case in trainer.data.training],
        "validation_cases": [case.id for case in trainer.data.validation],
        "versions": versions(),
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
            case,
            lambda patch: trainer.update.forward(network, patch),
            window,
            trainer.device,
            trainer.classes,
        )
        low, high = np.percentile(np.asarray(case.image(), np.float32), (5, 99.5))
        shown = _largest_class(case, trainer.classes)
        masks = (trainer.classes.mask(label, shown) for label in (case.label(), classes))
        scan, reference, prediction = (
            _volume(array, case, trainer) for array in (case.image(), *masks)
        )
        figure = figures.overlay_figure(
            scan, reference, prediction, 1, title=case.id, window=(float(low), float(high))
        )
        figures.save(figure, folder / f"{case.folder.name}.png")


def _largest_class(case: CachedCase, classes: LabelClasses) -> int:
    """The annotated class of which a case has the most voxels; the first where it has none."""
    label = case.label()
    return max(
        case.annotated or range(1, len(classes.names)),
        key=lambda index: np.count_nonzero(classes.mask(label, index)),
    )


def _volume(array: Any, case: CachedCase, trainer: Trainer) -> Volume:
    spacing = trainer.config.preprocessing.spacing_mm
    assert spacing is not None
    return Volume(np.asarray(array), Grid(case.shape, np.diag([*spacing, 1.0])), name=case.id)
