"""Labels that a case lacks, taught by the model that training starts from.

An organ is added to a model by cases in which only that organ was annotated. Of the others the
network would hear nothing more, and forget them. So the model's own answers (pseudo-labels) take
their place: once, before the first step, on the cases as they are prepared. Where somebody has
annotated an organ, that counts.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from attunet3d.core import Config, LabelMap, SettingsError, progress, whole_file
from attunet3d.datasets import Manifest
from attunet3d.inference import activation, independent
from attunet3d.models import Checkpoint, checkpoint
from attunet3d.training.cached_case import (
    CachedCase,
    foreground_voxels,
    load_case,
    new_folder,
    publish_case,
    store_case,
)
from attunet3d.training.distributed import by_first
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.trainer import TrainingData
from attunet3d.training.validation import predict_classes

_log = logging.getLogger(__name__)


def with_labels_of(model: Path, manifest: Manifest) -> Manifest:
    """A manifest with the labels of a model besides its own, which alone were annotated.

    Args:
        model: A run folder or a checkpoint.
        manifest: Of the new cases. Its labels keep their values; the model's keep theirs where
            they are free.

    Raises:
        ModelError: It is not a model.
        SettingsError: The labels of either are regions.
    """
    other = checkpoint.load_model(model)
    if manifest.regions or other.config.training.regions:
        rule = "--keep-labels: labels that overlap (regions) cannot be taught"
        raise SettingsError(rule, cure="leave it out")
    return _extended(manifest, other.labels)


def _extended(manifest: Manifest, kept: Mapping[int, str]) -> Manifest:
    own = tuple(name for value, name in manifest.labels.items() if value)
    labels, taken = dict(manifest.labels), {*manifest.labels, manifest.ignore}
    new = sorted((value in taken, value) for value in kept if kept[value] not in labels.values())
    for moves, value in new:  # those that keep their values first, else they might be taken
        place = min({*range(1, 256)} - {*labels, manifest.ignore}) if moves else value
        labels[place] = kept[value]
    _log.info("labels: %s", ", ".join(f"{value} {labels[value]}" for value in sorted(labels)))
    marked = manifest.changed(lambda case: replace(case, annotated=case.annotated or own))
    return replace(marked, labels=dict(sorted(labels.items())))


@by_first
def teach(
    data: TrainingData, config: Config, model: Path, device: torch.device, folder: Path
) -> TrainingData:
    """The same data; in training cases, labels that were not annotated are the model's answers.

    Args:
        data: Prepared cases; those to validate on stay as they are.
        config: Resolved.
        model: A run folder or a checkpoint; what it does not know stays unannotated.
        device: Where the model works.
        folder: Where the cases with more labels are stored; those that are there are taken.

    Raises:
        SettingsError: The model's preprocessing is not that of the cases.
    """
    other, classes = checkpoint.load_model(model), LabelClasses.of(data.labels, config)
    if other.config.preprocessing != config.preprocessing:
        rule = "--keep-labels: preprocessing differs from that of the model, which could not answer"
        raise SettingsError(rule, value=str(model), cure="set nothing of preprocessing")
    names = list(classes.names.values())
    theirs = [other.labels[value] for value in sorted(other.labels)]
    # For each class of the model the class here; 0 where there is none.
    known = np.array([names.index(name) if name in names else 0 for name in theirs], np.uint8)
    other.network.to(device)
    taught = []
    with progress(len(data.training), "teaching") as bar:
        for case in data.training:
            taught.append(_taught(case, other, config, known, device, folder, len(names)))
            bar.update()
    return replace(data, training=taught)


def _taught(
    case: CachedCase,
    model: Checkpoint,
    config: Config,
    known: LabelMap,
    device: torch.device,
    folder: Path,
    count: int,
) -> CachedCase:
    """One case with the model's answers for the classes that it lacks and the model knows."""
    lacking = {*known.tolist()} - {0, *(case.annotated or range(count))}
    if not lacking or case.annotated is None:
        return case
    annotated = tuple(sorted(lacking | {*case.annotated}))
    target = folder / f"{case.folder.name}-{model.checksum[:12]}"
    if (found := load_case(case.id, target)) is None:
        assert config.window is not None  # else there were no patches
        classes = LabelClasses.of(model.labels, model.config)
        sigmoid = activation(model.config) == "sigmoid"
        forward = independent(model.network) if sigmoid else model.network
        with torch.no_grad():
            answer = predict_classes(case, forward, config.window, device, classes)
        label = _merged(case, known[answer], lacking, config.training.ignore_index)
        points, starts = foreground_voxels(label, count, config.training.ignore_index)
        arrays = np.array(case.image()), label, points
        cure = "make room on the disk, and start again"
        with new_folder(case.id, whole_file.make_folder(folder), cure) as working:
            store_case(working, case.id, arrays, case.air, starts)
            found = publish_case(case.id, working, target)
    if len(annotated) == count - 1:
        return found
    return replace(found, annotated=annotated, sampled=annotated)


def _merged(case: CachedCase, answer: LabelMap, lacking: set[int], ignored: int | None) -> LabelMap:
    """A case's label, and the answer for the classes that it lacks where it has none."""
    assert case.annotated is not None
    own = np.array(case.label())
    counts = np.isin(own, [*case.annotated, *([] if ignored is None else [ignored])])
    taught = np.where(np.isin(answer, list(lacking)), answer, np.uint8(0))
    label: LabelMap = np.where(counts, own, taught)
    return label
