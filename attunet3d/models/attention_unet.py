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

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import Config, ModelError, NetworkConfig
from attunet3d.models import authors_weights
from attunet3d.models.gate import GridAttentionGate, initialise, normaliser, resize

GATES = {"double": 2, "single": 1, "none": 0}


class ConvBlock(nn.Sequential):
    """Two 3×3×3 convolutions, each with normalisation and ReLU; then dropout of channels."""

    def __init__(self, in_channels: int, out_channels: int, config: NetworkConfig) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [nn.Conv3d(channels, out_channels, 3, padding=1)]
            layers += [normaliser(config.norm, out_channels), nn.ReLU(inplace=True)]
        if config.dropout:
            layers += [nn.Dropout3d(config.dropout)]
        super().__init__(*layers)


class ExpandingBlock(ConvBlock):
    """A step of the decoder: features from below upsampled, joined to the skip, convolved."""

    def __init__(self, fine: int, coarse: int, config: NetworkConfig) -> None:
        super().__init__(fine + coarse, fine, config)
        self.align_corners = config.align_corners

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:  # type: ignore[override]
        """(B, fine, X, Y, Z) and (B, coarse, x, y, z) → (B, fine, X, Y, Z)."""
        x = torch.cat([skip, resize(below, skip, self.align_corners)], 1)
        for layer in self:
            x = layer(x)
        return x


