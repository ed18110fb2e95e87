"""The memory that a training step takes is near what autograd keeps."""

import pytest
import torch

from attunet3d.core import NetworkConfig
from attunet3d.models.build import build_network
from attunet3d.models.memory import FORM_SIZES, kept_bytes_per_voxel, weight_bytes
from tests.training.test_plan import kept_bytes

STRIDES = ((2, 2, 2),) * 4
RESIDUAL = NetworkConfig(block="residual", blocks=(1, 2, 2, 2, 2), downsampling="strided")


@pytest.mark.parametrize("form", FORM_SIZES)
def test_published_forms_keep_what_is_said_of_them(form: str) -> None:
    config = NetworkConfig.from_dict({"form": form, "width": 8})
    kept = kept_bytes(build_network(config, 1, 2), (32, 32, 16)) / (32 * 32 * 16)
    assert kept + 2 * 4 * (8 + 16) == pytest.approx(
        kept_bytes_per_voxel(config, STRIDES, 2), rel=0.15
    )


@pytest.mark.parametrize(
    "config",
    [RESIDUAL, *(NetworkConfig.from_dict({"form": form}) for form in FORM_SIZES)],
    ids=lambda config: config.form,
)
def test_weights_of_every_kind_of_network_are_counted(config: NetworkConfig) -> None:
    with torch.device("meta"):
        network = build_network(config, 1, 2)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert weight_bytes(config) == pytest.approx(count * 4 * 5, rel=0.1)


def test_residual_blocks_keep_about_what_is_said_of_them() -> None:
    kept = kept_bytes(build_network(RESIDUAL, 1, 2), (32, 32, 32)) / 32**3
    assert kept + 2 * 4 * (16 + 32) == pytest.approx(
        kept_bytes_per_voxel(RESIDUAL, STRIDES, 2), rel=0.15
    )
