"""The authors' names for the weights of their CT networks, and ours.

Source: github.com/ozan-oktay/Attention-Gated-Networks, `unet_CT_*_dsv_3D`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attunet3d.core import ModelError

# Their blocks hold conv1.0 (convolution), conv1.1 (norm), conv2.0, conv2.1; ours 0, 1, 3, 4.
_IN_BLOCK = {"conv1.0": "0", "conv1.1": "1", "conv2.0": "3", "conv2.1": "4"}
_LEVELS = 5
_RULES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"conv([1-4])\.(conv[12]\.[01])", lambda m: f"encoder.{int(m[1]) - 1}.{_IN_BLOCK[m[2]]}"),
    (r"center\.(conv[12]\.[01])", lambda m: f"encoder.{_LEVELS - 1}.{_IN_BLOCK[m[1]]}"),
    (r"gating\.conv1\.([01])", lambda m: f"gating.{m[1]}"),
    (
        r"attentionblock([234])\.gate_block_([12])\.(W\.[01]|theta|phi|psi)",
        lambda m: f"skips.{4 - int(m[1])}.gates.{int(m[2]) - 1}.{m[3].replace('W', 'w')}",
    ),
    (
        r"attentionblock([234])\.combine_gates\.([01])",
        lambda m: f"skips.{4 - int(m[1])}.combine.{m[2]}",
    ),
    (
        r"up_concat([1-4])\.conv\.(conv[12]\.[01])",
        lambda m: f"decoder.{4 - int(m[1])}.{_IN_BLOCK[m[2]]}",
    ),
    (r"dsv([2-4])\.dsv\.0", lambda m: f"heads.{int(m[1]) - 1}"),
    (r"dsv1", lambda m: "heads.0"),
    (r"final", lambda m: "final"),
]


@dataclass(frozen=True, eq=False)
class AuthorsWeights:
    """Weights under our names, and the network that they belong to."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    gate: str
    """"double", "single" or "none"."""
    old: bool
    """Whether `num_batches_tracked` is missing: torch 0.3, whose upsampling aligned corners."""
    weights: dict[str, Tensor]

    def settings(self, align_corners: bool) -> dict[str, Any]:
        """The network's settings by name, with the trilinear convention it was trained with."""
        return {
            "channels": self.channels,
            "strides": ((2, 2, 2),) * (len(self.channels) - 1),
            "gate": self.gate,
            "align_corners": align_corners,
        }


def our_name(name: str) -> str:
    """Our name for one of the authors' entries.

    Raises:
        ModelError: Their CT networks have no such entry.

    Example:
        >>> our_name("attentionblock4.gate_block_1.W.0.bias")
        'skips.0.gates.0.w.0.bias'
    """
    stem, _, leaf = name.rpartition(".")
    for pattern, rename in _RULES:
        match = re.fullmatch(pattern, stem)
        if match:
            return f"{rename(match)}.{leaf}"
    raise ModelError(
        f"entry {name!r:.200} is in none of the authors' CT networks (unet_CT_multi_att_dsv_3D,"
        " unet_CT_single_att_dsv_3D, unet_CT_dsv_3D)",
        value=name,
        cure="convert a state of one of these",
    )


def read(state_dict: Mapping[str, Tensor]) -> AuthorsWeights:
    """Rename the entries of a state, and find out the network from their shapes.

    Raises:
        ModelError: An entry is unknown or missing, or the gates subsample by another factor than 2.
    """
    weights = {our_name(str(name).removeprefix("module.")): state_dict[name] for name in state_dict}
    counters = [
        name.replace("running_var", "num_batches_tracked")
        for name in weights
        if name.endswith("running_var")
    ]
    uncounted = [name for name in counters if name not in weights]
    weights |= {name: torch.tensor(0) for name in uncounted}
    gates = [n for n in (0, 1) if f"skips.0.gates.{n}.theta.weight" in weights]
    for name, value in weights.items():
        if name.endswith("theta.weight") and tuple(value.shape[2:]) != (2, 2, 2):
            raise ModelError(
                f"the gates of the state subsample by {list(value.shape[2:])} voxels, must be by 2",
                value=tuple(value.shape[2:]),
                cure="only networks with attention_dsample=(2, 2, 2), the authors' CT setting, fit",
            )
    try:
        return AuthorsWeights(
            in_channels=weights["encoder.0.0.weight"].shape[1],
            out_channels=weights["final.weight"].shape[0],
            channels=tuple(weights[f"encoder.{n}.0.weight"].shape[0] for n in range(_LEVELS)),
            gate=("none", "single", "double")[len(gates)],
            old=bool(uncounted),
            weights=weights,
        )
    except (KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"the state is not the whole of one of the authors' CT networks ({error})"
        ) from None
