"""Dice on the network's grid, by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.validation import predict_classes, score_network_grid
from tests.training.conftest import stored_case as case

CPU = torch.device("cpu")
TWO = LabelClasses({0: "background", 1: "organ"}, (0, 1))
THREE = LabelClasses({0: "background", 1: "organ", 2: "tumour"}, (0, 1, 2))


def by_value(patch: Tensor) -> Tensor:
    """Logits whose largest is the class that the image itself holds."""
    return torch.cat([-((patch - index) ** 2) for index in range(3)], 1)


def test_classes_come_back_for_sizes_that_do_not_divide_the_window(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 3, (9, 7, 11))
    found = predict_classes(case(tmp_path / "a", image, image, 3), by_value, (4, 4, 4), CPU, THREE)
    assert (found == image).all()


def test_windows_overlap_by_a_quarter(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def counted(patch: Tensor) -> Tensor:
        seen.extend(patch)
        return by_value(patch)

    image = np.zeros((16, 16, 40))
    predict_classes(case(tmp_path / "a", image, image, 3), counted, (16, 16, 16), CPU, THREE)
    assert len(seen) == 3  # steps of 12: 0, 12, 24


def test_mean_over_the_cases_that_have_a_class(tmp_path: Path) -> None:
    label = np.zeros((4, 4, 4))
    label[0, 0, :2] = 1
    answer = np.zeros((4, 4, 4))
    answer[0, 0, 1:4] = 1  # one voxel in common, of 2 and 3
    empty = np.zeros((4, 4, 4))
    cases = [case(tmp_path / "a", answer, label, 3), case(tmp_path / "b", empty, empty, 3)]
    scores = score_network_grid(cases, by_value, (4, 4, 4), CPU, THREE)
    assert scores.dice == {1: pytest.approx(2 * 1 / 5)}
    assert scores.iou == {1: pytest.approx(1 / 4)}
    assert scores.accuracy == pytest.approx((61 / 64 + 1) / 2)  # background counts here


def test_ignored_voxels_count_nowhere(tmp_path: Path) -> None:
    label = np.zeros((4, 4, 4))
    label[0, 0, 0], label[1] = 1, 255
    answer = np.ones((4, 4, 4))
    answer[2:] = answer[0, 1:] = answer[0, 0, 1:] = 0
    cases = [case(tmp_path / "a", answer, label, 2)]
    assert score_network_grid(cases, by_value, (4, 4, 4), CPU, TWO, 255).dice == {1: 1.0}


def test_overlapping_regions_are_written_over_one_another_and_scored_whole(tmp_path: Path) -> None:
    """The whole is label 1 or 2, the part 2; the part, written last, stays within the whole."""
    label = np.zeros((4, 4, 4))
    label[0, 0] = 1, 1, 2, 2
    answer = np.zeros((4, 4, 4))
    answer[0, 0] = 1, 2, 2, 0
    regions = LabelClasses(
        {0: "background", 1: "whole", 2: "part"}, (0, 1, 2), {1: (1, 2), 2: (2,)}, (1, 2)
    )

    def overlapping(patch: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(patch), patch * 9 - 1, patch - 1.5], 1)

    cases = [case(tmp_path / "a", answer, label, 3)]
    assert predict_classes(cases[0], overlapping, (4, 4, 4), CPU, regions)[0, 0].tolist() == [
        *(1, 2, 2, 0)
    ]
    scores = score_network_grid(cases, overlapping, (4, 4, 4), CPU, regions)
    assert scores.dice == {1: pytest.approx(2 * 3 / 7), 2: pytest.approx(2 * 1 / 4)}
    assert scores.accuracy == pytest.approx(62 / 64)


def test_a_region_is_right_whichever_of_its_values_a_voxel_has(tmp_path: Path) -> None:
    """The whole, of the values 1 and 2, is written as 1; ignored voxels are right nowhere."""
    label = np.zeros((4, 4, 4))
    label[0, 0] = 1, 2, 2, 255
    answer = np.zeros((4, 4, 4))
    answer[0, 0] = 1, 1, 0, 0
    whole = LabelClasses({0: "background", 1: "whole"}, (0, 1, 2), {1: (1, 2)}, (1,))
    cases = [case(tmp_path / "a", answer, label, 3)]
    scores = score_network_grid(cases, by_value, (4, 4, 4), CPU, whole, 255)
    assert scores.accuracy == pytest.approx(62 / 63)


def test_cases_count_for_what_was_annotated_in_them_only(tmp_path: Path) -> None:
    label = np.zeros((4, 4, 4))
    label[0, 0, :2] = 1
    answer = label.copy()
    answer[1] = 2
    partly = dataclasses.replace(case(tmp_path / "a", answer, label, 3), annotated=(1,))
    scores = score_network_grid([partly], by_value, (4, 4, 4), CPU, THREE)
    assert scores.dice == {1: 1.0}
    assert scores.accuracy is None  # whether class 2 is right is not known
