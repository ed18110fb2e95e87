"""Activation checkpointing: blocks of a network forget their features and compute them again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost": what a block keeps for the
backward pass shrinks to its input, for one more forward pass of the block.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

Context = AbstractContextManager[None]


def checkpoint_blocks(network: nn.Module) -> None:
    """Checkpoint the outermost parts of a network that hold two convolutions or more.

    Loss, gradients and running statistics stay the same to the last bit.

    Example:
        >>> network = nn.ModuleList([nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 1, 3))])
        >>> checkpoint_blocks(network)
        >>> network[0].forward.func is checkpointed
        True
    """
    for block in _blocks(network):
        block.forward = partial(checkpointed, block, block.forward)


def checkpointed(block: nn.Module, forward: Any, *args: Any) -> Any:
    """Call the forward pass of a block; in training its features are computed again later."""
    if not block.training:
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: _contexts(block))


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for part in network.children():
        convolutions = sum(isinstance(module, _ConvNd) for module in part.modules())
        if isinstance(part, nn.ModuleList):
            yield from _blocks(part)
        elif convolutions > 1:
            yield part


def _contexts(block: nn.Module) -> tuple[Context, Context]:
    """What surrounds the first forward pass and the second, which counts no statistics again."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    layers = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(layer.momentum, _copy(layer.num_batches_tracked)) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:  # the pass may end early, as soon as all that is needed is there
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and count is not None:
                layer.num_batches_tracked.copy_(count)


def _copy(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.clone()
