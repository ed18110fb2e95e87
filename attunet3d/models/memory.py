"""How much memory training takes: what the network keeps for the backward pass, counted.

A level of C channels keeps, for each of its voxels, in units of C values: two convolutions and
two outputs of norm + ReLU in the encoder (4); the same in the decoder (4), which also keeps what it
concatenates. Pooling keeps 64-bit indices. A gate keeps what it multiplies, its product and what
`W` makes of it. Gradients in flight need the finest level's widest tensors once more.

Allocators leave gaps: on CPUs the peak was 1.08 to 1.28 times this count (64³ to 160×160×96
voxels, both presets, BatchNorm and InstanceNorm, two steps).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from attunet3d.core import NetworkConfig, Size

VALUE_BYTES = 4  # float32; bfloat16 halves most of it, and leaves room
WEIGHT_COPIES = 5  # weights, gradients, two moments, moving average
GAPS = 1.3  # what allocators take per byte that is used
PROGRAM_BYTES = 600_000_000  # Python, torch and MONAI, as loaded


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
    network: NetworkConfig, strides: Sequence[Size], out_channels: int, in_channels: int = 1
) -> float:
    """Bytes that a training step keeps and moves for each voxel of a patch.

    Args:
        network: Channels, gates and heads.
        strides: Between neighbouring levels, finest first.
        out_channels: Classes, background included.
        in_channels: Of the scan.

    Example:
        >>> round(kept_bytes_per_voxel(NetworkConfig(), ((2, 2, 2),) * 4, 2))
        1662
    """
    channels = network.channels
    gates = {"double": 2, "single": 1, "none": 0}[network.gate]
    last = len(channels) - 1
    values, share, head_values = float(in_channels), 1.0, 0.0
    for level, width in enumerate(channels):
        if level:
            share /= prod(strides[level - 1])
            values += share * 3 * channels[level - 1]  # pooled, and its indices
        values += share * 4 * width
        if level < last:
            values += share * (4 * width + width + channels[level + 1])  # decoder
            head_values += out_channels * (share if network.deep_supervision == "per-scale" else 1)
        if 0 < level < last and gates:
            values += share * width * (3 * gates + gates + 2)
    if network.deep_supervision == "none":
        head_values = out_channels
    flight = 2 * (channels[0] + channels[1])
    return VALUE_BYTES * (values + 3 * head_values + flight)


def weight_bytes(network: NetworkConfig, in_channels: int = 1) -> int:
    """Bytes of weights, gradients, optimiser state and moving average together.

    Example:
        >>> weight_bytes(NetworkConfig()) // 10**6
        122
    """
    channels = network.channels
    weights, before = 0, in_channels
    for width in channels:
        weights += 27 * (before * width + width * width)
        before = width
    for width, below in pairwise(channels):
        weights += 27 * ((width + below) * width + width * width) + 10 * width * width
    return weights * VALUE_BYTES * WEIGHT_COPIES
