"""Labels that make the expected Dice largest: the same as the `rankseg` package gives."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from rankseg import RankSEG
from scipy import ndimage

from attunet3d.inference import chunks, large_arrays
from attunet3d.inference.decision import background, decide
from attunet3d.inference.dice_decision import DiceDecision
from attunet3d.inference.expected_dice import expected_dice, probabilities_of
from attunet3d.inference.predictor import Predictor
from tests.inference.grids import ORDERS, make_grid, slabs
from tests.known_network import ThresholdNetwork, ball_volume, checkpoint

SHAPE = (22, 18, 20)


def unsure(shape: Any, classes: Any, seed: int = 0, offset: float = -2.0) -> torch.Tensor:
    """Margins of `classes` - 1 organs, positive in some places, as float16 holds them exactly."""
    noise = np.random.default_rng(seed).normal(size=(classes - 1, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5)) * 40
    return torch.from_numpy(smooth + offset).half().float()


def labelled(
    margins: Any,
    network: Any,
    source: Any = None,
    values: Any = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    size: int = 3,
) -> tuple[Any, Any]:
    """The labels, and the Dice expected of each class."""
    source = source or network
    values = values or list(range(len(margins) + 1))
    labels = background(source)
    dice = DiceDecision(network, source, values, labels, activation)
    logits = margins
    if len(margins) > 1:
        logits = torch.cat([torch.zeros_like(margins[:1]), margins])
    for slab in slabs(logits, size):
        dice.add(slab)
    return labels, dice.decide()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("offset", [-3.0, -1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_authors_package(classes: int, offset: float, seed: int) -> None:
    margins = unsure(SHAPE, classes, seed, offset)
    labels, _ = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 2.0)))
    probabilities = probabilities_of(margins, "softmax").double()
    wanted = RankSEG(metric="dice", solver="RMA").predict(probabilities[None])[0].numpy()
    assert np.array_equal(labels, wanted)
    assert not np.array_equal(labels, probabilities.argmax(0).numpy())


def test_equals_the_authors_package_where_each_class_has_a_sigmoid() -> None:
    margins = unsure(SHAPE, 2, offset=-2)
    labels, _ = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)), activation="sigmoid")
    rule = RankSEG(metric="dice", solver="RMA", output_mode="multilabel")
    assert np.array_equal(labels == 1, rule.predict(margins.sigmoid()[None])[0, 0].numpy())


def test_voxels_of_no_class_are_background_where_each_class_has_a_sigmoid() -> None:
    margins = unsure(SHAPE, 4, offset=-2)
    labels, _ = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)), activation="sigmoid")
    rule = RankSEG(metric="dice", solver="RMA", output_mode="multilabel")
    masks = rule.predict(margins.sigmoid()[None])[0].numpy()
    assert np.array_equal(labels > 0, masks.any(0))
    assert all(
        (labels == index + 1)[mask & (masks.sum(0) == 1)].all() for index, mask in enumerate(masks)
    )


def test_a_class_that_is_nowhere_likely_is_left_out() -> None:
    margins = unsure(SHAPE, 3)
    margins[1] = -1.0  # p < 0.27 everywhere
    labels, dice = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)), values=[0, 4, 7])
    assert set(np.unique(labels)) == {0, 4}
    assert dice[1] == 0


def test_everything_unsure_goes_as_the_authors_package_has_it() -> None:
    margins = torch.full((2, *SHAPE), 0.0625) * torch.tensor([1.0, 2.0])[:, None, None, None]
    labels, _ = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)))
    probabilities = probabilities_of(margins, "softmax")
    wanted = RankSEG(metric="dice", solver="RMA").predict(probabilities[None])[0].numpy()
    assert np.array_equal(labels, wanted)


def test_the_expected_dice_is_that_of_the_labels() -> None:
    margins = unsure(SHAPE, 3)
    labels, dice = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)))
    for index in (1, 2):
        p = probabilities_of(margins, "softmax")[index].double().numpy()
        mask = labels == index
        assert dice[index - 1] == pytest.approx(expected_dice(p[mask].sum(), mask.sum(), p.sum()))


def test_without_a_background_that_competes_no_other_mask_is_expected_to_be_better() -> None:
    margins = unsure(SHAPE, 2)
    p = np.sort(margins.sigmoid().double().numpy().ravel())[::-1]
    scores = 2 * p.cumsum() / (p.sum() + np.arange(1, len(p) + 1) + 1)
    labels, dice = labelled(margins, make_grid(SHAPE, (1.0, 1.0, 1.0)), activation="sigmoid")
    assert dice[0] == pytest.approx(scores.max(), rel=1e-6)
    assert np.count_nonzero(labels) == scores.argmax() + 1


@pytest.mark.parametrize("order", [ORDERS[0], ORDERS[14], ORDERS[37]])
def test_on_the_scans_grid_in_portions_and_from_a_file(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_grid((22, 26, 18), (1.0, 0.9, 1.3), order=order)
    network = source.oriented("RAS").with_spacing((1.6, 1.5, 0.8))
    margins = unsure(network.shape, 4)
    values = [0, 3, 5, 9]
    whole, dice = labelled(margins, network, source, values, size=1000)
    logits = torch.cat([torch.zeros_like(margins[:1]), margins])
    argmax = decide(slabs(logits, 4), network, source, values)
    assert 0 < np.mean(whole != argmax) < 0.2
    monkeypatch.setattr(large_arrays, "MOST_BYTES", 1)
    monkeypatch.setattr(chunks, "TABLE_VALUES", 1000)
    monkeypatch.setattr(chunks, "PIECE_VALUES", 700)
    pieces, again = labelled(margins, network, source, values, size=2)
    assert np.array_equal(pieces, whole)
    assert again == pytest.approx(dice)


def test_the_predictor_decides_so_when_told_to_and_its_maps_stay() -> None:
    blurred = ball_volume()
    blurred.array[:] = ndimage.gaussian_filter(blurred.array.astype(float), 2)
    plain, dice = (
        Predictor([checkpoint(ThresholdNetwork())], "cpu", [f"inference.decision={name}"])
        for name in ("argmax", "dice")
    )
    usual, best = (here.segment(blurred, probabilities=True) for here in (plain, dice))
    assert usual.probabilities is not None
    assert best.probabilities is not None
    assert np.array_equal(usual.probabilities, best.probabilities)
    p = best.probabilities[..., 0].astype(np.float64)
    scores = [
        expected_dice(p[mask].sum(), mask.sum(), p.sum())
        for mask in (array == 5 for array in (usual.segmentation.array, best.segmentation.array))
    ]
    assert scores[1] > scores[0]
    assert best.record.settings["decision"] == "dice"
