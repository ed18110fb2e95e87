"""What a network is made of: shapes, parameters, arithmetic and memory, block by block.

Nothing is computed: the network runs on torch's meta device, where tensors have shapes only.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attunet3d.core import Size, as_table
from attunet3d.models.published.network import PublishedNetwork

FLOAT32_BYTES = 4
TRACED = 2  # patches: BatchNorm refuses one whose deepest level has one voxel


@dataclass(frozen=True)
class LayerRow:
    """One block of a network.

    Args:
        name: Its place in the network, such as "encoder.0".
        shape: Channels and size of its output for one patch, in a 2D network for one slice of it.
        parameters: Number of its weights.
        flops: Floating-point operations of its convolutions for one patch, forward; a
            multiplication and an addition are two.
        output_bytes: Memory of its output in float32.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    output_bytes: int


def layer_table(network: nn.Module, patch: Size) -> list[LayerRow]:
    """The blocks of a network in the order in which they run, with every head that is trained.

    Args:
        network: Any network of (B, 1, X, Y, Z); it is not changed.
        patch: X, Y, Z.

    Example:
        >>> from attunet3d.core import NetworkConfig
        >>> from attunet3d.models.build import build_network
        >>> rows = layer_table(build_network(NetworkConfig(channels=(4, 8)), 1, 2), (16, 16, 16))
        >>> rows[0].name, rows[0].shape, rows[0].parameters
        ('encoder.0', (4, 16, 16, 16), 564)
    """
    modules = dict(_blocks(network))
    with FlopCounterMode(display=False) as counter:
        shapes = output_shapes(network, list(modules), patch)
    flops = counter.get_flop_counts()
    rows = []
    for name, ((batch, *shape), *_) in shapes.items():
        parameters = sum(parameter.numel() for parameter in modules[name].parameters())
        if parameters or isinstance(modules[name], nn.MaxPool3d):
            count = sum(flops.get(f"{type(network).__name__}.{name}", {}).values()) // TRACED
            size = batch * prod(shape) * FLOAT32_BYTES // TRACED
            rows.append(LayerRow(name, tuple(shape), parameters, count, size))
    return rows


def output_shapes(
    network: nn.Module, names: Sequence[str], patch: Size
) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the outputs of modules in training for a batch of two, in the order of running.

    Args:
        network: Any network of (B, 1, X, Y, Z); it is not changed.
        names: Of its modules.
        patch: X, Y, Z.

    Example:
        >>> output_shapes(nn.Sequential(nn.Conv3d(1, 8, 3, 2, 1)), ["0"], (16, 16, 8))
        {'0': [(2, 8, 8, 8, 4)]}
    """
    network = copy.deepcopy(network).to("meta").train()
    modules = dict(network.named_modules())
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def keep_shapes(name: str, output: Any) -> None:
        outputs = [output] if isinstance(output, Tensor) else output
        shapes[name] = [tuple(part.shape) for part in outputs if isinstance(part, Tensor)]

    for name in names:
        modules[name].register_forward_hook(
            lambda _, __, output, name=name: keep_shapes(name, output)
        )
    network(torch.zeros(TRACED, 1, *patch, device="meta"))
    return shapes


def layer_text(rows: Sequence[LayerRow]) -> str:
    """The rows as lines of text, with their sums.

    Example:
        >>> print(layer_text([LayerRow("head", (2, 64, 64, 64), 17, 8388608, 2097152)]))
        layer  channels  size      parameters  GFLOP   MB
        head          2  64×64×64          17   0.01  2.1
        sum                                17   0.01  2.1
    """
    lines: list[Sequence[object]] = [("layer", "channels", "size", "parameters", "GFLOP", "MB")]
    for row in rows:
        channels, *size = row.shape
        lines.append((row.name, channels, "×".join(map(str, size)), *_amounts([row])))
    return as_table([*lines, ("sum", "", "", *_amounts(rows))])


def _amounts(rows: Sequence[LayerRow]) -> tuple[int, str, str]:
    flops, size = sum(row.flops for row in rows), sum(row.output_bytes for row in rows)
    return sum(row.parameters for row in rows), f"{flops / 1e9:.2f}", f"{size / 1e6:.1f}"


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Named children; those of a list, or of a 2D network over slices, in its place."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | PublishedNetwork):
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child
