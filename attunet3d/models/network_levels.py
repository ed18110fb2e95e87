"""A network level by level, as the paper draws it: encoder, gate, decoder and head of each.

The shapes are those of the real modules, which run on torch's meta device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn

from attunet3d.core import Size
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.build import Network
from attunet3d.models.gate import GatedSkip
from attunet3d.models.layer_table import output_shapes
from attunet3d.models.mean_network import MeanNetwork
from attunet3d.models.published.forms import FORMS
from attunet3d.models.published.unnormalised_2d import FIRST
from attunet3d.models.slices import SliceNetwork

Shape: TypeAlias = tuple[int, ...]
"""Channels and size."""


@dataclass(frozen=True)
class NetworkLevel:
    """What a network computes at one resolution for one patch; None where it lacks the part."""

    encoder: Shape
    gate: Shape | None = None
    """Of the coefficients."""
    decoder: Shape | None = None
    head: Shape | None = None


@dataclass(frozen=True)
class Names:
    """The modules whose outputs are shown, by level; the coarsest has an encoder only."""

    encoder: Callable[[int], str]
    decoder: Callable[[int], str]
    gate: Callable[[int], str]
    head: Callable[[int], str] = lambda level: ""
    upsampling: str = ""
    """In words."""


ATTU_NET = Names(
    encoder=lambda level: f"Conv{level + 1}",
    decoder=lambda level: f"Up_conv{level + 2}",
    gate=lambda level: f"Att{level + 2}",
    head=lambda level: "" if level else "Conv_1x1",
    upsampling="nearest upsampling, 3×3 convolution",
)
NAMES = {
    "2d_nearest": ATTU_NET,
    "2d_transposed": replace(ATTU_NET, upsampling="4×4 transposed and 3×3 convolution"),
    "3d_same_resolution": Names(
        encoder=lambda level: f"encoder{level + 1}" if level < 4 else "center.center_block.5",
        decoder=lambda level: (
            f"decoder{level + 1}.decoder_block.5" if level else "final.final_block.5"
        ),
        gate=lambda level: f"att{level + 1}",
        head=lambda level: "" if level else "final.final_block.6",
        upsampling="4×4×4 transposed convolution",
    ),
    "3d_transposed": Names(
        encoder=lambda level: f"encoder.conv{level + 1}",
        decoder=lambda level: f"decoder.conv{level + 1}",
        gate=lambda level: f"decoder.attn{level + 1}",
        upsampling="2×2×2 transposed convolution",
    ),
    "2d_unnormalised": Names(  # per level, two convolutions going down; three and two going up
        encoder=lambda level: f"conv2d_{FIRST + 2 * level + 1}",
        decoder=lambda level: f"conv2d_{FIRST + 10 + 5 * (3 - level) + 4}",
        gate=lambda level: f"conv2d_{FIRST + 10 + 5 * (3 - level) + 2}",
        head=lambda level: "" if level else f"conv2d_{FIRST + 30}",
        upsampling="nearest upsampling",
    ),
}


def network_levels(network: Network, patch: Size) -> tuple[list[NetworkLevel], str]:
    """The levels of a network for one patch, finest first, and how it upsamples, in words.

    Args:
        network: Of an ensemble the first member is looked at.
        patch: X, Y, Z; of a network of slices, the sizes are those of one slice.

    Example:
        >>> network = AttentionUNet3D(1, 2, channels=(4, 8, 16))
        >>> levels, upsampling = network_levels(network, (16, 16, 8))
        >>> levels[1].encoder, levels[1].gate, levels[2].decoder, upsampling
        ((8, 8, 8, 4), (2, 8, 8, 4), None, 'trilinear upsampling')
    """
    if isinstance(network, MeanNetwork):
        return network_levels(network.members[0], patch)  # type: ignore[arg-type]
    names, prefix = _names(network), "network." if isinstance(network, SliceNetwork) else ""
    count, modules = len(network.strides), dict(network.named_modules())

    def found(of_level: Callable[[int], str], level: int) -> str:
        name = prefix + of_level(level)
        return name if name in modules and name != prefix else ""

    parts = [
        [
            found(of_level, level)
            for of_level in (names.encoder, names.gate, names.decoder, names.head)
        ]
        for level in range(count)
    ]
    parts[-1][1:] = ["", "", ""]
    shapes = output_shapes(network, [name for row in parts for name in row if name], patch)
    return [_level(row, shapes) for row in parts], names.upsampling


def _level(names: Sequence[str], shapes: dict[str, list[Shape]]) -> NetworkLevel:
    encoder, gate, decoder, head = names

    def shape(name: str, output: int = 0) -> Shape | None:
        return shapes[name][output][1:] if name in shapes else None

    return NetworkLevel(
        encoder=shapes[encoder][0][1:],
        gate=shape(gate, -1),  # a gate's last output is its coefficients
        decoder=shape(decoder),
        head=shape(head),
    )


def _names(network: nn.Module) -> Names:
    if isinstance(network, SliceNetwork):
        network = network.network
    for name, form in FORMS.items():
        if type(network) is form:
            return NAMES[name]
    assert isinstance(network, AttentionUNet3D)
    coarsest = len(network.encoder) - 2  # of the levels with a decoder, which come deepest first
    gated = [isinstance(skip, GatedSkip) for skip in network.skips]
    return Names(
        encoder=lambda level: f"encoder.{level}",
        decoder=lambda level: f"decoder.{coarsest - level}",
        gate=lambda level: (
            f"skips.{coarsest - level}" if level <= coarsest and gated[coarsest - level] else ""
        ),
        head=lambda level: f"heads.{level}",
        upsampling="trilinear upsampling",
    )
