"""Coarse to fine: the box of a coarse answer, and the two ways back to the whole scan."""

from typing import Any

import numpy as np
import pytest
import torch

from attunet3d.core import ModelError
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume
from attunet3d.inference.localisation import Faces, box_around
from attunet3d.inference.predictor import Predictor
from attunet3d.inference.sliding_window import Slab
from tests.known_network import ThresholdNetwork, ball_volume, checkpoint

SHAPE = (60, 56, 44)
AFFINE = np.diag([2.0, 2, 2, 1])
COARSE = "preprocessing.spacing_mm=[4, 4, 4]"


class Recorder(ThresholdNetwork):
    """Remembers how many voxels it was shown."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__(threshold)
        self.voxels = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.voxels += x.numel()
        return super().forward(x)


def predictor(
    fine: Recorder | ThresholdNetwork, coarse: ThresholdNetwork, **changes: Any
) -> Predictor:
    settings = ["inference.mode=whole"]
    locator = checkpoint(coarse, COARSE, **changes)
    return Predictor([checkpoint(fine)], "cpu", settings, locator)


def two_balls(apart_mm: float = 60.0) -> Volume:
    """A ball of 300 HU, and one of 150 HU `apart_mm` from it along z, on a 2 mm grid."""
    shape = (40, 40, 80)
    z = np.arange(80) * 2.0
    x = np.arange(40) * 2.0
    plane = (x[:, None, None] - 40) ** 2 + (x[None, :, None] - 40) ** 2
    array = np.zeros(shape, np.int16, order="F")
    array[plane + (z - 40) ** 2 <= 12**2] = 300
    array[plane + (z - 40 - apart_mm) ** 2 <= 12**2] = 150
    return Volume(array, Grid(shape, AFFINE), name="two.nii.gz")


# --- the box -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_box_holds_the_coarse_foreground_and_the_margin(
    flip: tuple[int, int, int], order: tuple[int, int, int]
) -> None:
    fine = Grid((48, 48, 48), AFFINE)
    affine = np.eye(4)
    affine[:3, :3] = 0
    corner = np.zeros(3)
    for column, axis in enumerate(order):
        affine[axis, column] = 4.0 * flip[axis]
        corner[axis] = 1.0 if flip[axis] > 0 else 93.0  # outermost coarse centres, as in fine
    affine[:3, 3] = corner
    coarse = Grid((24, 24, 24), affine)
    labels = np.zeros(coarse.shape, np.uint8)
    centres = coarse.to_world(np.moveaxis(np.indices(coarse.shape), 0, -1))
    labels[(np.abs(centres - [33, 45, 57]) < 3.0).all(-1)] = 2  # faces at 31 … 35 mm, and so on
    box = box_around(labels, coarse, fine, margin_mm=8)
    # Fine voxel i spans 2i - 1 … 2i + 1 mm: the first is that of 31 - 8 mm, and so on.
    assert box == (slice(12, 22), slice(18, 28), slice(24, 34))


def test_box_is_cut_at_the_grid_and_empty_is_none() -> None:
    grid = Grid((10, 10, 10), np.diag([4.0, 4, 4, 1]))
    labels = np.zeros(grid.shape, np.uint8)
    assert box_around(labels, grid, grid) is None
    labels[0, 9, 5] = 1
    assert box_around(labels, grid, grid, margin_mm=4) == (slice(0, 2), slice(8, 10), slice(4, 7))
    moved = np.array(grid.affine)
    moved[0, 3] = 400
    assert box_around(labels, grid, Grid((10, 10, 10), moved)) is None


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "voxel", [(0, 2, 2), (4, 2, 2), (2, 0, 2), (2, 4, 2), (2, 2, 0), (2, 2, 4)]
)
def test_faces_are_touched_only_where_the_image_goes_on(
    voxel: tuple[int, int, int], classes: int
) -> None:
    logits = torch.full((classes, 5, 5, 5), -1.0)
    logits[0] = 0
    logits[classes - 1][voxel] = 1
    margin = logits[1:] if classes == 2 else logits
    inside = (slice(3, 8),) * 3
    for box, shape, touched in [
        (inside, (11, 11, 11), True),
        (((slice(0, 5),) * 3), (5, 5, 5), False),  # the box is the image
    ]:
        faces = Faces(box, shape)
        for slab in (Slab(0, margin[..., :2]), Slab(2, margin[..., 2:])):
            faces.note(slab)
        assert faces.touched is touched


# --- the predictor -----------------------------------------------------------------------------


def test_located_answer_is_that_of_the_whole_at_a_fraction_of_the_voxels() -> None:
    volume = ball_volume(SHAPE, AFFINE, radius_mm=12)
    fine = Recorder()
    here = predictor(fine, ThresholdNetwork())
    prediction = here.segment(volume, probabilities=True)
    assert np.array_equal(prediction.segmentation.array == 5, volume.array == 300)
    assert fine.voxels < 0.35 * volume.array.size
    assert prediction.record.fallbacks == []
    assert prediction.record.seconds["locating"] > 0
    assert prediction.record.settings["locator"] == "f" * 64
    assert prediction.probabilities is not None
    assert prediction.probabilities[0, 0, 0, 0] == 0  # outside the box


def test_empty_coarse_answer_falls_back_to_the_whole() -> None:
    volume = ball_volume(SHAPE, AFFINE, radius_mm=12)
    fine = Recorder()
    prediction = predictor(fine, ThresholdNetwork(threshold=99.0)).segment(volume)
    assert np.array_equal(prediction.segmentation.array == 5, volume.array == 300)
    assert fine.voxels >= volume.array.size
    assert prediction.record.fallbacks == ["the locator found nothing: whole scan"]


def test_answer_that_reaches_the_box_falls_back_to_the_whole() -> None:
    # The locator sees the bright ball only; the fine network both, and the box cuts the other.
    volume = two_balls(apart_mm=32)
    prediction = predictor(ThresholdNetwork(), ThresholdNetwork(threshold=2.0)).segment(volume)
    assert np.array_equal(prediction.segmentation.array == 5, volume.array > 100)
    assert prediction.record.fallbacks == ["the answer reached the located box: whole scan"]


def test_what_lies_apart_from_the_box_is_left_out() -> None:
    volume = two_balls(apart_mm=60)
    prediction = predictor(ThresholdNetwork(), ThresholdNetwork(threshold=2.0)).segment(volume)
    assert np.array_equal(prediction.segmentation.array == 5, volume.array == 300)


def test_locator_must_know_the_same_labels() -> None:
    with pytest.raises(ModelError, match="its labels"):
        predictor(ThresholdNetwork(), ThresholdNetwork(), labels={0: "background", 5: "liver"})


def test_without_a_locator_the_settings_say_so() -> None:
    assert Predictor([checkpoint()], "cpu").settings["locator"] is None
