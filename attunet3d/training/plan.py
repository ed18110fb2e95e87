"""From a training set's fingerprint and the memory at hand to a configuration without gaps.

Every number that the configuration gives is kept. The rules for the others (the ideas of the
first two are those of Isensee et al., Nature Methods 2021, nnU-Net):

    spacing   median of the training set; finer axes are coarsened until a patch that the memory
              affords sees a quarter of the median body
    window    0.5th to 99.5th percentile of the foreground's HU; mean and deviation within it
    strides   an axis is pooled while its voxels are less than twice the finest ones and enough
              of them are left, so thick slices are pooled later
    patch     the median body's proportions in multiples of what pooling divides by, as large as
              two patches fit the memory
    batch     two; more where the patch is the whole body already, up to 5 % of the training set
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any

from attunet3d.core import (
    Config,
    NetworkConfig,
    PreprocessingConfig,
    SettingsError,
    Size,
    Triple,
    whole_file,
)
from attunet3d.datasets import Fingerprint
from attunet3d.models import bytes_a_voxel, weight_bytes

USABLE = 0.8  # of the memory at hand; the rest is for workspaces and fragmentation
SEEN = 0.25  # least share of the median body that a patch sees
SMALLEST_BATCH, LARGEST_BATCH = 2, 8
BATCH_SHARE = 0.05  # most of the training set's voxels in one batch
MOST_VOXELS = 4_000_000  # of a patch: beyond, a step costs more than the context brings
LEAST_VOXELS = 4  # along an axis, at the coarsest level
COARSEST_MM = 8.0
_STEP = 1.05  # by which spacings grow


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration with every gap filled, and why."""

    config: Config
    fingerprint: Fingerprint
    reasons: dict[str, str]
    """Why each number is what it is, by setting."""
    needed_bytes: int
    """Estimated memory of a training step."""

    def table(self) -> str:
        """The planned numbers with their reasons, one a line.

        The widths fit the content.
        """
        values = self.config.to_dict()
        rows = []
        for setting, reason in self.reasons.items():
            section, name = setting.split(".")
            rows.append((setting, _text(values[section][name]), reason))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        sizes = f"{len(self.fingerprint.cases)} cases, median body"
        body = "×".join(f"{size:.0f}" for size in self.fingerprint.body_mm)
        need = f"a training step takes about {self.needed_bytes / 1e9:.1f} GB"
        return "\n".join([f"plan for {sizes} {body} mm; {need}", *lines])

    def save(self, path: Path, split: Mapping[str, Sequence[str]]) -> None:
        """Write the plan, its reasons, the fingerprint and who trains and validates, as JSON.

        Args:
            path: The file.
            split: Case ids of "training" and "validation".

        Raises:
            WriteError: The file cannot be written.
        """
        values = self.config.to_dict()
        planned: dict[str, Any] = {}
        for setting, reason in self.reasons.items():
            section, name = setting.split(".")
            planned[setting] = {"value": values[section][name], "reason": reason}
        content = {
            "planned": planned,
            "needed_bytes": self.needed_bytes,
            "split": {part: list(ids) for part, ids in split.items()},
            "fingerprint": self.fingerprint.to_dict(),
        }
        whole_file.write_text(Path(path), json.dumps(content, indent=1) + "\n")


def make_plan(fingerprint: Fingerprint, config: Config, memory_bytes: int) -> Plan:
    """Fill the gaps of a configuration.

    Args:
        fingerprint: Of all cases with labels, so that the folds of one data set get one plan.
        config: What it gives is kept.
        memory_bytes: Free on the GPU; on a CPU the share of the RAM that training may take.

    Raises:
        SettingsError: The memory is too small for the smallest patch.
    """
    reasons: dict[str, str] = {}
    room = _Room(config.network, len(fingerprint.values) + 1, memory_bytes * USABLE)
    spacing = config.preprocessing.spacing_mm or _spacing(fingerprint, config, room)
    median = fingerprint.spacing_mm
    near = all(abs(a - b) < 1e-6 for a, b in zip(spacing, median, strict=True))
    coarser = f"coarser than the median {_text(median)}, so that a patch sees enough of the body"
    reasons["preprocessing.spacing_mm"] = "median of the training set" if near else coarser
    grid = _on_grid(fingerprint.body_mm, spacing)
    strides = config.network.strides or _strides(config.network, spacing, grid)
    reasons["network.strides"] = "thick slices and short axes are pooled later"
    network = replace(config.network, strides=strides)
    preprocessing = _preprocessing(fingerprint, config.preprocessing, spacing)
    reasons["preprocessing.hu_window"] = "0.5th to 99.5th percentile of the labelled voxels"
    if preprocessing.normalisation == "dataset":
        reasons["preprocessing.mean_hu"] = "of the labelled voxels within the window"
        reasons["preprocessing.std_hu"] = "of the labelled voxels within the window"
    training = config.training
    patch = training.patch_size or _patch(grid, strides, room, training.batch_size)
    share = prod(min(1.0, size / whole) for size, whole in zip(patch, grid, strict=True))
    reasons["training.patch_size"] = f"{share:.0%} of the median body, in its proportions"
    batch = training.batch_size or _batch(fingerprint, patch, grid, spacing, room.voxels(strides))
    reasons["training.batch_size"] = "for the memory at hand"
    reasons["inference.window"] = "the training patch"
    _mark_given(reasons, config)
    planned = replace(
        config,
        network=network,
        preprocessing=preprocessing,
        training=replace(training, patch_size=patch, batch_size=batch),
        inference=replace(config.inference, window=config.inference.window or patch),
    )
    needed = int(batch * prod(patch) * room.bytes_a_voxel(strides) + weight_bytes(network))
    return Plan(config=planned, fingerprint=fingerprint, reasons=reasons, needed_bytes=needed)


