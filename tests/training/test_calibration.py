"""Temperatures of logits whose truth was drawn at a known one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.core import Floats, read_json
from attunet3d.inference import Activation
from attunet3d.models import AttentionUNet3D
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.calibration import (
    Voxels,
    calibration_error,
    divide_logits_,
    fit_temperature,
    merge_reliability,
    reliability,
    sample_voxels,
    save_reliability,
)
from attunet3d.training.label_classes import LabelClasses

CPU = torch.device("cpu")
TWO = LabelClasses({0: "background", 1: "organ"}, (0, 1))
SIZE = (40, 40, 40)


def case(folder: Path, margins: Floats, label: Floats) -> CachedCase:
    folder.mkdir()
    np.save(folder / "image.npy", margins.astype(np.float16))
    np.save(folder / "label.npy", label.astype(np.uint8))
    np.save(folder / "foreground.npy", np.zeros((0, 3), np.int32))
    return CachedCase(folder.name, folder, SIZE, 0.0, (0, 0, 0))


def margins_as_logits(patch: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(patch), patch], 1)


def drawn(rng: np.random.Generator, temperature: float) -> tuple[Floats, Floats]:
    """Margins, and labels that are 1 with probability σ(margin / temperature)."""
    margins = rng.uniform(-4, 8, SIZE).astype(np.float16).astype(float)
    return margins, (rng.random(SIZE) < 1 / (1 + np.exp(-margins / temperature))).astype(float)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_finds_the_temperature_that_the_truth_was_drawn_at(
    tmp_path: Path, temperature: float
) -> None:
    cases = [case(tmp_path / "a", *drawn(np.random.default_rng(5), temperature))]
    voxels = sample_voxels(cases, margins_as_logits, (16, 16, 16), CPU, TWO, "softmax")
    assert voxels is not None
    assert fit_temperature(voxels) == pytest.approx(temperature, rel=0.05)
    after, before = (calibration_error(reliability(voxels, t)) for t in (temperature, 1.0))
    assert after < 0.01
    assert temperature == 1.0 or before > 3 * after


def test_the_probability_of_certain_background_does_not_add_up_to_an_organ(tmp_path: Path) -> None:
    """As in a scan: few voxels at the organ, overconfident there, and very many far from it."""
    rng = np.random.default_rng(1)
    margins, label = np.full(SIZE, -8.0), np.zeros(SIZE)
    near = margins[:, :4, :4].shape
    margins[:, :4, :4] = rng.uniform(-6, 10, near)
    label[:, :4, :4] = rng.random(near) < 1 / (1 + np.exp(-margins[:, :4, :4] / 3))
    voxels = sample_voxels(
        [case(tmp_path / "a", margins, label)], margins_as_logits, (16, 16, 16), CPU, TWO, "softmax"
    )
    assert voxels is not None
    probability = voxels.probabilities(fit_temperature(voxels))[0]
    assert float((probability * voxels.weights).sum()) == pytest.approx(label.sum(), rel=0.35)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_several_classes_share_one_temperature(activation: Activation) -> None:
    rng = np.random.default_rng(0)
    margins = torch.from_numpy(rng.normal(0, 4, (2, 20000)))
    p = (
        (margins / 3).sigmoid()
        if activation == "sigmoid"
        else torch.cat([torch.zeros(1, 20000), margins / 3]).softmax(0)[1:]
    )
    u = torch.from_numpy(rng.random((2 if activation == "sigmoid" else 1, 20000)))
    if activation == "sigmoid":
        truth = u < p
    else:
        truth = torch.stack([u[0] < p[0], (p[0] <= u[0]) & (u[0] < p.sum(0))])
    assert fit_temperature(Voxels(margins, truth, torch.ones(20000), activation)) == pytest.approx(
        3, rel=0.05
    )


def test_certain_background_counts_by_a_sample_ignored_voxels_and_partly_annotated_cases_do_not(
    tmp_path: Path,
) -> None:
    margins, label = np.full(SIZE, -9.0), np.zeros(SIZE)
    margins[0, 0, :6], label[0, 0, 3:5], label[1, 0, 0], label[2] = 1.0, 1, 1, 7
    one = case(tmp_path / "a", margins, label)
    partly = CachedCase("b", one.folder, SIZE, 0.0, (0, 0, 0), annotated=(1,))
    voxels = sample_voxels(
        [one, partly], margins_as_logits, (16, 16, 16), CPU, TWO, "softmax", ignored=7
    )
    assert voxels is not None
    undecided = voxels.weights == 1
    assert int(undecided.sum()) == 7  # six that are likely, one that is missed
    assert int(voxels.truth.sum()) == int(voxels.truth[:, undecided].sum()) == 3
    assert float(voxels.weights.sum()) == pytest.approx(39 * 40 * 40, rel=0.01)
    assert len(voxels.weights) < 1100
    assert reliability(voxels, 1.0)[:, 2].sum() == 7
    nothing = [CachedCase("b", one.folder, SIZE, 0.0, (0, 0, 0), annotated=(1,))]
    assert sample_voxels(nothing, margins_as_logits, (16, 16, 16), CPU, TWO, "softmax") is None


def test_bins_hold_mean_probability_share_and_number() -> None:
    p = torch.tensor([[0.02, 0.08, 0.55, 1.0]]).double()
    margins = p.clamp(1e-9, 1 - 1e-9).logit()
    truth = torch.tensor([[False, True, True, True]])
    found = reliability(Voxels(margins, truth, torch.ones(4), "softmax"), 1.0)
    assert found.round(6).tolist() == [[0.05, 0.5, 2], [0.55, 1, 1], [1, 1, 1]]


def test_the_bins_of_several_runs_are_put_together(tmp_path: Path) -> None:
    for name, logit in (("a", -1.0), ("b", 1.0)):  # a third of each belongs to the class
        (tmp_path / name).mkdir()
        margins = torch.tensor([[logit, logit, 1.0]]).double()
        truth = torch.tensor([[True, False, False]])
        save_reliability(Voxels(margins, truth, torch.ones(3), "softmax"), 2.0, tmp_path / name)
    merge_reliability([tmp_path / "a", tmp_path / "b"], tmp_path)
    found = read_json(tmp_path / "calibration.json")
    assert found["temperatures"] == [2.0, 2.0]
    low, high = found["before"]["bins"]
    assert low == pytest.approx([0.268941, 0.5, 2], abs=1e-6)
    assert high == pytest.approx([0.731059, 0.25, 4], abs=1e-6)
    assert (tmp_path / "calibration.png").stat().st_size > 1000
    merge_reliability([tmp_path / "a", tmp_path / "none"], tmp_path / "b")  # leaves b's own
    assert read_json(tmp_path / "b" / "calibration.json")["temperature"] == 2.0


@pytest.mark.parametrize("deep_supervision", ["fused", "per-scale", "none"])
def test_logits_are_divided_in_the_weights(deep_supervision: str) -> None:
    network = AttentionUNet3D(1, 3, channels=(4, 8, 16), deep_supervision=deep_supervision).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.inference_mode():
        before = network(x)
        assert divide_logits_(network, 2.5)
        assert torch.allclose(network(x), before / 2.5, atol=1e-6)
    assert not divide_logits_(torch.nn.Conv3d(1, 2, 1), 2.5)
