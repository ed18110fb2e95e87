"""A model whose answer is known: a voxel belongs to the ball where it is above 170 HU.

The network is an `AttentionUNet3D` whose weights hand the image through unchanged (shifted so that
no ReLU clips it) to a head that subtracts the threshold; no training, no chance.
"""

from pathlib import Path
from typing import Any

import torch

from attunet3d.core import Config
from attunet3d.models import build_network, save_model

THRESHOLD_HU = 170.0  # halfway between the body and the ball
SCALE_HU = 100.0
SHIFT = 64.0  # keeps values positive; a power of two
SETTINGS = [
    "network.channels=[2, 2]",
    "network.gate=none",
    "network.deep_supervision=none",
    "network.norm=batch",
    "preprocessing.spacing_mm=[2, 2, 2]",
    "preprocessing.hu_window=[-1000, 1000]",
    "preprocessing.mean_hu=0",
    f"preprocessing.std_hu={SCALE_HU}",
    "preprocessing.crop_to_body=false",
    "training.patch_size=[64, 64, 64]",
    "inference.overlap=0",
]


@torch.no_grad()
def make_model(folder: Path) -> Path:
    """Write `model.safetensors` into `folder`, which is made; returns the folder."""
    config = Config().with_overrides(SETTINGS)
    network: Any = build_network(config.network, 1, 2).eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.fill_(1 - 1e-5)  # BatchNorm adds 1e-5 before the root
        elif name.endswith(("weight", "bias", "running_mean")):
            value.fill_(1 if name.endswith("weight") and value.ndim == 1 else 0)
    first, second = network.encoder[0][0], network.encoder[0][3]
    third, fourth = network.decoder[0][0], network.decoder[0][3]
    for layer in (first, second, third, fourth):
        layer.weight[0, 0, 1, 1, 1] = 1
    first.bias[0] = SHIFT
    network.heads[0].weight[1, 0] = 1
    network.heads[0].bias[1] = -SHIFT - THRESHOLD_HU / SCALE_HU
    folder.mkdir(parents=True, exist_ok=True)
    save_model(
        folder / "model.safetensors", network.state_dict(), config, {0: "background", 1: "ball"}
    )
    return folder
