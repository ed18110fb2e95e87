"""The 3D Attention U-Net of Oktay et al. 2018 (arXiv:1804.03999), from top to bottom.

    level 0    block ──────────────────────────────── skip ─► up ─ block ─ head 0
    level 1      └ pool ─ block ───── gate ◄──┐ ───── skip ─► up ─ block ─ head 1
    level 2            └ pool ─ block ─ gate ◄┼─┐ ─── skip ─► up ─ block ─ head 2
    level 3                  └ pool ─ block ─ gate ◄┐ skip ─► up ─ block ─ head 3
    level 4                        └ pool ─ centre ─┴ gating signal

Each gate looks at the decoder's output one level below it, the deepest at the centre's gating
signal; the finest skip is not gated. Shapes: B batch, C channels, X Y Z space (R, A, S).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d import authors_weights
from attunet3d.config import NetworkConfig
from attunet3d.errors import UserError
from attunet3d.gate import GridAttentionGate, normaliser, resize

GATES = {"double": 2, "single": 1, "none": 0}


class NetworkError(UserError):
    """Arguments that make no network, or an input that it cannot take."""


class ConvBlock(nn.Sequential):
    """Two 3×3×3 convolutions, each with normalisation and ReLU; then dropout of channels."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, dropout: float) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [nn.Conv3d(channels, out_channels, 3, padding=1)]
            layers += [normaliser(norm, out_channels), nn.ReLU()]
        super().__init__(*layers, *([nn.Dropout3d(dropout)] if dropout else []))