@dataclass(frozen=True)
class _Room:
    """The memory there is, in voxels."""

    network: NetworkConfig
    out_channels: int
    memory_bytes: float

    def bytes_a_voxel(self, strides: tuple[Size, ...]) -> float:
        return bytes_a_voxel(self.network, strides, self.out_channels)

    def voxels(self, strides: tuple[Size, ...]) -> float:
        """Voxels of all patches of a batch together."""
        left = self.memory_bytes - weight_bytes(self.network)
        return max(0.0, left / self.bytes_a_voxel(strides))

    def patch_voxels(self, strides: tuple[Size, ...], batch: int | None) -> float:
        return min(MOST_VOXELS, self.voxels(strides) / (batch or SMALLEST_BATCH))


def _preprocessing(
    fingerprint: Fingerprint, config: PreprocessingConfig, spacing: Triple
) -> PreprocessingConfig:
    window = config.hu_window or fingerprint.hu_window()
    config = replace(config, spacing_mm=spacing, hu_window=window)
    if config.normalisation == "volume":  # by each scan's own mean and deviation
        return config
    mean, deviation = fingerprint.mean_and_deviation(window)
    return replace(
        config,
        mean_hu=round(mean, 2) if config.mean_hu is None else config.mean_hu,
        std_hu=round(deviation, 2) if config.std_hu is None else config.std_hu,
    )


def _spacing(fingerprint: Fingerprint, config: Config, room: _Room) -> Triple:
    """The first of ever coarser spacings at which a patch sees enough of the body."""
    body, training = fingerprint.body_mm, config.training
    for spacing in _coarser(fingerprint.spacing_mm):
        grid = _on_grid(body, spacing)
        strides = config.network.strides or _strides(config.network, spacing, grid)
        afforded = room.patch_voxels(strides, training.batch_size)
        if training.patch_size is not None:
            sizes = zip(training.patch_size, grid, strict=True)
            afforded = prod(min(size, whole) for size, whole in sizes)
        if afforded >= SEEN * prod(grid):
            return spacing
    raise SettingsError(
        f"memory of {room.memory_bytes / 1e9:.2f} GB: is too small to see a quarter of the body at"
        f" {COARSEST_MM:g} mm; set fewer network.channels or training.batch_size=1"
    )


def _coarser(spacing: Triple) -> Iterator[Triple]:
    """Spacings from the median on, the finest axes growing first until all are alike."""
    sizes = list(spacing)
    while min(sizes) <= COARSEST_MM:
        a, b, c = (round(size, 3) if list(spacing) != sizes else size for size in sizes)
        yield a, b, c
        limit = min(sizes) * _STEP
        sizes = [max(size, limit) for size in sizes]


def _on_grid(body_mm: Triple, spacing: Triple) -> Size:
    a, b, c = (max(1, round(size / step)) for size, step in zip(body_mm, spacing, strict=True))
    return a, b, c


def _strides(network: NetworkConfig, spacing: Triple, grid: Size) -> tuple[Size, ...]:
    """Pooling factors: 2 along axes that are not yet twice as coarse as the finest."""
    steps, sizes, strides = list(spacing), list(grid), []
    for _ in network.channels[1:]:
        finest = min(steps)
        a, b, c = (
            2 if steps[axis] < 2 * finest and sizes[axis] >= 2 * LEAST_VOXELS else 1
            for axis in range(3)
        )
        strides.append((a, b, c))
        steps = [step * factor for step, factor in zip(steps, (a, b, c), strict=True)]
        sizes = [ceil(size / factor) for size, factor in zip(sizes, (a, b, c), strict=True)]
    return tuple(strides)


def _patch(grid: Size, strides: tuple[Size, ...], room: _Room, batch: int | None) -> Size:
    """The body's grid, shrunk along the axis of which most is seen until it fits."""
    divisor = [prod(stride[axis] for stride in strides) for axis in range(3)]
    size = [ceil(whole / part) * part for whole, part in zip(grid, divisor, strict=True)]
    afforded = room.patch_voxels(strides, batch)
    while prod(size) > afforded:
        axes = [axis for axis in range(3) if size[axis] > divisor[axis]]
        if not axes:
            raise SettingsError(
                f"memory of {room.memory_bytes / 1e9:.2f} GB: is too small for a patch of"
                f" {_text(tuple(size))}; set fewer network.channels or training.batch_size=1"
            )
        most = max(axes, key=lambda axis: size[axis] / grid[axis])
        size[most] -= divisor[most]
    a, b, c = size
    return a, b, c


def _batch(
    fingerprint: Fingerprint, patch: Size, grid: Size, spacing: Triple, afforded: float
) -> int:
    """Two, or more where a patch is the whole body."""
    fits = int(afforded // prod(patch))
    if any(size < whole for size, whole in zip(patch, grid, strict=True)):
        return max(1, min(SMALLEST_BATCH, fits))
    voxels = sum(prod(case.body_mm) for case in fingerprint.cases) / prod(spacing)
    most = max(SMALLEST_BATCH, int(BATCH_SHARE * voxels // prod(patch)))
    return max(1, min(fits, most, LARGEST_BATCH))


def _mark_given(reasons: dict[str, str], config: Config) -> None:
    values = config.to_dict()
    for setting in reasons:
        section, name = setting.split(".")
        if values[section][name] is not None:
            reasons[setting] = "given"


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], tuple | list):
            return " ".join(_text(part) for part in value)
        return "×".join(_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
