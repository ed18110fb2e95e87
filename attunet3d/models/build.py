"""The one place where settings become a network."""

from typing import TypeAlias

from attunet3d.core import NetworkConfig
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.mean_network import MeanNetwork
from attunet3d.models.published.forms import FORMS, published_network
from attunet3d.models.published.network import PublishedNetwork
from attunet3d.models.slices import SliceNetwork

Network: TypeAlias = AttentionUNet3D | PublishedNetwork | SliceNetwork | MeanNetwork
OF_FORMS = ("form", "slices", "width")  # settings that the main network does not have


def build_network(
    config: NetworkConfig, in_channels: int, out_channels: int, members: int = 1
) -> Network:
    """Make the network that `config` describes, with fresh weights; it takes and returns volumes.

    Args:
        config: Settings of the network.
        in_channels: Channels of the scan; CT has 1.
        out_channels: Classes, background included.
        members: Of more than one network the mean of the logits is returned.

    Example:
        >>> network = build_network(NetworkConfig(channels=(4, 8)), in_channels=1, out_channels=2)
        >>> network.divisor
        (2, 2, 2)
        >>> build_network(NetworkConfig(form="2d_nearest", width=4), 1, 2).divisor
        (16, 16, 1)
    """
    if members > 1:
        return MeanNetwork(
            [build_network(config, in_channels, out_channels) for _ in range(members)]
        )
    if config.form == "attention_unet":
        arguments = {name: value for name, value in vars(config).items() if name not in OF_FORMS}
        return AttentionUNet3D(in_channels, out_channels, **arguments)
    if FORMS[config.form].axes == 3:
        return published_network(config.form, in_channels, out_channels, config.width)
    seen = in_channels * config.slices
    return SliceNetwork(
        published_network(config.form, seen, out_channels, config.width), config.slices
    )
