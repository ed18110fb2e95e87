"""The 3D Attention U-Net of Oktay et al. 2018 (arXiv:1804.03999), from top to bottom.

    level 0   x ─ block ───────────────────────────────── skip ─► cat ─ block ─ head 0 ─► logits
                    └ pool                                          └ up ┐
    level 1             └ block ────────────── gate ◄─ g ─ skip ─► cat ─ block ─ head 1
                          └ pool                                    └ up ┐
    level 2                   └ block ──────── gate ◄─ g ─ skip ─► cat ─ block ─ head 2
                                └ pool                              └ up ┐
    level 3                         └ block ── gate ◄─ g ─ skip ─► cat ─ block ─ head 3
                                      └ pool                        └ up ┐
    level 4                               └ block (the centre) ──────────┘

A gate's signal g is the decoder's output one level below it, for the deepest gate a 1×1×1 block of
the centre. The finest skip is not gated. Shapes: B batch, C channels, X Y Z space (R, A, S).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import ModelError
from attunet3d.models.gate import GatedSkip, GridAttentionGate, PlainSkip
from attunet3d.models.layers import (
    NO_STRIDE,
    ConvBlock,
    PointBlock,
    ResidualBlock,
    Stride,
    deepest_values,
    initialise,
    require_statistics,
    resize,
)

GATES = {"double": 2, "single": 1, "none": 0}
BLOCKS = {"plain": ConvBlock, "residual": ResidualBlock}
SUPERVISIONS = ("fused", "per-scale", "none")
DOWNSAMPLINGS = ("max_pool", "strided")


class AttentionUNet3D(nn.Module):
    """3D Attention U-Net; the default is the authors' CT network.

    Any input size works: what the strides do not divide is repeated at its far ends, and the result
    cut to size. In training `forward` returns a list of logits, finest first, each at its own
    resolution (one entry unless `deep_supervision` is "per-scale"); in evaluation one tensor.

    Args:
        in_channels: Channels of the input; CT has 1.
        out_channels: Classes, background included.
        channels: Features of each level, finest first.
        gate: Gates per skip: "double", "single", or "none" for a plain U-Net of this skeleton.
        deep_supervision: "fused": heads upsampled, concatenated and mixed by a 1×1×1 convolution,
            as the authors do; "per-scale": one head and one loss per scale; "none": one head.
        norm: "batch", "instance" or "group".
        dropout: Probability that a channel is dropped after a block, in training.
        align_corners: Trilinear convention; True for weights of torch 0.3.
        strides: Factors between levels along x, y, z; None: 2.
        gate_bias: Initial bias of psi; 3.0 opens the gates.
        block: Blocks of the encoder: "plain", two convolutions as the authors have them, or
            "residual". The decoder's are plain.
        blocks: Blocks of each level of the encoder, finest first; None: one.
        activation: "relu" or "leaky_relu"; the gates' own is a ReLU, as in the paper.
        downsampling: "max_pool", or "strided": the first convolution of a level is strided.

    Raises:
        ModelError: A number or name is out of range.

    Example:
        >>> network = AttentionUNet3D(channels=(4, 8, 16)).eval()
        >>> logits, attention = network.forward_with_attention(torch.rand(1, 1, 16, 16, 9))
        >>> tuple(logits.shape), [tuple(maps.shape) for maps in attention]
        ((1, 2, 16, 16, 9), [(1, 2, 8, 8, 5)])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        *,
        gate: str = "double",
        deep_supervision: str = "fused",
        norm: str = "batch",
        dropout: float = 0.0,
        align_corners: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
        gate_bias: float | None = None,
        block: str = "plain",
        blocks: Sequence[int] | None = None,
        activation: str = "relu",
        downsampling: str = "max_pool",
    ) -> None:
        super().__init__()
        factors = _triples(strides, len(channels) - 1)
        counts = [1] * len(channels) if blocks is None else list(blocks)
        _require_name("gate", gate, GATES)
        _require_name("deep_supervision", deep_supervision, SUPERVISIONS)
        _require_name("block", block, BLOCKS)
        _require_name("downsampling", downsampling, DOWNSAMPLINGS)
        _require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        _require(len(channels) > 1, "channels", channels, "at least two levels")
        _require(len(counts) == len(channels), "blocks", blocks, "one number per level")
        numbers = (in_channels, out_channels, *channels, *counts)
        _require(min(numbers) > 0, "channels and blocks", numbers, "positive")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.align_corners, self.deep_supervision, self.norm = align_corners, deep_supervision, norm
        # Factors of each level against the input: (1, 1, 1), (2, 2, 2), (4, 4, 4), …
        self.strides = [_product(factors[:level]) for level in range(len(channels))]
        options: dict[str, Any] = {"norm": norm, "activation": activation, "dropout": dropout}
        gating: dict[str, Any] = {"norm": norm, "align_corners": align_corners, "bias": gate_bias}
        pooled = downsampling == "max_pool"
        steps = [NO_STRIDE, *([NO_STRIDE] * len(factors) if pooled else factors)]
        widths = pairwise([in_channels, *channels])
        self.encoder = nn.ModuleList(
            _level(BLOCKS[block], *ends, count, step, options)
            for ends, count, step in zip(widths, counts, steps, strict=True)
        )
        self.pools = nn.ModuleList(nn.MaxPool3d(f) if pooled else nn.Identity() for f in factors)
        centre, gated = channels[-1], gate != "none"
        self.gating = PointBlock(centre, centre, norm, activation) if gated else nn.Identity()
        self.skips, self.decoder = nn.ModuleList(), nn.ModuleList()  # deepest first
        for level, (fine, coarse) in reversed(list(enumerate(pairwise(channels)))):
            gates = [
                GridAttentionGate(fine, coarse, stride=factors[level], **gating)
                for _ in range(GATES[gate] if level else 0)  # the finest skip is not gated
            ]
            self.skips.append(GatedSkip(gates, norm, activation) if gates else PlainSkip())
            self.decoder.append(ConvBlock(fine + coarse, fine, **options))
        heads = channels[:1] if deep_supervision == "none" else channels[:-1]
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1) for width in heads)
        mixed, fused = len(heads) * out_channels, deep_supervision == "fused"
        self.final = nn.Conv3d(mixed, out_channels, 1) if fused else nn.Identity()
        self.apply(initialise)

    @classmethod
    def from_authors_state_dict(
        cls, state_dict: Mapping[str, Tensor], *, align_corners: bool = False
    ) -> Self:
        """Return the authors' CT network with the authors' weights, in eval mode.

        Shapes tell channels, classes and gates. Weights trained with torch 0.3 (they have no
        `num_batches_tracked`) need `align_corners=True`: its trilinear upsampling aligned corners.

        The state must come from the authors' `nonlocal_mode` "concatenation", their CT setting: one
        of "concatenation_debug" or "concatenation_residual" cannot be told from it, loads, and
        gives other logits than their code.

        Args:
            state_dict: Of `unet_CT_multi_att_dsv_3D`, `unet_CT_single_att_dsv_3D` or
                `unet_CT_dsv_3D`; a prefix `module.` is removed.
            align_corners: Trilinear convention that the weights were trained with.

        Raises:
            ModelError: It is not the whole state of one of these networks.
        """
        from attunet3d.models import authors_weights

        found = authors_weights.read(state_dict)
        network = cls(found.in_channels, found.out_channels, **found.settings(align_corners))
        try:
            network.load_state_dict(found.weights)
        except RuntimeError as error:
            details = " ".join(str(error).split())
            raise ModelError(f"the state is not of the authors' CT network ({details})") from None
        return network.eval()

    @property
    def divisor(self) -> Stride:
        """Product of the strides along x, y, z: the period of the network's equivariance."""
        return self.strides[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits: a list, finest first, in training; (B, out, X, Y, Z) in evaluation.

        Args:
            x: (B, in, X, Y, Z).

        Raises:
            ModelError: In training, an input too small to be normalised at the deepest level.
        """
        outputs, _ = self._run(x)
        return outputs if self.training else outputs[0]

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, out, X, Y, Z), and (B, gates, x, y, z) per gated level, finest first.

        The coefficients are in [0, 1], each at the resolution of the skip that it weighs.
        """
        outputs, attention = self._run(x)
        return outputs[0], attention

    def _run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        size = x.shape[2:]
        x = self._pad(x)
        skips: list[Tensor] = []  # level l: (B, C_l, X / 2^l, …)
        for reduce, pool in zip(self.encoder, self.pools, strict=False):  # the centre has no pool
            x = reduce(x)
            skips.append(x)
            x = pool(x)
        x = self.encoder[-1](x)  # the centre: (B, C_4, X / 16, …)

        signal = self.gating(x)  # for the deepest gate only; the decoder goes on from the centre
        attention: list[Tensor] = []
        decoded: list[Tensor] = []
        deepest_first = reversed(list(enumerate(skips)))
        for (level, skip), gate, expand in zip(
            deepest_first, self.skips, self.decoder, strict=True
        ):
            gated, coefficients = gate(skip, signal)
            x = self._expand(expand, gated, x)  # (B, C_l, X / 2^l, …)
            signal = x  # gates the next finer skip
            decoded.append(x)
            if coefficients.shape[1]:
                attention.append(self._crop(coefficients, size, level))
        return self._logits(decoded[::-1], size), attention[::-1]

    def _expand(self, block: nn.Module, skip: Tensor, below: Tensor) -> Tensor:
        """(B, fine, X, Y, Z) and (B, coarse, x, y, z) → (B, fine, X, Y, Z)."""
        x = torch.cat([skip, resize(below, skip, self.align_corners)], 1)
        return block(x)  # type: ignore[no-any-return]

    def _logits(self, decoded: list[Tensor], size: torch.Size) -> list[Tensor]:
        """The heads' logits, finest first, or fused into one (B, out, X, Y, Z)."""
        if self.deep_supervision != "fused":
            return [
                self._crop(head(features), size, level)
                for level, (head, features) in enumerate(zip(self.heads, decoded, strict=False))
                if level == 0 or self.training
            ]
        maps: list[Tensor] = []
        for head, features in zip(self.heads, decoded, strict=True):
            coarse = head(features)  # before upsampling: the authors' order, and cheap
            # Not in bfloat16: CUDA's backward would lose most of the 16³ terms of a coarse voxel.
            coarse = coarse.to(torch.promote_types(coarse.dtype, torch.float32))
            maps.append(resize(coarse, decoded[0], self.align_corners))
        return [self._crop(self.final(torch.cat(maps, 1)), size, 0)]

    def _pad(self, x: Tensor) -> Tensor:
        """Repeat the far ends of `x`, so that every level divides evenly."""
        period = self.divisor
        if self.norm != "group" and (self.training or self.norm == "instance"):
            images = 1 if self.norm == "instance" else len(x)
            values = deepest_values(images, x.shape[2:], period)
            if self.training:
                require_statistics(values, "train on larger patches or batches, or with norm=group")
            if values == 1:  # InstanceNorm: give it a second
                period = period[0], period[1], 2 * period[2]
        a, b, c = (-length % step for length, step in zip(x.shape[2:], period, strict=True))
        return F.pad(x, (0, c, 0, b, 0, a), mode="replicate") if a or b or c else x

    def _crop(self, x: Tensor, size: torch.Size, level: int) -> Tensor:
        """Cut off what padding added to `x`, features of a level, for an input of `size`."""
        a, b, c = (-(-n // step) for n, step in zip(size, self.strides[level], strict=True))
        return x[:, :, :a, :b, :c]


def _level(
    block: type[nn.Module], below: int, width: int, count: int, stride: Stride, options: Any
) -> nn.Module:
    """`count` blocks, of which the first changes channels and resolution."""
    first = block(below, width, stride=stride, **options)
    rest = [block(width, width, **options) for _ in range(count - 1)]
    return nn.Sequential(first, *rest) if rest else first


def _triples(strides: Sequence[Sequence[int]] | None, count: int) -> list[Stride]:
    if strides is None:
        return [(2, 2, 2)] * count
    fits = len(strides) == count and all(len(s) == 3 and min(s) > 0 for s in strides)
    _require(fits, "strides", strides, f"{count} triples of positive factors")
    return [(x, y, z) for x, y, z in strides]


def _product(factors: Sequence[Stride]) -> Stride:
    x, y, z = (prod(axis) for axis in zip((1, 1, 1), *factors, strict=True))
    return x, y, z


def _require_name(name: str, value: str, known: Collection[str]) -> None:
    _require(value in known, name, value, "one of " + ", ".join(known))


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ModelError(f"{name} must be {rule}, got {value!r:.200}", value=value)
