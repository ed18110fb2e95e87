"""Weights at the start of a training, by the name that the published code gives them."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda kernel: nn.init.normal_(kernel, 0.0, 0.02),
    "xavier": nn.init.xavier_uniform_,  # Glorot & Bengio 2010; the default of Keras
    "kaiming": nn.init.kaiming_normal_,  # He et al. 2015
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. 2014
}
CONVOLUTIONS = nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d
NORMS = nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.GroupNorm


def initialise_by_name(network: nn.Module, name: str) -> None:
    """Draw all weights of a network anew: kernels by `name`, norms from N(1, 0.02), biases 0.

    Args:
        network: Changed in place.
        name: "normal", "xavier", "kaiming" or "orthogonal"; "default" leaves it as it was made.

    Example:
        >>> layer = nn.Conv3d(1, 64, 3)
        >>> initialise_by_name(layer, "normal")
        >>> weight, bias = layer.weight.detach(), layer.bias.detach()
        >>> bool(0.018 < weight.std() < 0.022), float(bias.abs().max())
        (True, 0.0)
    """
    if name == "default":
        return
    for part in network.modules():
        if isinstance(part, CONVOLUTIONS):
            KERNELS[name](part.weight)
        elif isinstance(part, NORMS):
            nn.init.normal_(part.weight, 1.0, 0.02)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
