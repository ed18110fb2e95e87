"""Post-processing is chosen where it helps by more than noise, and nowhere else."""

import numpy as np
import pytest

from attunet3d.core import Mask, SettingsError, Size
from attunet3d.core.model_config import InferenceConfig
from attunet3d.evaluation.post_processing import LARGEST, Components, choose, settings
from attunet3d.imaging import Grid
from attunet3d.inference import PostProcessing

GRID = Grid((20, 20, 20), np.diag([10.0, 10.0, 10.0, 1.0]))  # 1 ml per voxel
PATIENTS = [f"patient {number}" for number in range(12)]


def box(mask: Mask, corner: Size, size: int) -> Mask:
    """A cube of true voxels."""
    mask[tuple(slice(start, start + size) for start in corner)] = True
    return mask


def case(organ: int, *others: int) -> Components:
    """The organ found right but for one voxel, and other cubes of these sizes that are wrong."""
    reference = box(np.zeros((20, 20, 20), bool), (1, 1, 1), organ)
    predicted = reference.copy()
    predicted[1, 1, 1] = False
    for number, size in enumerate(others):
        box(predicted, (12, 12, 5 * number), size)
    return Components.of(predicted, reference, GRID)


def test_the_dice_of_a_rule_is_that_of_the_changed_label_map() -> None:
    found = case(4, 3, 1)
    assert found.voxels == (27, 63, 1)  # in the order of their first voxels, i fastest
    assert found.right == (0, 63, 0)
    assert found.dice() == pytest.approx(2 * 63 / (64 + 91))
    assert found.dice(LARGEST) == pytest.approx(2 * 63 / (64 + 63))
    assert found.dice(2.0) == pytest.approx(2 * 63 / (64 + 90))
    empty = np.zeros((20, 20, 20), bool)
    nothing = Components.of(box(empty.copy(), (0, 0, 0), 1), empty, GRID)
    assert (nothing.dice(), nothing.dice(LARGEST), nothing.dice(2.0)) == (0, 0, 1)
    assert Components.of(empty, empty, GRID).dice(LARGEST) == 1


def test_stray_pieces_larger_than_every_size_leave_the_largest() -> None:
    found = choose([case(6, 3) for _ in PATIENTS], PATIENTS)
    assert found.chosen == LARGEST
    assert found.gain == pytest.approx(2 * 215 / (216 + 215) - 2 * 215 / (216 + 242))
    assert 0 < found.low <= found.gain <= found.high


def test_an_organ_of_two_parts_with_crumbs_gets_a_smallest_size() -> None:
    def halves(crumbs: int) -> Components:
        reference = box(np.zeros((20, 20, 20), bool), (1, 1, 1), 4)
        box(reference, (12, 1, 1), 4)
        predicted = reference.copy()
        for number in range(crumbs):
            box(predicted, (2 * number, 18, 18), 1)
        return Components.of(predicted, reference, GRID)

    found = choose([halves(4 + n % 3) for n, _ in enumerate(PATIENTS)], PATIENTS)
    assert found.chosen == 2.0  # the smallest size that removes pieces of 1 ml
    chosen = {"kidney": found, "liver": choose([case(6, 3)] * 12, PATIENTS)}
    assert settings(chosen) == {"keep_largest": ["liver"], "smallest_ml": {"kidney": 2.0}}


def test_what_helps_one_patient_of_many_or_none_is_not_chosen() -> None:
    lucky = [case(5, *([2] if number == 0 else [])) for number in range(12)]
    found = choose(lucky, PATIENTS)
    assert found.gain > 0
    assert found.low == 0
    assert found.chosen is None
    one_patient = choose([case(5, 2)] * 12, ["the same"] * 11 + ["another"])
    assert one_patient.patients == 2
    clean = choose([case(5)] * 12, PATIENTS)
    assert (clean.chosen, clean.gain) == (None, 0)


def test_inference_leaves_out_what_is_smaller_than_asked() -> None:
    config = InferenceConfig(keep_largest=(1,), smallest_ml={"kidney": 2.0})
    rules = PostProcessing.of(config, {0: "background", 1: "liver", 5: "kidney"})
    labels = np.zeros((20, 20, 20), np.uint8, order="F")
    empty = np.zeros((20, 20, 20), bool)
    labels[box(empty.copy(), (0, 0, 0), 1)] = 1
    labels[box(empty.copy(), (2, 0, 0), 2)] = 1
    labels[box(empty.copy(), (9, 9, 9), 1)] = 5
    labels[9:11, 0, 0] = 5  # exactly 2 ml
    rules.apply_(labels, GRID)
    assert [int(np.count_nonzero(labels == value)) for value in (1, 5)] == [8, 2]
    with pytest.raises(SettingsError, match=r"inference.smallest_ml must be a label of the model"):
        PostProcessing.of(InferenceConfig(smallest_ml={"spleen": 1.0}), {0: "background", 1: "a"})
    with pytest.raises(SettingsError, match="smallest_ml"):
        InferenceConfig(smallest_ml={"liver": -1.0})
