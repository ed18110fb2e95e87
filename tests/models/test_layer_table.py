"""The table of layers: numbers that are known, of a network that stays as it is."""

from typing import Any

import torch

from attunet3d.core import NetworkConfig, find_config
from attunet3d.models import LayerRow, build_network
from attunet3d.models.layer_table import layer_table, layer_text
from attunet3d.models.summary import config_summary

VOXELS = 32**3


def rows(**settings: Any) -> dict[str, LayerRow]:
    network = build_network(NetworkConfig(**settings), 1, 2)
    return {row.name: row for row in layer_table(network, (32, 32, 32))}


def test_parameters_add_up_to_those_of_the_authors_network() -> None:
    assert sum(row.parameters for row in rows().values()) == 6_472_784


def test_shapes_and_arithmetic_are_those_worked_out_by_hand() -> None:
    found = rows()
    assert found["encoder.0"].shape == (16, 32, 32, 32)
    assert found["encoder.0"].flops == 2 * 27 * (1 * 16 + 16 * 16) * VOXELS
    assert found["encoder.0"].output_bytes == 4 * 16 * VOXELS
    assert found["encoder.4"].shape == (256, 2, 2, 2)
    assert found["encoder.4"].flops == 2 * 27 * (128 * 256 + 256 * 256) * 8
    assert found["decoder.3"].flops == 2 * 27 * ((16 + 32) * 16 + 16 * 16) * VOXELS
    assert found["heads.0"].flops == 2 * 16 * 2 * VOXELS
    # 141,000 operations per voxel, also counted by torch's counter on the authors' own code
    assert round(sum(row.flops for row in found.values()) / VOXELS, -3) == 141_000


def test_every_head_that_is_trained_is_listed() -> None:
    assert rows(deep_supervision="per-scale")["heads.3"].shape == (2, 4, 4, 4)
    assert "heads.1" not in rows(deep_supervision="none")


def test_a_2d_form_over_slices_is_listed_block_by_block() -> None:
    found = rows(form="2d_nearest")
    assert sum(row.parameters for row in found.values()) == 34_878_638
    assert found["network.Conv1"].shape == (64, 32, 32)  # of one slice
    assert found["network.Conv1"].output_bytes == 4 * 64 * VOXELS  # of all
    assert found["network.Conv1"].flops == 2 * 9 * (3 * 64 + 64 * 64) * VOXELS
    assert {"network.Att5", "network.Up_conv2", "network.Conv_1x1"} < found.keys()


def test_a_patch_that_trains_in_a_batch_of_two_is_listed() -> None:
    found = {row.name: row for row in layer_table(build_network(NetworkConfig(), 1, 2), (16,) * 3)}
    assert found["encoder.4"].shape == (256, 1, 1, 1)
    assert found["encoder.4"].flops == 2 * 27 * (128 * 256 + 256 * 256)
    assert found["encoder.4"].output_bytes == 4 * 256  # of one patch


def test_the_network_itself_stays_as_it_is() -> None:
    network = build_network(NetworkConfig(channels=(4, 8)), 1, 2).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    before = network(image)
    layer_table(network, (8, 8, 8))
    assert not network.training
    assert torch.equal(network(image), before)


def test_the_text_ends_with_the_sums() -> None:
    last = layer_text(list(rows().values())).splitlines()[-1].split()
    assert last[:3] == ["sum", "6472784", "4.62"]


def test_a_configuration_is_shown_by_what_differs_from_the_defaults() -> None:
    text = config_summary(find_config("oktay2018"))
    assert "training.patch_size" in text
    assert "training.seed" not in text
    assert "one patch of 160×160×96 voxels; training takes" in text
    assert "the plan chooses the size" in config_summary(find_config("pancreas_ct"))
