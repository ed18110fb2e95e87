"""Losses, computed by hand on a few voxels."""

import math
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from attunet3d.core import SettingsError, TrainingConfig
from attunet3d.models import AttentionUNet3D
from attunet3d.training.loss import at_scale, build_loss
from tests.conftest import present

LOSSES = get_args(get_type_hints(TrainingConfig)["loss"])  # a new one is tested with the others
LABEL = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)


def logits_of(probability: float) -> Tensor:
    """(1, 2, 2, 2, 2): every voxel has foreground probability `probability`."""
    margin = math.log(probability / (1 - probability))
    return torch.stack([torch.zeros(2, 2, 2), torch.full((2, 2, 2), margin)])[None]


def config(name: str, **settings: Any) -> TrainingConfig:
    return TrainingConfig.from_dict({"loss": name, **settings})


def loss(name: str, logits: Tensor | list[Tensor], label: Tensor = LABEL, **settings: Any) -> float:
    scales = logits if isinstance(logits, list) else [logits]
    return float(build_loss(config(name, **settings), scales[0].shape[1])(scales, label))


def test_soft_dice_by_hand_background_included() -> None:
    # foreground: overlap 1, masses 4 and 2; background: overlap 3, masses 4 and 6
    foreground, background = 2 * 1 / (4 + 2), 2 * 3 / (4 + 6)
    wanted = 1 - (foreground + background) / 2
    assert loss("dice", logits_of(0.5)) == pytest.approx(wanted, abs=1e-5)


def test_cross_entropy_by_hand() -> None:
    assert loss("ce", logits_of(0.5)) == pytest.approx(math.log(2), abs=1e-6)
    assert loss("ce", logits_of(0.8)) == pytest.approx(
        -(2 * math.log(0.8) + 6 * math.log(0.2)) / 8, abs=1e-5
    )


def test_dice_ce_is_their_sum() -> None:
    wanted = loss("dice", logits_of(0.7)) + loss("ce", logits_of(0.7))
    assert loss("dice_ce", logits_of(0.7)) == pytest.approx(wanted, abs=1e-5)


def test_bce_by_hand() -> None:
    # channel 0 has logit 0 against 6 ones; channel 1 logit ln 4 against 2 ones
    second = -(2 * math.log(0.8) + 6 * math.log(0.2)) / 8
    assert loss("bce", logits_of(0.8)) == pytest.approx((math.log(2) + second) / 2, abs=1e-5)


def test_focal_by_hand() -> None:
    # (1 - p_t)^2 · -ln p_t of the true class, over two channels
    wanted = (0.25 * math.log(2)) / 2
    assert loss("focal", logits_of(0.5)) == pytest.approx(wanted, abs=1e-5)


def test_tversky_by_hand() -> None:
    # foreground: tp 1, fp 3, fn 1; background: tp 3, fp 1, fn 3; weights 0.3 and 0.7
    scores = 1 / (1 + 0.3 * 3 + 0.7 * 1), 3 / (3 + 0.3 * 1 + 0.7 * 3)
    assert loss("tversky", logits_of(0.5)) == pytest.approx(1 - sum(scores) / 2, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_answer_costs_nothing(name: str) -> None:
    perfect = torch.stack([1 - LABEL[0, 0].float(), LABEL[0, 0].float()])[None] * 60 - 30
    assert loss(name, perfect) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "tversky"])
def test_an_empty_label_rightly_left_empty_costs_nothing(name: str) -> None:
    empty = torch.zeros_like(LABEL)
    perfect = torch.stack([torch.full((2, 2, 2), 30.0), torch.full((2, 2, 2), -30.0)])[None]
    assert loss(name, perfect, empty) == pytest.approx(0, abs=1e-4)


def test_three_classes() -> None:
    label = torch.tensor([0, 1, 2, 2, 0, 1, 2, 2], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)
    assert loss("ce", torch.zeros(1, 3, 2, 2, 2), label) == pytest.approx(math.log(3), abs=1e-6)


