"""How a network's features lie in memory: channels last, where its kernels are fastest.

oneDNN and cuDNN convolve, and torch pools, normalises and interpolates, fastest when the channels
of a voxel are neighbours in memory. One tensor in another layout is enough to undo it: the next
kernel copies, or takes a path twenty times as slow.

    contiguous      C X Y Z    one channel after the other
    channels last   X Y Z C    one voxel after the other
"""

from typing import Any

import torch
from torch import Tensor, nn

CHANNELS_LAST, CONTIGUOUS = torch.channels_last_3d, torch.contiguous_format


def fastest_layout(network: nn.Module) -> torch.memory_format:
    """Return channels last, unless layers are 2D."""
    other = any(isinstance(m, nn.Conv2d) for m in network.modules())
    return CONTIGUOUS if other else CHANNELS_LAST


def copy_in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Copy `x` (B, C, X, Y, Z) in `layout`, also where C = 1.

    The strides of one channel pass for either layout until they are written anew, so torch's own
    `contiguous` keeps them, and the first convolution would answer in the other layout.
    """
    return x.clone(memory_format=layout)


def keep_gradients_dense(network: nn.Module, layout: torch.memory_format) -> None:
    """Give every part of a concatenation its gradient in `layout` instead of as a strided slice.

    The gradient of `torch.cat` is a slice of the channels for each part. The CPU's backward passes
    of BatchNorm and of trilinear interpolation take 10 to 20 times as long on a slice; the values
    are the same. Adds a hook to each convolution, because concatenations are inputs of those.
    """

    def make_dense(gradients: tuple[Any, ...], _: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if g is None else g.contiguous(memory_format=layout) for g in gradients)

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        made_by = arguments[0].grad_fn
        if made_by is not None and made_by.name() == "CatBackward0":
            made_by.register_hook(make_dense)

    for part in network.modules():
        if isinstance(part, nn.Conv3d):
            part.register_forward_pre_hook(hook)
