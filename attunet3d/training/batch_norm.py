"""Running statistics of BatchNorm for weights that no forward pass in training has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_statistics(
    network: nn.Module,
    images: Iterable[Tensor],
    forward: Callable[[Tensor], Any] | None = None,
    frozen: nn.Module | None = None,
) -> None:
    """Replace the running statistics of every BatchNorm layer by means over `images`.

    An average of weights needs statistics of its own: those of the network that was averaged
    belong to other features, and can turn the answer into background everywhere (Izmailov et al.
    2018, section 3.2). As `torch.optim.swa_utils.update_bn`, with dropout off as in inference.

    Args:
        network: Left in eval mode; a network without BatchNorm is left alone.
        images: (B, C, X, Y, Z) each; the same images in the same order give the same statistics.
            Images with NaN or infinities are left out.
        forward: How to run the network on an image; `network` itself by default.
        frozen: A part of the network whose statistics stay.

    Example:
        >>> layer = nn.BatchNorm3d(1)
        >>> reestimate_statistics(layer, [torch.full((2, 1, 2, 2, 2), 5.0)])
        >>> layer.running_mean.item(), layer.running_var.item(), layer.training
        (5.0, 0.0, False)
    """
    network.eval()
    layers = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    kept = set() if frozen is None else {*frozen.modules()}
    layers = [layer for layer in layers if layer.track_running_stats and layer not in kept]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over all images
        layer.train()
    for image in images:
        if bool(torch.isfinite(image).all()):
            (forward or network)(image)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