def test_scales_weigh_one_half_of_the_one_before_the_coarsest_nothing_and_sum_to_one() -> None:
    same = [logits_of(0.8), logits_of(0.8)]
    assert loss("ce", same) == pytest.approx(loss("ce", logits_of(0.8)), abs=1e-6)
    coarse, coarsest = torch.zeros(1, 2, 1, 1, 1), torch.full((1, 2, 1, 1, 1), torch.nan)
    fine = loss("ce", logits_of(0.8))
    wanted = pytest.approx((fine + math.log(2) / 2) / 1.5)
    assert loss("ce", [logits_of(0.8), coarse, coarsest]) == wanted
    assert loss("ce", [logits_of(0.8), coarsest]) == pytest.approx(fine)


def test_labels_come_to_a_scale_by_nearest_neighbour() -> None:
    label = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 2, 2)
    small = at_scale(label, torch.zeros(1, 3, 2, 1, 1))
    assert small.dtype == torch.uint8
    assert small.flatten().tolist() == [7, 15]


@pytest.mark.parametrize("size", [48, 50, 37])
def test_coarse_heads_see_the_label_of_the_voxels_they_cover(size: int) -> None:
    """Also where strides do not divide the patch: the network repeats its last voxels there."""
    network = AttentionUNet3D(channels=(2, 2, 2, 2, 2), deep_supervision="per-scale").train()
    scales = network(torch.zeros(2, 1, size, 16, 16))
    label = torch.arange(size, dtype=torch.uint8).view(1, 1, -1, 1, 1).expand(1, 1, size, 16, 16)
    assert len(scales) == 4
    for scale, (stride, _, _) in zip(scales, network.strides, strict=False):
        found = at_scale(label, scale, (stride,) * 3)[0, 0, :, 0, 0]
        padded = torch.nn.functional.pad(
            torch.arange(size).float()[None], (0, -size % 16), mode="replicate"
        )[0]
        covered = padded.view(-1, stride)[: len(found)]
        assert scale.shape[2] == len(found)
        assert (found >= covered.min(1).values).all()
        assert (found <= covered.max(1).values).all()


@pytest.mark.parametrize("name", ["ce", "dice_ce"])
def test_ignored_voxels_count_nowhere(name: str) -> None:
    label = LABEL.clone()
    label[..., 0] = 255
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    criterion = build_loss(config(name, ignore_index=255), 2)
    value = criterion([logits], label)
    value.backward()
    gradient = present(logits.grad)
    assert gradient[..., 0].abs().max() == 0
    assert gradient[..., 1].abs().min() > 0
    kept = criterion([logits[..., 1:].detach()], label[..., 1:])
    assert value.item() == pytest.approx(kept.item(), abs=1e-6)


def test_nothing_but_ignored_voxels_is_no_loss() -> None:
    criterion = build_loss(TrainingConfig(loss="dice_ce", ignore_index=255), 2)
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    value = criterion([logits], torch.full_like(LABEL, 255))
    value.backward()
    assert value.item() == 0
    assert present(logits.grad).abs().max() == 0


def test_scans_count_alike_in_dice_whatever_they_hold() -> None:
    full = torch.ones_like(LABEL)
    both = loss("dice", logits_of(0.5).repeat(2, 1, 1, 1, 1), torch.cat([LABEL, full]))
    apart = loss("dice", logits_of(0.5)), loss("dice", logits_of(0.5), full)
    assert both == pytest.approx(sum(apart) / 2, abs=1e-6)


def test_an_empty_label_found_full_costs_the_class_its_whole_share() -> None:
    empty = torch.zeros_like(LABEL)
    # foreground: overlap 0 of mass 4; background: overlap 4, masses 4 and 8
    assert loss("dice", logits_of(0.5), empty) == pytest.approx((1 + 1 - 8 / 12) / 2, abs=1e-5)


