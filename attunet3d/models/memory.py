"""How much memory training takes: what the network keeps for the backward pass, counted.

A level of C channels keeps, for each of its voxels, in units of C values: two convolutions and
two outputs of norm + ReLU in the encoder (4); the same in the decoder (4), which also keeps what it
concatenates. Pooling keeps 64-bit indices. A gate keeps what it multiplies, its product and what
`W` makes of it. Gradients in flight need the finest level's widest tensors once more. A residual
block keeps about as much as a plain one; further blocks of a level keep 4 each.

Allocators leave gaps: on CPUs the peak was 1.08 to 1.28 times this count (64³ to 160×160×96
voxels, both presets, BatchNorm and InstanceNorm, two steps).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from attunet3d.core import NetworkConfig, Size

VALUE_BYTES = 4  # float32; bfloat16 halves most of it, and leaves room
WEIGHT_COPIES = 5  # weights, gradients, two moments, moving average
GAPS = 1.3  # what allocators take per byte that is used
PROGRAM_BYTES = 600_000_000  # Python, torch and MONAI, as loaded


class FormSize(NamedTuple):
    """What a published form takes, measured by what autograd keeps."""

    width: int
    """Channels of the finest level as published."""
    values: float
    """Values kept per voxel and channel of the finest level."""
    weights: float
    """Parameters, over the square of the finest level's channels."""


FORM_SIZES = {
    "2d_nearest": FormSize(64, 31.2, 8_534),
    "2d_transposed": FormSize(64, 33.5, 13_989),
    "3d_same_resolution": FormSize(64, 21.5, 33_963),
    "3d_transposed": FormSize(32, 13.0, 5_750),
    "2d_unnormalised": FormSize(32, 27.4, 7_795),
}


def finest_channels(network: NetworkConfig) -> tuple[int, int]:
    """Channels of the two finest levels.

    Example:
        >>> finest_channels(NetworkConfig()), finest_channels(NetworkConfig(form="2d_nearest"))
        ((16, 32), (64, 128))
    """
    if network.form in FORM_SIZES:
        width = network.width or FORM_SIZES[network.form].width
        return width, 2 * width
    return network.channels[0], network.channels[1]


def training_bytes(network: NetworkConfig, batch: int, patch: Size, out_channels: int) -> int:
    """Peak memory of a training process on a CPU; an upper bound on a GPU.

    Args:
        network: With strides.
        batch: Patches per batch.
        patch: Voxels of a patch along x, y, z.
        out_channels: Classes, background included.

    Example:
        >>> network = NetworkConfig(strides=((2, 2, 2),) * 4)
        >>> round(training_bytes(network, 2, (160, 160, 96), 2) / 1e9, 1)
        11.3
    """
    assert network.strides is not None
    per_voxel = bytes_per_voxel(network, network.strides, out_channels)
    return int(fixed_bytes(network) + batch * prod(patch) * per_voxel)


def fixed_bytes(network: NetworkConfig) -> int:
    """Bytes that training takes whatever the patch: the program and all copies of the weights."""
    return PROGRAM_BYTES + weight_bytes(network)


def bytes_per_voxel(network: NetworkConfig, strides: Sequence[Size], out_channels: int) -> float:
    """Bytes that training takes for each voxel of a batch, gaps of the allocator included."""
    return GAPS * kept_bytes_per_voxel(network, strides, out_channels)


def kept_bytes_per_voxel(
    network: NetworkConfig, strides: Sequence[Size], out_channels: int
) -> float:
    """Bytes that a training step keeps and moves for each voxel of a patch.

    Args:
        network: Channels, gates and heads.
        strides: Between neighbouring levels, finest first.
        out_channels: Classes, background included.

    Example:
        >>> round(kept_bytes_per_voxel(NetworkConfig(), ((2, 2, 2),) * 4, 2))
        1662
    """
    first, second = finest_channels(network)
    flight = 2 * (first + second)
    if network.form in FORM_SIZES:
        kept = FORM_SIZES[network.form].values * first
        return VALUE_BYTES * (kept + 3 * out_channels + flight)
    channels = network.channels
    blocks = network.blocks or (1,) * len(channels)
    gates = {"double": 2, "single": 1, "none": 0}[network.gate]
    last = len(channels) - 1
    values, share, head_values = 1.0, 1.0, 0.0  # values: the scan's one channel
    for level, width in enumerate(channels):
        if level:
            share /= prod(strides[level - 1])
            values += share * 3 * channels[level - 1]  # pooled, and its indices
        values += share * 4 * width * blocks[level]
        if level < last:
            values += share * (4 * width + width + channels[level + 1])  # decoder
            head_values += out_channels * (share if network.deep_supervision == "per-scale" else 1)
        if 0 < level < last and gates:
            values += share * width * (3 * gates + gates + 2)
    if network.deep_supervision == "none":
        head_values = out_channels
    return VALUE_BYTES * (values + 3 * head_values + flight)


def weight_bytes(network: NetworkConfig) -> int:
    """Bytes of weights, gradients, optimiser state and moving average together.

    Example:
        >>> weight_bytes(NetworkConfig()) // 10**6
        122
    """
    if network.form in FORM_SIZES:
        first, _ = finest_channels(network)
        return round(FORM_SIZES[network.form].weights * first**2) * VALUE_BYTES * WEIGHT_COPIES
    channels = network.channels
    blocks = network.blocks or (1,) * len(channels)
    weights, before = 0, 1  # before: the scan's one channel
    for width, count in zip(channels, blocks, strict=True):
        weights += 27 * (before * width + (2 * count - 1) * width * width)
        before = width
    for width, below in pairwise(channels):
        weights += 27 * ((width + below) * width + width * width) + 10 * width * width
    return weights * VALUE_BYTES * WEIGHT_COPIES
