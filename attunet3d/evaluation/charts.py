"""Charts of numbers: the curves of a run, the scores of many cases."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import uniform_filter1d

from attunet3d.core import DataError, Floats

CURVES = {"loss": "loss", "learning_rate": "learning rate", "dice_network_grid": "validation Dice"}
INK, ACCENT = "#1f5f8b", "#ff9000"
SMOOTHED = 0.04  # width of the moving mean over the loss, as a share of the run


def plain(name: str) -> str:
    r"""Make a name from a file safe for a figure: no formulas, no control characters.

    Example:
        >>> print(plain("case$1$"))
        case\$1\$
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return printable.replace("$", r"\$")


def curves_figure(rows: Sequence[Mapping[str, str | float | None]]) -> Figure:
    """Loss, learning rate and validation Dice against the step.

    Args:
        rows: The rows of `metrics.csv`: `step` and any of `loss`, `learning_rate`,
            `dice_network_grid`. A value that is missing, blank or not finite is not drawn.

    Raises:
        DataError: No row has a step and a value.
    """
    curves = {name: _curve(rows, name) for name in CURVES}
    drawn = {name: points for name, points in curves.items() if len(points)}
    if not drawn:
        raise DataError("no curve to draw: no row of metrics.csv has a step and a value")
    figure = Figure(figsize=(7, 1.0 + 1.9 * len(drawn)), dpi=120, layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, points) in zip(panels, drawn.items(), strict=True):
        _draw_curve(axes, name, points)
    panels[-1].set_xlabel("step")
    return figure


def box_plot(scores: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> Figure:
    """One panel per metric with a box per label and a dot per case.

    Args:
        scores: Metric → label → values of the cases; NaN means undefined and is not drawn.
        title: The line above all.

    Raises:
        DataError: There is no metric or no label.
    """
    labels = list(next(iter(scores.values()), {}))
    if not labels:
        raise DataError("no scores to draw: no case was scored")
    size = 0.8 + 2.9 * len(scores), 1.3 + 0.38 * max(2, len(labels))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (metric, values) in zip(panels, scores.items(), strict=True):
        _draw_boxes(axes, metric, [values[label] for label in labels])
    panels[0].set_yticks(range(len(labels)), [plain(label) for label in labels])
    panels[0].set_ylim(len(labels) - 0.4, -0.6)  # first label on top
    if title:
        figure.suptitle(plain(title), fontsize=11)
    return figure


def reliability_figure(curves: Mapping[str, Floats]) -> Figure:
    """Reliability diagram: how often voxels of a probability belong to the class.

    Args:
        curves: Name → (bins, 3) mean probability, share that belongs to the class, voxels.
    """
    figure = Figure(figsize=(4.2, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axes.set_prop_cycle(color=[ACCENT, INK, "#3c763d", "#7b4fa3"])
    for name, rows in curves.items():
        axes.plot(rows[:, 0], rows[:, 1], "o-", markersize=4, label=name)
    axes.set(xlabel="probability", ylabel="share of voxels in the class", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False)
    return figure


def _curve(rows: Sequence[Mapping[str, str | float | None]], name: str) -> Floats:
    """Steps and finite values (n, 2) of one column."""
    pairs = [[_number(row.get(column)) for column in ("step", name)] for row in rows]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def _number(cell: str | float | None) -> float:
    return float(cell) if isinstance(cell, (int, float)) or cell else float("nan")


def _draw_curve(axes: Axes, name: str, points: Floats) -> None:
    steps, values = points.T
    axes.set_ylabel(CURVES[name])
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    width = int(len(values) * SMOOTHED)
    if name == "loss" and width > 1:
        axes.plot(steps, values, color=INK, alpha=0.25, linewidth=0.8)
        axes.plot(steps, uniform_filter1d(values, width, mode="nearest"), color=INK)
        return
    axes.plot(steps, values, color=INK, marker="o" if len(values) < 100 else "", markersize=3)
    if name == "dice_network_grid":
        best = int(values.argmax())
        axes.plot(steps[best], values[best], "o", color=ACCENT, label=f"best: {values[best]:.3f}")
        axes.set_ylim(0, 1)
        axes.legend(loc="lower right", frameon=False)


def _draw_boxes(axes: Axes, metric: str, values: Sequence[Sequence[float]]) -> None:
    finite = {row: np.array([v for v in part if np.isfinite(v)]) for row, part in enumerate(values)}
    finite = {row: part for row, part in finite.items() if len(part)}
    axes.set_title(plain(metric), fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(4))  # more would run into each other
    if not finite:
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", color="grey")
        return
    axes.boxplot(
        list(finite.values()),
        positions=list(finite),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,  # every case is drawn as a dot
        manage_ticks=False,
        boxprops={"color": INK},
        whiskerprops={"color": INK},
        capprops={"color": INK},
        medianprops={"color": ACCENT, "linewidth": 2},
    )
    for row, part in finite.items():
        spread = 0.2 * np.sin(2.4 * np.arange(len(part)))  # equal scores would hide each other
        axes.plot(part, row + spread, "o", color=INK, markersize=3, alpha=0.5)
