"""From a training set's fingerprint and a stated amount of memory to a configuration without gaps.

Every number that the configuration gives is kept. The rules for the others:

    spacing   median of the training set; finer axes are coarsened until a patch that fits the
              memory sees a quarter of the median body
    window    0.5th to 99.5th percentile of the foreground's HU; mean and deviation within it
    strides   an axis is pooled while its voxels are less than twice the finest ones and enough
              of them are left, so thick slices are pooled later
    patch     the median body's proportions in multiples of what pooling divides by, as large as
              two patches fit the memory
    batch     two; more where the patch is the whole body already, up to 5 % of the training set

The memory that happens to be free has no part in this: the same data set, configuration and stated
memory give the same plan on every machine, for every fold.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from attunet3d.core import Config, PreprocessingConfig, Triple, as_table, check_patch
from attunet3d.datasets import Fingerprint
from attunet3d.models import training_bytes
from attunet3d.training import plan_geometry
from attunet3d.training.plan_geometry import MemoryBudget

OF_FORM = "the form's own"
PLANNED = (  # the settings that a plan may decide
    "preprocessing.spacing_mm",
    "network.strides",
    "preprocessing.hu_window",
    "preprocessing.mean_hu",
    "preprocessing.std_hu",
    "training.patch_size",
    "training.batch_size",
    "inference.window",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration with every gap filled, and the reasons."""

    config: Config
    fingerprint: Fingerprint
    memory_bytes: int
    """The stated memory."""
    reasons: dict[str, str]
    """Why each planned setting is what it is, by dotted name."""
    needed_bytes: int
    """Estimated memory of training, of each process."""
    processes: int = 1
    """That train together, each with the stated memory."""

    def values(self) -> dict[str, Any]:
        """The planned settings by dotted name."""
        return {name: setting(self.config, name) for name in self.reasons}

    def table(self) -> str:
        """The planned settings with their reasons, one per line."""
        rows = [
            (name, in_words(value), self.reasons[name]) for name, value in self.values().items()
        ]
        body = "×".join(f"{size:.0f}" for size in self.fingerprint.body_mm)
        head = (
            f"plan for {len(self.fingerprint.cases)} cases, median body {body} mm, and"
            f" {self.memory_bytes / 1e9:g} GB of memory; training takes about"
            f" {max(0.1, self.needed_bytes / 1e9):.1f} GB"
        )
        if self.processes > 1:
            head += f" in each of {self.processes} processes"
        return f"{head}\n{as_table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "memory_bytes": self.memory_bytes,
            "needed_bytes": self.needed_bytes,
            "processes": self.processes,
            "planned": {
                name: {"value": value, "reason": self.reasons[name]}
                for name, value in self.values().items()
            },
            "fingerprint": self.fingerprint.to_dict(),
        }


def make_plan(
    fingerprint: Fingerprint, config: Config, memory_bytes: int, processes: int = 1
) -> Plan:
    """Fill the gaps of a configuration.

    Args:
        fingerprint: Of all training cases, not of a fold.
        config: What it gives is kept.
        memory_bytes: The stated memory of the GPU or machine.
        processes: That train together; each has this memory, and its share of the batch.

    Raises:
        SettingsError: The memory is too small for the smallest patch.
    """
    classes = len(fingerprint.values) + 1
    budget = MemoryBudget(config.network, classes, memory_bytes)
    spacing = config.preprocessing.spacing_mm or plan_geometry.choose_spacing(
        fingerprint, config, budget
    )
    grid = plan_geometry.on_grid(fingerprint.body_mm, spacing)
    strides = plan_geometry.choose_strides(config.network, spacing, grid)
    training = config.training
    if training.patch_size is not None:
        check_patch(training.patch_size, strides)
    share = training.batch_size and ceil(training.batch_size / processes)
    patch = training.patch_size or plan_geometry.choose_patch(grid, strides, budget, share)
    share = share or plan_geometry.choose_batch(
        fingerprint, patch, grid, spacing, budget.batch_voxels(strides)
    )
    batch = training.batch_size or share * processes
    planned = replace(
        config,
        network=replace(config.network, strides=strides),
        preprocessing=_preprocessing(fingerprint, config.preprocessing, spacing),
        training=replace(training, patch_size=patch, batch_size=batch),
        inference=replace(config.inference, window=config.inference.window or patch),
    )
    seen = prod(min(1.0, size / whole) for size, whole in zip(patch, grid, strict=True))
    return Plan(
        config=planned,
        fingerprint=fingerprint,
        memory_bytes=memory_bytes,
        reasons=dict(_reasons(config, fingerprint, spacing, seen, budget)),
        needed_bytes=training_bytes(planned.network, share, patch, classes),
        processes=processes,
    )


def _reasons(
    config: Config, fingerprint: Fingerprint, spacing: Triple, seen: float, budget: MemoryBudget
) -> Iterator[tuple[str, str]]:
    """Each planned setting with its reason: "given" where the configuration has it."""
    median = fingerprint.spacing_mm
    near = all(abs(a - b) < 1e-6 for a, b in zip(spacing, median, strict=True))
    coarser = f"coarser than the median {in_words(median)}, so that a patch sees enough of the body"
    of_labelled = "of the labelled voxels within the window"
    reasons = {
        "preprocessing.spacing_mm": "median of the training set"
        if near
        else f"{coarser} within {budget}",
        "network.strides": "thick slices and short axes are pooled later"
        if config.network.form == "attention_unet"
        else OF_FORM,
        "preprocessing.hu_window": "0.5th to 99.5th percentile of the labelled voxels",
        "preprocessing.mean_hu": of_labelled,
        "preprocessing.std_hu": of_labelled,
        "training.patch_size": f"{seen:.0%} of the median body, within {budget}",
        "training.batch_size": f"within {budget}",
        "inference.window": "the training patch",
    }
    by_scan = config.preprocessing.normalisation == "volume"  # each scan's own mean and deviation
    for name in PLANNED:
        if by_scan and reasons[name] == of_labelled:
            continue
        given = setting(config, name) is not None and reasons[name] != OF_FORM
        yield name, "given" if given else reasons[name]


def _preprocessing(
    fingerprint: Fingerprint, config: PreprocessingConfig, spacing: Triple
) -> PreprocessingConfig:
    window = config.hu_window or fingerprint.hu_window()
    config = replace(config, spacing_mm=spacing, hu_window=window)
    if config.normalisation == "volume":
        return config
    mean, deviation = fingerprint.mean_and_deviation(window)
    return replace(
        config,
        mean_hu=round(mean, 2) if config.mean_hu is None else config.mean_hu,
        std_hu=round(deviation, 2) if config.std_hu is None else config.std_hu,
    )


def setting(config: Config, name: str) -> Any:
    """The value of a setting by its dotted name.

    Example:
        >>> setting(Config(), "training.batch_size") is None
        True
    """
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def in_words(value: object) -> str:
    """A setting's value as a table shows it.

    Example:
        >>> in_words((1.5, 1.5, 3.0)), in_words((-100.0, 200.0)), in_words(((2, 2, 1), (2, 2, 2)))
        ('1.5×1.5×3', '-100 to 200', '2×2×1 2×2×2')
    """
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], tuple | list):
            return " ".join(map(in_words, value))
        return (" to " if len(value) == 2 else "×").join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