def test_dice_with_ignored_voxels_by_hand() -> None:
    label = LABEL.clone()
    label[0, 0, 0, 0] = 255  # six voxels count: four of background and both of foreground
    foreground, background = 2 * 1 / (3 + 2), 2 * 2 / (3 + 4)
    wanted = 1 - (foreground + background) / 2 + math.log(2)
    value = loss("dice_ce", logits_of(0.5), label, ignore_index=255)
    assert value == pytest.approx(wanted, abs=1e-5)


def test_dice_without_background_is_that_of_the_organs_alone() -> None:
    logits = logits_of(0.7)
    p = logits.softmax(1)[:, 1:]
    overlap = 2 * (p * LABEL).sum() / (p.sum() + LABEL.sum())
    assert loss("dice", logits, LABEL, dice_background=False) == pytest.approx(
        1 - float(overlap), abs=1e-5
    )


def test_batch_dice_joins_the_patches_before_the_fraction() -> None:
    logits = torch.cat([logits_of(0.7), logits_of(0.2)])
    label = torch.cat([LABEL, torch.zeros_like(LABEL)])
    p = logits.softmax(1)[:, 1:]
    joined = 1 - 2 * (p * label).sum() / (p.sum() + label.sum())
    value = loss("dice", logits, label, dice_background=False, dice_batch=True)
    assert value == pytest.approx(float(joined), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_judged_in_float32(name: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(1, 3, 4, 4, 4) * 8).to(dtype)
    label = torch.randint(0, 3, (1, 1, 4, 4, 4)).to(torch.uint8)
    value = build_loss(config(name), 3)([logits], label)
    assert value.dtype == torch.float32
    assert float(value) == loss(name, logits.float(), label)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_it_is_followed_downhill(name: str) -> None:
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    criterion = build_loss(config(name), 2)
    before = criterion([logits], LABEL)
    before.backward()
    gradient = present(logits.grad)
    after = criterion([logits - 0.5 * gradient], LABEL)
    assert float(after.detach()) < float(before.detach())
    assert torch.equal((-gradient).argmax(1)[:, None], LABEL.long())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_any_type_come_to_a_scale(dtype: torch.dtype) -> None:
    label = LABEL.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(at_scale(label.to(dtype), LABEL), LABEL)


def test_there_must_be_two_classes() -> None:
    with pytest.raises(SettingsError, match="2 classes or more, background included, got 1"):
        build_loss(TrainingConfig(), 1)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(SettingsError, match=f"one of {', '.join(LOSSES)}"):
        build_loss(config("hinge"), 2)


# Three classes; class 2 was not annotated, so its voxels are among those of label 0.
PROBABILITIES = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])  # (voxels, classes)
PARTLY = PROBABILITIES.log().T.reshape(1, 3, 2, 1, 1)
PARTLY_LABEL = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 2, 1, 1)


def test_what_was_not_annotated_is_added_to_the_background_in_cross_entropy() -> None:
    criterion = build_loss(TrainingConfig(loss="ce"), 3)
    wanted = -(math.log(0.5 + 0.3) + math.log(0.8)) / 2
    assert float(criterion([PARTLY], PARTLY_LABEL, [(1,)])) == pytest.approx(wanted, abs=1e-6)


