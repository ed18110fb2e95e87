"""Losses, computed by hand on a few voxels."""

import math

import pytest
import torch

from attunet3d.core import SettingsError, TrainingConfig
from attunet3d.models import AttentionUNet3D
from attunet3d.training.loss import at_scale, build_loss

LABEL = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)


def logits_of(probability):
    """(1, 2, 2, 2, 2): every voxel has foreground probability `probability`."""
    margin = math.log(probability / (1 - probability))
    return torch.stack([torch.zeros(2, 2, 2), torch.full((2, 2, 2), margin)])[None]


def loss(name, logits, label=LABEL, **settings):
    config = TrainingConfig(loss=name, **settings)
    scales = logits if isinstance(logits, list) else [logits]
    return float(build_loss(config, scales[0].shape[1])(scales, label))


def test_soft_dice_by_hand_background_included():
    # foreground: overlap 1, masses 4 and 2; background: overlap 3, masses 4 and 6
    foreground, background = 2 * 1 / (4 + 2), 2 * 3 / (4 + 6)
    wanted = 1 - (foreground + background) / 2
    assert loss("dice", logits_of(0.5)) == pytest.approx(wanted, abs=1e-5)


def test_cross_entropy_by_hand():
    assert loss("ce", logits_of(0.5)) == pytest.approx(math.log(2), abs=1e-6)
    assert loss("ce", logits_of(0.8)) == pytest.approx(
        -(2 * math.log(0.8) + 6 * math.log(0.2)) / 8, abs=1e-5
    )


def test_dice_ce_is_their_sum():
    wanted = loss("dice", logits_of(0.7)) + loss("ce", logits_of(0.7))
    assert loss("dice_ce", logits_of(0.7)) == pytest.approx(wanted, abs=1e-5)


def test_bce_by_hand():
    # channel 0 has logit 0 against 6 ones; channel 1 logit ln 4 against 2 ones
    second = -(2 * math.log(0.8) + 6 * math.log(0.2)) / 8
    assert loss("bce", logits_of(0.8)) == pytest.approx((math.log(2) + second) / 2, abs=1e-5)


def test_focal_by_hand():
    # (1 - p_t)^2 · -ln p_t of the true class, over two channels
    wanted = (0.25 * math.log(2)) / 2
    assert loss("focal", logits_of(0.5)) == pytest.approx(wanted, abs=1e-5)


def test_tversky_by_hand():
    # foreground: tp 1, fp 3, fn 1; background: tp 3, fp 1, fn 3; weights 0.3 and 0.7
    scores = 1 / (1 + 0.3 * 3 + 0.7 * 1), 3 / (3 + 0.3 * 1 + 0.7 * 3)
    assert loss("tversky", logits_of(0.5)) == pytest.approx(1 - sum(scores) / 2, abs=1e-5)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "ce", "bce", "focal", "tversky"])
def test_a_perfect_answer_costs_nothing(name):
    perfect = torch.stack([1 - LABEL[0, 0].float(), LABEL[0, 0].float()])[None] * 60 - 30
    assert loss(name, perfect) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "tversky"])
def test_an_empty_label_rightly_left_empty_costs_nothing(name):
    empty = torch.zeros_like(LABEL)
    perfect = torch.stack([torch.full((2, 2, 2), 30.0), torch.full((2, 2, 2), -30.0)])[None]
    assert loss(name, perfect, empty) == pytest.approx(0, abs=1e-4)


def test_three_classes():
    label = torch.tensor([0, 1, 2, 2, 0, 1, 2, 2], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)
    assert loss("ce", torch.zeros(1, 3, 2, 2, 2), label) == pytest.approx(math.log(3), abs=1e-6)


def test_scales_weigh_one_half_of_the_one_before_the_coarsest_nothing_and_sum_to_one():
    same = [logits_of(0.8), logits_of(0.8)]
    assert loss("ce", same) == pytest.approx(loss("ce", logits_of(0.8)), abs=1e-6)
    coarse, coarsest = torch.zeros(1, 2, 1, 1, 1), torch.full((1, 2, 1, 1, 1), torch.nan)
    fine = loss("ce", logits_of(0.8))
    wanted = pytest.approx((fine + math.log(2) / 2) / 1.5)
    assert loss("ce", [logits_of(0.8), coarse, coarsest]) == wanted
    assert loss("ce", [logits_of(0.8), coarsest]) == pytest.approx(fine)


def test_labels_come_to_a_scale_by_nearest_neighbour():
    label = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 2, 2)
    small = at_scale(label, torch.zeros(1, 3, 2, 1, 1))
    assert small.dtype == torch.uint8
    assert small.flatten().tolist() == [7, 15]


