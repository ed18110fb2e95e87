"""The plan of a data set beside its manifest: made once, shared by all folds.

`MANIFEST.CONFIG.plan.json` holds what was planned and why, the stated memory, and the fingerprint
of the training cases, so that the scans are read once and not once per fold.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from attunet3d.core import (
    GIGABYTE,
    Config,
    DataError,
    TrainingError,
    WriteError,
    find_config,
    label_values,
    memory_class,
    parse_memory,
    total_bytes,
    whole_file,
)
from attunet3d.datasets import Case, Fingerprint, Manifest, labels_with_side, measure_fingerprint
from attunet3d.models import checkpoint
from attunet3d.training import distributed, epochs
from attunet3d.training.plan import Plan, make_plan

FILE_BYTES = 100_000_000  # largest plan; a case takes about 300
_log = logging.getLogger(__name__)


class _PlannedSetting(msgspec.Struct):
    value: object
    reason: str


class _PlanFile(msgspec.Struct):
    memory_bytes: int
    planned: dict[str, _PlannedSetting]
    fingerprint: Fingerprint
    processes: int = 1


def default_path(manifest: Path, config: str) -> Path:
    """Where the plan of a manifest for a preset, or a file of settings, is kept.

    Example:
        >>> default_path(Path("data/msd.json"), "pancreas_ct").as_posix()
        'data/msd.pancreas_ct.plan.json'
    """
    return manifest.with_name(f"{manifest.stem}.{Path(config).stem}.plan.json")


def read_config(
    name: str, settings: Sequence[str], manifest: Manifest, init: Path | None = None
) -> Config:
    """The configuration that a call asks for.

    Args:
        name: A preset or a file.
        settings: `section.name=value` each.
        manifest: Tells which labels there are, which are ignored, and which name a side.
        init: The model that training starts from, if there is one: then network and preprocessing
            are the model's, and there is a short warm-up, unless `settings` say otherwise.
    """
    config = find_config(name)
    if init is not None:
        training, other = config.training, checkpoint.load_model(init).config
        config = replace(config, network=other.network, preprocessing=other.preprocessing)
        if training.schedule != "one_cycle":  # which warms up by itself
            warmup = max(1, training.epochs or training.steps // 100)
            config = config.replaced({"training.warmup_steps": warmup})
    config = config.with_overrides([*manifest.training_settings(), *settings])
    epochs.refuse_steps(config, settings)
    label_values(config.inference.keep_largest, manifest.labels)
    label_values(config.inference.smallest_ml, manifest.labels, "inference.smallest_ml")
    return without_wrong_flips(config, manifest.labels)


def without_wrong_flips(config: Config, labels: dict[int, str]) -> Config:
    """The configuration without left-right flips where labels name a side.

    A mirrored left kidney is a right one, which its label denies.
    """
    sided, axes = labels_with_side(labels), config.augmentation.flip_axes
    if not sided or 0 not in axes:
        return config
    _log.info(
        "augmentation.flip_axes: left-right flips are off, as label %r names a side",
        labels[sided[0]],
    )
    return config.replaced({"augmentation.flip_axes": tuple(axis for axis in axes if axis)})


@distributed.by_first
def shared_plan(
    manifest: Manifest,
    config: Config,
    path: Path,
    device: torch.device,
    memory: str | None = None,
) -> Plan:
    """The plan of all training cases: that in `path`, or a new one, which is saved there.

    Args:
        manifest: The data set.
        config: What it gives is kept.
        path: Where the plan is kept.
        device: Its total memory, rounded down to a common size, is the default of a new plan.
        memory: What to plan for, such as "24GB"; None: that of the plan in
            `path`, or of the device.

    Raises:
        TrainingError: `path` holds a plan for other cases, or one that differs in a setting.
        SettingsError: The memory is too small for the smallest patch.
    """
    cases = sorted((*manifest.training, *manifest.validation), key=lambda case: case.id)
    stated = parse_memory(memory)
    if path.is_file():
        return _kept_plan(path, cases, config, stated)
    fingerprint = measure_fingerprint(cases, manifest.labels, ignored=config.training.ignore_index)
    found = total_bytes(device) // distributed.on_one_device(device)
    stated = stated or memory_class(found) * GIGABYTE
    plan = make_plan(fingerprint, config, stated, distributed.world_size())
    try:
        save_plan(plan, path)
    except WriteError as error:
        _log.warning("%s; the plan is kept in the run's folder only", error)
    return plan


def save_plan(plan: Plan, path: Path, **more: object) -> None:
    """Write a plan, and what else is to be kept with it, as JSON (which is YAML as well).

    Raises:
        WriteError: The file cannot be written.
    """
    whole_file.write_text(path, json.dumps(more | plan.to_dict(), indent=1) + "\n")


def _kept_plan(path: Path, cases: Sequence[Case], config: Config, stated: int | None) -> Plan:
    kept = _read(path)
    ids = {case.case_id for case in kept.fingerprint.cases}
    others = sorted(ids ^ {case.id for case in cases})
    if others:
        raise TrainingError(
            f"was made for other cases ({len(others)} differ, such as {others[0]})",
            path=path,
            cure="delete it to plan for the cases of this manifest, or name another by --plan",
        )
    plan = make_plan(kept.fingerprint, config, stated or kept.memory_bytes, kept.processes)
    found = json.loads(json.dumps(plan.values()))  # lists, as in the file
    differing = [
        f"{name} ({entry.value} there, {found.get(name)} here)"
        for name, entry in kept.planned.items()
        if entry.value != found.get(name)
    ]
    if differing:
        raise TrainingError(
            f"the plan that all folds of this data set share differs in {', '.join(differing)}",
            path=path,
            cure="train with the same settings and --memory as the other folds, or keep this"
            " run's plan in another file by --plan",
        )
    return plan


def _read(path: Path) -> _PlanFile:
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(path.read_bytes(), type=_PlanFile)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(
            f"cannot be read as a plan ({error})", path=path, cure="delete it, or name another"
        ) from None