def test_what_was_not_annotated_is_added_to_the_background_in_dice() -> None:
    criterion = build_loss(TrainingConfig(loss="dice"), 3)
    # background: p 0.8 and 0.2 against the first voxel; class 1: p 0.2 and 0.8 against the second
    dice = 2 * 0.8 / (1 + 1)
    found = float(criterion([PARTLY], PARTLY_LABEL, [(1,)]))
    assert found == pytest.approx(1 - dice, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_no_class_is_pushed_down_where_it_was_not_annotated(name: str) -> None:
    """The loss does not change when probability moves between background and that class."""
    criterion = build_loss(config(name), 3)
    moved = torch.tensor([[0.3, 0.2, 0.5], [0.15, 0.8, 0.05]]).log().T.reshape(1, 3, 2, 1, 1)
    before, after = (criterion([x], PARTLY_LABEL, [(1,)]) for x in (PARTLY, moved))
    assert float(before) == pytest.approx(float(after), abs=1e-6)
    assert float(before) > 0


def test_a_label_that_was_not_annotated_counts_as_background_even_where_it_is_drawn() -> None:
    criterion = build_loss(TrainingConfig(loss="ce"), 3)
    drawn = torch.tensor([2, 1], dtype=torch.uint8).reshape(1, 1, 2, 1, 1)
    same = criterion([PARTLY], PARTLY_LABEL, [(1,)])
    assert torch.equal(criterion([PARTLY], drawn, [(1,)]), same)


def test_patches_of_one_batch_may_be_annotated_differently() -> None:
    criterion = build_loss(TrainingConfig(loss="dice_ce", ignore_index=9), 3)
    logits, label = torch.cat([PARTLY] * 3), torch.cat([PARTLY_LABEL] * 3)
    label[2, 0, 0] = 9
    annotated = [(1,), None, (1,)]
    alone = [criterion([logits[[n]]], label[[n]], [annotated[n]]) for n in range(3)]
    coarse = torch.zeros(3, 3, 1, 1, 1)
    together = criterion([logits, coarse], label, annotated)
    assert float(together) == pytest.approx(float(sum(alone)) / 3, abs=1e-6)


# Region 1 is made of labels 1 and 2, region 2 of label 2 alone.
REGIONS = {1: (1, 2), 2: (2,)}
REGION_LABEL = torch.tensor([0, 1, 2, 0], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)


def region_logits(whole: Sequence[float], part: Sequence[float]) -> Tensor:
    p = torch.tensor([[0.5] * 4, whole, part])
    return torch.logit(p).reshape(1, 3, 4, 1, 1)


def test_regions_that_overlap_have_binary_cross_entropies_of_their_own() -> None:
    criterion = build_loss(TrainingConfig(loss="ce"), 3, regions=REGIONS)
    logits = region_logits([0.1, 0.9, 0.8, 0.4], [0.2, 0.3, 0.6, 0.5])
    right = [0.9, 0.9, 0.8, 0.6, 0.8, 0.7, 0.6, 0.5]
    wanted = -sum(map(math.log, right)) / 8
    assert float(criterion([logits], REGION_LABEL)) == pytest.approx(wanted, abs=1e-5)
    first = -sum(map(math.log, right[:4])) / 4
    assert float(criterion([logits], REGION_LABEL, [(1,)])) == pytest.approx(first, abs=1e-5)


def test_regions_that_overlap_have_dice_of_their_own_and_background_none() -> None:
    criterion = build_loss(TrainingConfig(loss="dice"), 3, regions=REGIONS)
    logits = region_logits([0.1, 0.9, 0.8, 0.4], [0.2, 0.3, 0.6, 0.5])
    whole, part = 2 * 1.7 / (2.2 + 2), 2 * 0.6 / (1.6 + 1)
    wanted = 1 - (whole + part) / 2
    assert float(criterion([logits], REGION_LABEL)) == pytest.approx(wanted, abs=1e-4)
    logits[:, 0] = 7.0
    assert float(criterion([logits], REGION_LABEL)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["ce", "dice_ce", "bce"])
def test_ignored_voxels_count_in_no_region(name: str) -> None:
    criterion = build_loss(config(name, ignore_index=9), 3, regions=REGIONS)
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, 1, 1, requires_grad=True)
    label = REGION_LABEL.clone()
    label[0, 0, 1] = 9
    value = criterion([logits], label)
    value.backward()
    assert present(logits.grad)[:, 1:, 1].abs().max() == 0
    kept = [0, 2, 3]
    alone = criterion([logits.detach()[:, :, kept]], label[:, :, kept])
    assert value.item() == pytest.approx(float(alone), abs=1e-6)