@pytest.mark.parametrize("size", [48, 50, 37])
def test_coarse_heads_see_the_label_of_the_voxels_they_cover(size):
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
def test_ignored_voxels_count_nowhere(name):
    label = LABEL.clone()
    label[..., 0] = 255
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    criterion = build_loss(TrainingConfig(loss=name, ignore_index=255), 2)
    value = criterion([logits], label)
    value.backward()
    assert logits.grad[..., 0].abs().max() == 0
    assert logits.grad[..., 1].abs().min() > 0
    kept = criterion([logits[..., 1:].detach()], label[..., 1:])
    assert value.item() == pytest.approx(kept.item(), abs=1e-6)


def test_nothing_but_ignored_voxels_is_no_loss():
    criterion = build_loss(TrainingConfig(loss="dice_ce", ignore_index=255), 2)
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    value = criterion([logits], torch.full_like(LABEL, 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_scans_count_alike_in_dice_whatever_they_hold():
    full = torch.ones_like(LABEL)
    both = loss("dice", logits_of(0.5).repeat(2, 1, 1, 1, 1), torch.cat([LABEL, full]))
    apart = loss("dice", logits_of(0.5)), loss("dice", logits_of(0.5), full)
    assert both == pytest.approx(sum(apart) / 2, abs=1e-6)


def test_an_empty_label_found_full_costs_the_class_its_whole_share():
    empty = torch.zeros_like(LABEL)
    # foreground: overlap 0 of mass 4; background: overlap 4, masses 4 and 8
    assert loss("dice", logits_of(0.5), empty) == pytest.approx((1 + 1 - 8 / 12) / 2, abs=1e-5)


def test_dice_with_ignored_voxels_by_hand():
    label = LABEL.clone()
    label[0, 0, 0, 0] = 255  # six voxels count: four of background and both of foreground
    foreground, background = 2 * 1 / (3 + 2), 2 * 2 / (3 + 4)
    wanted = 1 - (foreground + background) / 2 + math.log(2)
    value = loss("dice_ce", logits_of(0.5), label, ignore_index=255)
    assert value == pytest.approx(wanted, abs=1e-5)


def test_dice_without_background_is_that_of_the_organs_alone():
    logits = logits_of(0.7)
    p = logits.softmax(1)[:, 1:]
    overlap = 2 * (p * LABEL).sum() / (p.sum() + LABEL.sum())
    assert loss("dice", logits, LABEL, dice_background=False) == pytest.approx(
        1 - float(overlap), abs=1e-5
    )


def test_batch_dice_joins_the_patches_before_the_fraction():
    logits = torch.cat([logits_of(0.7), logits_of(0.2)])
    label = torch.cat([LABEL, torch.zeros_like(LABEL)])
    p = logits.softmax(1)[:, 1:]
    joined = 1 - 2 * (p * label).sum() / (p.sum() + label.sum())
    value = loss("dice", logits, label, dice_background=False, dice_batch=True)
    assert value == pytest.approx(float(joined), abs=1e-5)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "ce", "bce", "focal", "tversky"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_judged_in_float32(name, dtype):
    logits = (torch.randn(1, 3, 4, 4, 4) * 8).to(dtype)
    label = torch.randint(0, 3, (1, 1, 4, 4, 4)).to(torch.uint8)
    value = build_loss(TrainingConfig(loss=name), 3)([logits], label)
    assert value.dtype == torch.float32
    assert float(value) == loss(name, logits.float(), label)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "ce", "bce", "focal", "tversky"])
def test_every_loss_falls_when_it_is_followed_downhill(name):
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    criterion = build_loss(TrainingConfig(loss=name), 2)
    before = criterion([logits], LABEL)
    before.backward()
    after = criterion([logits - 0.5 * logits.grad], LABEL)
    assert float(after.detach()) < float(before.detach())
    assert torch.equal((-logits.grad).argmax(1)[:, None], LABEL.long())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_any_type_come_to_a_scale(dtype):
    label = LABEL.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(at_scale(label.to(dtype), LABEL), LABEL)


def test_there_must_be_two_classes():
    with pytest.raises(SettingsError, match="2 classes or more, background included, got 1"):
        build_loss(TrainingConfig(), 1)


def test_an_unknown_loss_is_named():
    with pytest.raises(SettingsError, match="one of dice, dice_ce, ce, bce, focal, tversky"):
        build_loss(TrainingConfig(loss="hinge"), 2)
