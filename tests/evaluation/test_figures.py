"""Figures show what they say: colours at known places, numbers, names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attunet3d.core import Array, DataError, Floats
from attunet3d.evaluation import charts, figures
from attunet3d.evaluation.charts import plain
from attunet3d.evaluation.figures import COLORS, Example
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume
from tests.conftest import present

SHAPE = (60, 50, 16)
GRID = Grid(SHAPE, np.array([[-2.0, 0, 0, 60], [0, 2.0, 0, -50], [0, 0, 6.0, -48], [0, 0, 0, 1]]))


def voxels(array: Array) -> Volume:
    return Volume(np.asfortranarray(array), GRID)


def box_mask(low: Sequence[float], high: Sequence[float], value: int = 1) -> Volume:
    """A label map of a box whose corners are given in the patient, RAS mm."""
    index = np.indices(SHAPE).transpose(1, 2, 3, 0)
    world = GRID.to_world(index)
    inside = np.asarray(((world >= low) & (world <= high)).all(-1))
    return voxels(inside.astype(np.uint8) * value)


SCAN = voxels(np.random.default_rng(0).normal(40, 20, SHAPE).astype(np.int16))
REFERENCE = box_mask([-20, -10, -20], [20, 10, 20], 7)
PREDICTION = box_mask([0, -10, -20], [30, 10, 20], 7)


def rendered(figure: Figure) -> Floats:
    """The figure's pixels (rows, columns, 3), 0..1; row 0 on top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def count(pixels: Floats, color: str) -> int:
    return int((np.abs(pixels - to_rgb(color)).max(-1) < 0.05).sum())


def panel(figure: Figure, axes: Axes) -> Floats:
    """The pixels inside of one axes."""
    pixels = rendered(figure)
    box = axes.get_window_extent()
    rows = slice(int(len(pixels) - box.y1), int(len(pixels) - box.y0))
    return pixels[rows, int(box.x0) : int(box.x1)]


