"""The phantoms' organs, and the tables, of the measurements of transfer."""

import numpy as np

from attunet3d.imaging import Grid
from attunet3d.phantoms.anatomy import random_anatomy
from attunet3d.phantoms.scanner import label_anatomy
from benchmarks.transfer import LABELS, label_organs, table


def test_the_pancreas_is_that_of_the_phantom_and_the_organs_are_there() -> None:
    affine = np.diag([7.0, 7, 7, 1])
    affine[:3, 3] = -176, -130, -100
    grid = Grid((50, 38, 30), affine)
    label = label_organs(7, grid)
    np.testing.assert_array_equal(label == 5, label_anatomy(random_anatomy(7), grid) == 1)
    assert set(np.unique(label)) == set(LABELS)
    liver, spleen = (grid.to_world(np.argwhere(label == value)).mean(0) for value in (1, 2))
    assert liver[0] > spleen[0]  # x grows towards the patient's right


def test_tables_give_mean_and_deviation_over_seeds() -> None:
    found = {"scratch": [{"pancreas": 0.5}, {"pancreas": 0.7}], "before": [{"liver": 0.9}]}
    assert table(found).splitlines() == [
        "         liver       pancreas           mean",
        "scratch      –  0.600 ± 0.141  0.600 ± 0.141",
        "before   0.900              –          0.900",
    ]
