"""Grid, strides, patch and batch of a plan: what fits a stated amount of memory.

The rules are those of nnU-Net in idea (Isensee et al., Nature Methods 2021); see `plan`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from attunet3d.core import Config, NetworkConfig, SettingsError, Size, Triple
from attunet3d.datasets import Fingerprint
from attunet3d.models import bytes_per_voxel, fixed_bytes, form_strides

USABLE = 0.9  # of the stated memory; the rest is for workspaces and fragmentation
SEEN = 0.25  # least share of the median body that a patch sees
SMALLEST_BATCH, LARGEST_BATCH = 2, 8
BATCH_SHARE = 0.05  # most of the training set's voxels in one batch
LARGEST_PATCH = 4_000_000  # voxels; beyond, a step costs more than the context brings
LEAST_VOXELS = 4  # along an axis, at the coarsest level
COARSEST_MM = 8.0
_FACTOR = 1.05  # by which spacings grow

Strides = tuple[Size, ...]


@dataclass(frozen=True)
class MemoryBudget:
    """A stated amount of memory, in voxels of a network's patches.

    Args:
        network: Channels, gates and heads.
        out_channels: Classes, background included.
        total_bytes: What was stated.
    """

    network: NetworkConfig
    out_channels: int
    total_bytes: int

    def __str__(self) -> str:
        return f"{self.total_bytes / 1e9:g} GB"

    def batch_voxels(self, strides: Strides) -> float:
        """Voxels of all patches of a batch together."""
        left = self.total_bytes * USABLE - fixed_bytes(self.network)
        return max(0.0, left / bytes_per_voxel(self.network, strides, self.out_channels))

    def patch_voxels(self, strides: Strides, batch: int | None) -> float:
        """Voxels of one patch of `batch`, or of the smallest batch."""
        return min(LARGEST_PATCH, self.batch_voxels(strides) / (batch or SMALLEST_BATCH))


def choose_spacing(fingerprint: Fingerprint, config: Config, budget: MemoryBudget) -> Triple:
    """The first of ever coarser spacings in mm at which a patch sees enough of the body.

    Raises:
        SettingsError: The budget, or the given patch, is too small even at the coarsest spacing.
    """
    body, training = fingerprint.body_mm, config.training
    for spacing in _coarser(fingerprint.spacing_mm):
        grid = on_grid(body, spacing)
        strides = choose_strides(config.network, spacing, grid)
        seen = budget.patch_voxels(strides, training.batch_size)
        if training.patch_size is not None:
            seen = prod(map(min, training.patch_size, grid))
        if seen >= SEEN * prod(grid):
            return spacing
    least = f"too small to see a quarter of the body at {min(spacing):.3g} mm"
    if training.patch_size is not None:
        raise SettingsError(
            f"training.patch_size={list(training.patch_size)}: is {least}",
            value=training.patch_size,
            cure="set a larger one, or the spacing as well (preprocessing.spacing_mm)",
        )
    raise SettingsError(
        f"memory of {budget}: is {least}",
        value=budget.total_bytes,
        cure="state more (--memory), or set fewer network.channels or training.batch_size=1",
    )


def _coarser(spacing: Triple) -> Iterator[Triple]:
    """The median spacing, then coarser ones; the finest axes grow first, until all are alike."""
    yield spacing
    limit = min(spacing) * _FACTOR
    while limit <= COARSEST_MM:
        a, b, c = (round(max(size, limit), 3) for size in spacing)
        yield a, b, c
        limit *= _FACTOR


def on_grid(body_mm: Triple, spacing: Triple) -> Size:
    """Voxels along each axis of a body of `body_mm` at a spacing.

    Example:
        >>> on_grid((340.0, 240.0, 240.0), (2.0, 2.0, 5.0))
        (170, 120, 48)
    """
    a, b, c = (max(1, round(size / step)) for size, step in zip(body_mm, spacing, strict=True))
    return a, b, c


def choose_strides(network: NetworkConfig, spacing: Triple, grid: Size) -> Strides:
    """Pooling factors: 2 along each axis that is not yet twice as coarse as the finest one.

    A published form has its own.

    Example:
        >>> choose_strides(NetworkConfig(channels=(8, 16, 32)), (1.0, 1.0, 2.0), (96, 96, 48))
        ((2, 2, 1), (2, 2, 2))
    """
    if network.form != "attention_unet":
        return form_strides(network.form)
    if network.strides is not None:
        return network.strides
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


def choose_patch(grid: Size, strides: Strides, budget: MemoryBudget, batch: int | None) -> Size:
    """The body's grid in multiples of the strides, shrunk along the axis seen most until it fits.

    Raises:
        SettingsError: The budget is too small for the smallest patch.
    """
    divisor = [prod(stride[axis] for stride in strides) for axis in range(3)]
    size = [ceil(whole / part) * part for whole, part in zip(grid, divisor, strict=True)]
    while prod(size) > budget.patch_voxels(strides, batch):
        axes = [axis for axis in range(3) if size[axis] > divisor[axis]]
        if not axes:
            raise SettingsError(
                f"memory of {budget}: is too small for a patch of {'×'.join(map(str, size))}",
                value=budget.total_bytes,
                cure="state more (--memory), or set fewer network.channels or"
                " training.batch_size=1",
            )
        most = max(axes, key=lambda axis: size[axis] / grid[axis])
        size[most] -= divisor[most]
    a, b, c = size
    return a, b, c


def choose_batch(
    fingerprint: Fingerprint, patch: Size, grid: Size, spacing: Triple, voxels: float
) -> int:
    """Two patches, or more where a patch is the whole body.

    Args:
        fingerprint: Of the training set.
        patch: Voxels of a patch.
        grid: Voxels of the median body.
        spacing: In mm.
        voxels: That a batch may have in all.
    """
    fits = int(voxels // prod(patch))
    if any(size < whole for size, whole in zip(patch, grid, strict=True)):
        return max(1, min(SMALLEST_BATCH, fits))
    in_all = sum(prod(case.body_mm) for case in fingerprint.cases) / prod(spacing)
    most = max(SMALLEST_BATCH, int(BATCH_SHARE * in_all // prod(patch)))
    return max(1, min(fits, most, LARGEST_BATCH))