def near(figure: Figure, axes: Axes, x: float, y: float, color: str) -> bool:
    """Whether the colour is found within 2 pixels of a place, given in the axes' mm."""
    pixels = rendered(figure)
    column, up = axes.transData.transform((x, y)).round().astype(int)
    row = len(pixels) - 1 - up
    return count(pixels[row - 2 : row + 3, column - 2 : column + 3], color) > 0


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.texts] + [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        found += [label.get_text() for label in axes.get_yticklabels()]
    return found


def test_outlines_lie_on_the_borders_of_the_masks() -> None:
    figure = figures.overlay_figure(SCAN, REFERENCE, PREDICTION, 7, title="case 1")
    axial, coronal, sagittal = figure.axes
    # In mm of the view the patient's R 60 side starts at x = -1 (outer face), A 48 at y = -1.
    r, a, s = 61, 49, 45
    assert near(figure, axial, r - 0, a - 11, COLORS["reference"])
    assert near(figure, axial, r + 21, a - 0, COLORS["reference"])
    assert near(figure, axial, r - 31, a - 0, COLORS["prediction"])
    assert near(figure, coronal, r - 31, s - 0, COLORS["prediction"])
    assert near(figure, coronal, r + 21, s - 0, COLORS["reference"])
    assert near(figure, sagittal, a - 11, s - 0, COLORS["reference"])
    assert not near(figure, axial, r + 31, a - 0, COLORS["prediction"])
    assert not near(figure, axial, r - 10, a - 3, COLORS["reference"])


def test_the_patients_right_is_on_the_left_and_superior_is_up() -> None:
    figure = figures.overlay_figure(SCAN, REFERENCE, REFERENCE, 7)
    letters = [[text.get_text() for text in axes.texts[:4]] for axes in figure.axes]
    assert letters == [list("RLAP"), list("RLSI"), list("APSI")]
    left, right, top, bottom = figure.axes[1].texts[:4]
    assert left.get_position()[0] < 0.5 < right.get_position()[0]
    assert bottom.get_position()[1] < 0.5 < top.get_position()[1]


def test_a_millimetre_is_as_long_in_every_direction() -> None:
    figure = figures.overlay_figure(SCAN, REFERENCE, PREDICTION, 7)
    rendered(figure)
    lengths = []
    for axes in figure.axes:
        origin, right, down = axes.transData.transform([(50, 40), (60, 40), (50, 50)])
        lengths += [right[0] - origin[0], origin[1] - down[1]]
    assert lengths == pytest.approx([lengths[0]] * 6, rel=0.05)


def test_the_headline_tells_the_dice() -> None:
    figure = figures.overlay_figure(SCAN, REFERENCE, PREDICTION, 7, title="case $7$")
    overlap = 2 * 11 / (21 + 16)  # voxels along x; the other sides are equal
    assert figure.get_suptitle() == rf"case \$7\$   Dice {overlap:.3f}"
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["reference", "prediction"]


def test_without_a_reference_there_is_the_prediction_only() -> None:
    figure = figures.overlay_figure(SCAN, None, PREDICTION, 7, title="case 1")
    pixels = rendered(figure)
    assert figure.get_suptitle() == "case 1"
    assert count(pixels, COLORS["reference"]) == 0
    assert count(pixels, COLORS["prediction"]) > 100


@pytest.mark.parametrize("value", [7, 3])
def test_an_organ_that_was_not_found_is_drawn_without_a_warning(value: int) -> None:
    nothing = voxels(np.zeros(SHAPE, np.uint8))
    figure = figures.overlay_figure(SCAN, REFERENCE, nothing, value)
    assert figure.get_suptitle() == ("Dice 0.000" if value == 7 else "Dice 1.000")
    assert (count(rendered(figure), COLORS["reference"]) > 200) == (value == 7)


def test_an_organ_that_fills_the_scan_is_outlined_at_its_edge() -> None:
    everything = voxels(np.full(SHAPE, 7, np.uint8))
    assert count(rendered(figures.overlay_figure(SCAN, everything, everything, 7)), "#ff9000") > 100


def test_the_window_makes_black_and_white() -> None:
    array = np.zeros(SHAPE, np.int16)
    array[:30] = 100  # the patient's right half
    figure = figures.overlay_figure(voxels(array), None, PREDICTION, 7, window=(0, 100))
    pixels = panel(figure, figure.axes[0])
    middle, width = pixels.shape[0] // 4, pixels.shape[1]
    assert pixels[middle, width // 8].min() > 0.95
    assert pixels[middle, 7 * width // 8].max() < 0.05


def test_a_label_map_of_another_grid_is_refused() -> None:
    other = Volume(np.zeros((5, 5, 5), np.uint8), Grid((5, 5, 5), np.eye(4)))
    with pytest.raises(DataError, match="different grids"):
        figures.overlay_figure(SCAN, None, other, 7)


def example(number: int, **changes: Any) -> Example:
    parts = {"scan": SCAN, "reference": REFERENCE, "prediction": PREDICTION, **changes}
    return Example(name=f"phantom {number}", **parts)


def test_the_demo_picture_has_a_row_per_scan_and_a_column_per_step() -> None:
    found = example(2, prediction=REFERENCE)
    figure = figures.demo_figure([example(1), found], 7, "pancreas", title="unseen")
    assert len(figure.axes) == 6
    shown = texts(figure)
    for text in ("phantom 1", "phantom 2", "right answer: pancreas", "Dice 0.59", "Dice 1.00"):
        assert text in shown
    assert "unseen\nmean Dice 0.80 (1 is perfect)" in shown
    scan, right, answer = (panel(figure, axes) for axes in figure.axes[:3])
    assert count(scan, COLORS["reference"]) == 0
    assert count(right, COLORS["reference"]) > 100
    orange = (answer[..., 0] - answer[..., 2] > 0.25).sum()
    assert orange > 1000


def test_attention_gets_a_column_when_there_is_some() -> None:
    attention = voxels((REFERENCE.array == 7).astype(np.float32))
    examples = [example(1, attention=attention), example(2)]
    figure = figures.demo_figure(examples, 7, "pancreas")
    assert len(figure.axes) == 8
    heat = panel(figure, figure.axes[3])
    middle = heat[heat.shape[0] // 2, heat.shape[1] // 2]
    assert middle[0] > middle[2] + 0.1  # inferno at 1 is yellow
    assert not figure.axes[7].get_visible()


def test_a_demo_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no example"):
        figures.demo_figure([], 7, "pancreas")


def run_rows() -> list[dict[str, str]]:
    rows = [
        {"step": str(step), "loss": str(2 / (step + 1)), "learning_rate": "0.001"}
        for step in range(60)
    ]
    for step, reached in ((20, 0.4), (40, 0.7), (59, 0.6)):
        rows[step]["dice_network_grid"] = str(reached)
    return rows


def points(line: Line2D) -> list[list[float]]:
    """The x and y that a line goes through."""
    return [[float(x), float(y)] for x, y in np.asarray(line.get_xydata())]


def test_curves_show_the_numbers_of_the_run() -> None:
    figure = charts.curves_figure(run_rows())
    loss, rate, reached = figure.axes
    assert points(loss.lines[0])[:2] == [[0, 2], [1, 1]]
    assert {y for _, y in points(rate.lines[0])} == {0.001}
    assert points(reached.lines[0]) == [[20, 0.4], [40, 0.7], [59, 0.6]]
    assert present(reached.get_legend()).texts[0].get_text() == "best: 0.700"
    assert figure.axes[-1].get_xlabel() == "step"
    rendered(figure)


def test_curves_leave_out_what_is_blank_or_not_finite() -> None:
    losses: tuple[float | str, ...] = (1.0, float("nan"), "")
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    (axes,) = charts.curves_figure(rows).axes
    assert points(axes.lines[0]) == [[0, 1]]
    with pytest.raises(DataError, match="no curve"):
        charts.curves_figure(rows[1:])


def test_every_reliability_curve_is_drawn_in_a_colour_of_its_own() -> None:
    names = ("a", "b", "c", "d")
    curves = {name: np.array([[0.1, 0.2, 5], [0.8, 0.9, 7]]) for name in names}
    figure = charts.reliability_figure(curves)
    rendered(figure)
    _, *lines = figure.axes[0].lines  # the first is the diagonal
    assert [line.get_label() for line in lines] == list(names)
    assert points(lines[2]) == [[0.1, 0.2], [0.8, 0.9]]
    assert len({str(line.get_color()) for line in lines}) == 4


def test_boxes_have_the_median_and_every_case() -> None:
    scores = {
        "Dice": {"pancreas": [0.5, 0.7, 0.9], "li$v$er": [0.8]},
        "HD95": {"pancreas": [4.0, float("nan"), 6.0], "li$v$er": []},
    }
    figure = charts.box_plot(scores, "4 cases")
    rendered(figure)
    dice, hd95 = figure.axes
    medians = [points(line)[0][0] for line in dice.lines if line.get_color() == "#ff9000"]
    assert medians == [0.7, 0.8]
    dots = [points(line) for line in hd95.lines if line.get_marker() == "o"]
    assert [[x for x, _ in dot] for dot in dots] == [[4, 6]]
    assert [label.get_text() for label in dice.get_yticklabels()] == ["pancreas", r"li\$v\$er"]
    assert dice.get_ylim()[0] > dice.get_ylim()[1]  # the first label on top


def test_a_metric_that_is_nowhere_defined_is_said_to_be() -> None:
    figure = charts.box_plot({"HD95": {"pancreas": [float("nan")]}})
    assert "undefined" in texts(figure)
    rendered(figure)
    with pytest.raises(DataError, match="no scores"):
        charts.box_plot({})


def test_saved_figures_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save(figures.overlay_figure(SCAN, REFERENCE, PREDICTION, 7), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert image.imread(tmp_path / "a.png").shape[2] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_names_are_text_and_no_formulas() -> None:
    assert plain("a$b\n\x07c") == r"a\$b  c"