class PointBlock(nn.Sequential):
    """A 1×1×1 convolution with normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        convolution = nn.Conv3d(in_channels, out_channels, 1)
        super().__init__(convolution, normaliser(norm, out_channels), nn.ReLU())


class GatedSkip(nn.Module):
    """One or two gates on a skip, joined by a 1×1×1 block (the authors' `MultiAttentionBlock`)."""

    def __init__(self, gates: Sequence[GridAttentionGate], channels: int, norm: str) -> None:
        super().__init__()
        self.gates = nn.ModuleList(gates)
        self.combine = PointBlock(len(gates) * channels, channels, norm)

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

    Any input size works. In training `forward` returns a list of logits, finest first, each at its
    own resolution (one entry unless `deep_supervision` is "per-scale"); in evaluation one tensor.

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
        NetworkError: A number or name is out of range.

    Example:
        >>> network = AttentionUNet3D(channels=(4, 8, 16)).eval()
        >>> logits, attention = network.forward_with_attention(torch.rand(1, 1, 16, 16, 9))
        >>> tuple(logits.shape), [tuple(maps.shape) for maps in attention]
        ((1, 2, 16, 16, 9), [(1, 2, 8, 8, 4)])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        gate: str = "double",
        deep_supervision: str = "fused",
        norm: str = "batch",
        dropout: float = 0.0,
        align_corners: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        _check(in_channels, out_channels, channels, gate, deep_supervision)
        pools = [_triple(s) for s in strides] if strides else [(2, 2, 2)] * (len(channels) - 1)
        if len(pools) != len(channels) - 1:
            raise NetworkError(f"strides must be {len(channels) - 1} triples, got {strides}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.align_corners, self.deep_supervision = align_corners, deep_supervision
        self.period = [prod(pool[axis] for pool in pools) for axis in range(3)]

        widths = [in_channels, *channels]
        self.encoder = nn.ModuleList(ConvBlock(a, b, norm, dropout) for a, b in pairwise(widths))
        self.pools = nn.ModuleList(nn.MaxPool3d(p, p, ceil_mode=False) for p in pools)
        centre = channels[-1]
        self.gating = PointBlock(centre, centre, norm) if GATES[gate] else nn.Identity()
        self.skips = nn.ModuleList()  # deepest first, as the decoder goes; the finest has no gate
        self.decoder = nn.ModuleList()
        for level in range(len(channels) - 2, -1, -1):
            fine, coarse = channels[level], channels[level + 1]
            self.decoder.append(ConvBlock(fine + coarse, fine, norm, dropout))
            gates = [
                GridAttentionGate(
                    fine, coarse, stride=pools[level], norm=norm, align_corners=align_corners
                )
                for _ in range(GATES[gate] if level > 0 else 0)
            ]
            self.skips.append(GatedSkip(gates, fine, norm) if gates else PlainSkip())
        scales = 1 if deep_supervision == "none" else len(channels) - 1
        self.heads = nn.ModuleList(nn.Conv3d(c, out_channels, 1) for c in channels[:scales])
        fused = deep_supervision == "fused"
        mix = nn.Conv3d(scales * out_channels, out_channels, 1) if fused else nn.Identity()
        self.final = mix
        self.apply(_initialise)
        if gate_bias is not None:
            for module in self.modules():
                if isinstance(module, GridAttentionGate):
                    nn.init.constant_(module.psi.bias, gate_bias)  # type: ignore[arg-type]

    @classmethod
    def from_config(
        cls, config: NetworkConfig, in_channels: int, out_channels: int
    ) -> "AttentionUNet3D":
        """The network that a configuration describes, for so many channels and classes."""
        return cls(in_channels, out_channels, **vars(config))

    @property
    @torch.jit.unused
    def divisor(self) -> tuple[int, int, int]:
        """Product of the strides along x, y, z: the period of the network's equivariance."""
        a, b, c = self.period
        return a, b, c

    def forward(self, x: Tensor) -> Any:
        """Logits: a list, finest first, in training; (B, out, X, Y, Z) in evaluation.

        Args:
            x: (B, in, X, Y, Z).
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
            skip, coefficients = gate(skips.pop(), signal)
            x = expand(torch.cat([skip, resize(x, skip, self.align_corners)], 1))
            signal = x  # gates the next finer skip
            decoded.insert(0, x)
            if coefficients.shape[1] > 0:
                attention.insert(0, coefficients)
        return self._logits(decoded, size), attention

    def _logits(self, decoded: list[Tensor], size: list[int]) -> list[Tensor]:
        """The heads' logits, finest first, or fused into one (B, out, X, Y, Z)."""
        logits: list[Tensor] = []
        for index, head in enumerate(self.heads):
            y = head(decoded[index])
            if self.deep_supervision == "fused":
                y = resize(y, decoded[0], self.align_corners)
            logits.append(y)
        if self.deep_supervision == "fused":
            logits = [self.final(torch.cat(logits, 1))]
        logits[0] = logits[0][:, :, : size[0], : size[1], : size[2]]  # what padding added
        return logits

    def _padded(self, x: Tensor) -> Tensor:
        """An input too short to be halved at every level, repeated at its ends until it can be."""
        missing = [max(0, self.period[axis] - x.shape[2 + axis]) for axis in range(3)]
        if sum(missing) == 0:
            return x
        return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")


def from_authors_state_dict(
    state_dict: Mapping[str, Tensor], *, align_corners: bool = False
) -> AttentionUNet3D:
    """The authors' CT network with the authors' weights, in eval mode.

    Shapes tell channels, classes and gates. Weights trained with torch 0.3 (they have no
    `num_batches_tracked`) need `align_corners=True`: its trilinear upsampling aligned corners.

    Args:
        state_dict: Of `unet_CT_multi_att_dsv_3D`, `unet_CT_single_att_dsv_3D` or `unet_CT_dsv_3D`
            (github.com/ozan-oktay/Attention-Gated-Networks).
        align_corners: Trilinear convention that the weights were trained with.

    Raises:
        AuthorsWeightsError: It is no state of one of these networks.
    """
    found = authors_weights.read(state_dict)
    network = AttentionUNet3D(
        found.in_channels,
        found.out_channels,
        found.channels,
        found.gate,
        align_corners=align_corners,
    )
    own = network.state_dict()
    for key in own:
        if key.endswith("num_batches_tracked") and key not in found.weights:
            found.weights[key] = own[key]
    try:
        network.load_state_dict(found.weights)
    except RuntimeError as error:
        raise NetworkError(f"the state does not fit the authors' network ({error})") from None
    return network.eval()


def _check(
    in_channels: int, out_channels: int, channels: Sequence[int], gate: str, supervision: str
) -> None:
    if gate not in GATES:
        raise NetworkError(f"gate must be double, single or none, got {gate!r}")
    if supervision not in ("fused", "per-scale", "none"):
        raise NetworkError(
            f"deep_supervision must be fused, per-scale or none, got {supervision!r}"
        )
    if len(channels) < 2 or min(channels) < 1:
        raise NetworkError(f"channels must be two or more positive numbers, got {channels}")
    if in_channels < 1 or out_channels < 1:
        raise NetworkError(f"channels must be positive, got {in_channels} in, {out_channels} out")


def _triple(stride: Sequence[int]) -> tuple[int, int, int]:
    if len(stride) != 3 or min(stride) < 1:
        raise NetworkError(f"a stride must be three positive factors, got {stride}")
    a, b, c = (int(factor) for factor in stride)
    return a, b, c


def _initialise(module: nn.Module) -> None:
    """He initialisation of convolutions; normalisation weights from N(1, 0.02), as the authors."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
