"""The one place where settings become a network."""

from attunet3d.core import NetworkConfig
from attunet3d.models.attention_unet import AttentionUNet3D

Network = AttentionUNet3D


def build_network(config: NetworkConfig, in_channels: int, out_channels: int) -> Network:
    """Make the network that `config` describes, with fresh weights.

    Args:
        config: Settings of the network.
        in_channels: Channels of the scan; CT has 1.
        out_channels: Classes, background included.

    Example:
        >>> network = build_network(NetworkConfig(channels=(4, 8)), in_channels=1, out_channels=2)
        >>> network.divisor
        (2, 2, 2)
    """
    arguments = dict(vars(config))
    for name in ("form", "slices"):
        del arguments[name]
    return AttentionUNet3D(in_channels, out_channels, **arguments)