class PointBlock(nn.Sequential):
    """A 1×1×1 convolution with normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        convolution = nn.Conv3d(in_channels, out_channels, 1)
        super().__init__(convolution, normaliser(norm, out_channels), nn.ReLU(inplace=True))


class GatedSkip(nn.Module):
    """One or two gates on a skip, joined by a 1×1×1 block (the authors' `MultiAttentionBlock`)."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        assert config.strides is not None
        fine, coarse = config.channels[level : level + 2]
        options: dict[str, Any] = {
            "stride": config.strides[level],
            "norm": config.norm,
            "align_corners": config.align_corners,
            "bias": config.gate_bias,
        }
        gates = GATES[config.gate]
        self.gates = nn.ModuleList(GridAttentionGate(fine, coarse, **options) for _ in range(gates))
        self.combine = PointBlock(gates * fine, fine, config.norm)

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, X, Y, Z) gated, and the coefficients (B, gates, X, Y, Z)."""
        gated: list[Tensor] = []
        coefficients: list[Tensor] = []
        for gate in self.gates:
            y, alpha = gate(skip, gating)
            gated.append(y)
            coefficients.append(alpha)
        return self.combine(torch.cat(gated, 1)), torch.cat(coefficients, 1)


class PlainSkip(nn.Module):
    """A skip without gates; it has no coefficients."""

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """The skip as it is, and coefficients (B, 0, X, Y, Z)."""
        return skip, skip[:, :0]


class AttentionUNet3D(nn.Module):
    """3D Attention U-Net; the default is the authors' CT network.

    Any input size works: what the strides do not divide is repeated at its far ends, and the result
    cut to size. In training `forward` returns a list of logits, finest first, each at its own
    resolution (one entry unless `deep_supervision` is "per-scale"); in evaluation one tensor.

    Args:
        in_channels: Channels of the input; CT has 1.
        out_channels: Classes, background included.
        channels: Features of each level, finest first.
        gate: Gates a skip: "double", "single", or "none" for a plain U-Net of this skeleton.
        deep_supervision: "fused": heads upsampled, concatenated and mixed by a 1×1×1 convolution,
            as the authors do; "per-scale": one head and one loss a scale; "none": one head.
        norm: "batch", "instance" or "group".
        dropout: Probability that a channel is dropped after a block, in training.
        align_corners: Trilinear convention; True for weights of torch 0.3.
        strides: Max-pool factors between levels along x, y, z; None: 2.
        gate_bias: Initial bias of psi; 3.0 opens the gates.

    Raises:
        SettingsError: A number or name is out of range.
        ModelError: There is no channel in or out.

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
    ) -> None:
        super().__init__()
        settings = {
            "channels": list(channels),
            "strides": [list(s) for s in strides or [(2, 2, 2)] * (len(channels) - 1)],
            "gate": gate,
            "deep_supervision": deep_supervision,
            "norm": norm,
            "dropout": dropout,
            "align_corners": align_corners,
            "gate_bias": gate_bias,
        }
        config = Config.from_dict({"network": settings}).network  # names, types, ranges checked
        if min(in_channels, out_channels) < 1:
            raise ModelError(f"channels must be positive, got {in_channels} and {out_channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.align_corners, self.deep_supervision, self.norm = align_corners, deep_supervision, norm
        self._build(config)
        self.apply(initialise)

    def _build(self, config: NetworkConfig) -> None:
        channels, pools, gates = config.channels, config.strides or (), GATES[config.gate]
        levels, classes = range(len(channels)), self.out_channels
        self.strides = [[prod(p[axis] for p in pools[:n]) for axis in range(3)] for n in levels]
        widths = pairwise([self.in_channels, *channels])
        self.encoder = nn.ModuleList(ConvBlock(a, b, config) for a, b in widths)
        self.pools = nn.ModuleList(nn.MaxPool3d(pool) for pool in pools)
        centre = channels[-1]
        self.gating = PointBlock(centre, centre, config.norm) if gates else nn.Identity()
        self.skips, self.decoder = nn.ModuleList(), nn.ModuleList()  # deepest first
        for level in reversed(levels[:-1]):
            fine, coarse = channels[level], channels[level + 1]
            gated = gates and level > 0  # the finest has none
            self.skips.append(GatedSkip(config, level) if gated else PlainSkip())
            self.decoder.append(ExpandingBlock(fine, coarse, config))
        heads = channels[:1] if config.deep_supervision == "none" else channels[:-1]
        self.heads = nn.ModuleList(nn.Conv3d(features, classes, 1) for features in heads)
        fused = config.deep_supervision == "fused"
        self.final = nn.Conv3d(len(heads) * classes, classes, 1) if fused else nn.Identity()

    @classmethod
    def from_config(cls, config: NetworkConfig, in_channels: int, out_channels: int) -> Self:
        """The network that a configuration describes, for so many channels and classes."""
        return cls(in_channels, out_channels, **vars(config))

    @property
    @torch.jit.unused
    def divisor(self) -> tuple[int, int, int]:
        """Product of the strides along x, y, z: the period of the network's equivariance."""
        x, y, z = self.strides[-1]
        return x, y, z

    def forward(self, x: Tensor) -> Any:
        """Logits: a list, finest first, in training; (B, out, X, Y, Z) in evaluation.

        Args:
            x: (B, in, X, Y, Z).

        Raises:
            ModelError: In training, an input too small to be normalised at the deepest level.
        """
        outputs, _ = self._run(x)
        if self.training:
            return outputs
        return outputs[0]

    @torch.jit.export
    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, out, X, Y, Z), and (B, gates, x, y, z) a gated level, finest first.

        The coefficients are in [0, 1], each at the resolution of the skip that it weighs.
        """
        outputs, attention = self._run(x)
        return outputs[0], attention

    def _run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        size = [x.shape[2], x.shape[3], x.shape[4]]
        x = self._padded(x)
        skips: list[Tensor] = []  # level l: (B, C_l, X / 2^l, …)
        for reduce, pool in zip(self.encoder, self.pools):  # noqa: B905 (TorchScript has no strict)
            x = reduce(x)
            skips.append(x)
            x = pool(x)
        x = self.encoder[-1](x)  # the centre: (B, C_4, X / 16, …)

        signal = self.gating(x)  # for the deepest gate only; the decoder goes on from the centre
        attention: list[Tensor] = []
        decoded: list[Tensor] = []
        for expand, gate in zip(self.decoder, self.skips):  # noqa: B905
            level = len(skips) - 1
            skip, coefficients = gate(skips.pop(), signal)
            x = expand(skip, x)
            signal = x  # gates the next finer skip
            decoded.insert(0, x)
            if coefficients.shape[1] > 0:
                attention.insert(0, self._cut(coefficients, size, level))
        return self._logits(decoded, size), attention

    def _logits(self, decoded: list[Tensor], size: list[int]) -> list[Tensor]:
        """The heads' logits, finest first, or fused into one (B, out, X, Y, Z)."""
        fused = self.deep_supervision == "fused"
        logits: list[Tensor] = []
        for level, head in enumerate(self.heads):
            if fused:  # at low resolution first: the authors' order, and cheap
                # Not in bfloat16: CUDA's backward adds up in the type it gets, and would lose most
                # of the 16³ terms of a coarse voxel.
                coarse = head(decoded[level])
                coarse = coarse.to(torch.promote_types(coarse.dtype, torch.float32))
                logits.append(resize(coarse, decoded[0], self.align_corners))
            elif level == 0 or self.training:
                logits.append(self._cut(head(decoded[level]), size, level))
        if fused:
            return [self._cut(self.final(torch.cat(logits, 1)), size, 0)]
        return logits

    def _padded(self, x: Tensor) -> Tensor:
        """`x` with its far ends repeated, so that every level divides evenly."""
        period = self.strides[-1]
        if self.norm != "group" and (self.training or self.norm == "instance"):
            values = 1 if self.norm == "instance" else x.shape[0]  # a channel of the centre
            for axis, step in enumerate(period):
                values *= (x.shape[2 + axis] + step - 1) // step
            if values == 1 and self.training:
                raise ModelError(
                    "one value a channel is left at the deepest level, which cannot be normalised;"
                    " train on larger patches or batches, or with norm=group"
                )
            if values == 1:  # InstanceNorm: give it a second
                period = [period[0], period[1], 2 * period[2]]
        missing = [-x.shape[2 + axis] % period[axis] for axis in range(3)]
        if missing[0] == 0 and missing[1] == 0 and missing[2] == 0:
            return x
        return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")

    def _cut(self, x: Tensor, size: list[int], level: int) -> Tensor:
        """`x` of a level without what padding added to an input of `size`."""
        a, b, c = self.strides[level]
        return x[:, :, : -(-size[0] // a), : -(-size[1] // b), : -(-size[2] // c)]


def from_authors_state_dict(
    state_dict: Mapping[str, Tensor], *, align_corners: bool = False
) -> AttentionUNet3D:
    """The authors' CT network with the authors' weights, in eval mode.

    Shapes tell channels, classes and gates. Weights trained with torch 0.3 (they have no
    `num_batches_tracked`) need `align_corners=True`: its trilinear upsampling aligned corners.

    Args:
        state_dict: Of `unet_CT_multi_att_dsv_3D`, `unet_CT_single_att_dsv_3D` or `unet_CT_dsv_3D`.
        align_corners: Trilinear convention that the weights were trained with.

    Raises:
        ModelError: It is no state of one of these networks.
        ModelError: Entries are missing or of a wrong shape.
    """
    found = authors_weights.read(state_dict)
    settings = found.settings(align_corners)
    network = AttentionUNet3D(found.in_channels, found.out_channels, **settings)
    try:
        network.load_state_dict(found.weights)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise ModelError(f"the state is not of the authors' CT network ({details})") from None
    return network.eval()
