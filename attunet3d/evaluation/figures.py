"""Figures of scans: a label map on its scan, and the demo's picture.

Figures are matplotlib objects without pyplot's global state, so threads may draw them. The colours
can be told apart by colour-blind readers, too.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attunet3d.cohort import WINDOW_HU
from attunet3d.core import DataError, WriteError, whole_file
from attunet3d.evaluation import drawing, metrics, slices
from attunet3d.evaluation.charts import plain
from attunet3d.evaluation.slices import View, Voxels

PICTURES = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
COLORS = {"reference": "#21c7f3", "prediction": "#ff9000"}  # sky blue, orange
LINEWIDTHS = {"reference": 2.8, "prediction": 1.3}  # the wider is below: both show where they agree
MARGIN_MM = 60.0  # of scan around the organ: enough to know where in the body one is
BODY_MARGIN_MM = 5.0
INCHES_PER_MM = 0.018


@dataclass(frozen=True, eq=False, kw_only=True)
class Example:
    """One segmented scan for `demo_figure`; all parts lie on one grid."""

    name: str
    scan: Voxels
    reference: Voxels
    prediction: Voxels
    attention: Voxels | None = None


def overlay_figure(
    scan: Voxels,
    reference: Voxels | None,
    prediction: Voxels,
    value: int,
    *,
    title: str = "",
    window: tuple[float, float] = WINDOW_HU,
) -> Figure:
    """Three slices through the middle of an organ with the outlines of reference and prediction.

    Args:
        scan: (I, J, K), any orientation and spacing.
        reference: Label map on the scan's grid, or None.
        prediction: Label map on the scan's grid.
        value: The organ's label value. The slices go through the reference's centre of mass, or
            through the prediction's if the reference is empty or missing.
        title: Stands in front of the Dice.
        window: The values drawn black and white, in the scan's units.

    Raises:
        DataError: The grids differ.
    """
    maps = {"prediction": prediction} if reference is None else _pair(reference, prediction)
    view, masks = _views(scan, maps, value)
    box = slices.frame(
        np.logical_or.reduce([mask.array for mask in masks.values()]), view.spacing_mm, MARGIN_MM
    )
    centre = _centre(masks)
    width, depth, height = (
        (part.stop - part.start) * mm for part, mm in zip(box, view.spacing_mm, strict=True)
    )
    inches = np.array([2 * width + depth, max(depth, height)]) * INCHES_PER_MM
    figure = Figure(figsize=(inches[0] + 0.3, inches[1] + 1.1), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[width, width, depth])
    for axes, plane in zip(panels, ("axial", "coronal", "sagittal"), strict=True):
        index = centre[slices.PLANES[plane]]
        drawing.draw_scan(axes, view.cut(plane, index, box), window)
        for name, mask in masks.items():
            piece = mask.cut(plane, index, box)
            drawing.draw_outline(axes, piece, COLORS[name], LINEWIDTHS[name])
        axes.set_title(plane, fontsize=9)
    drawing.draw_ruler(panels[0], view.cut("axial", centre[2], box))
    score = "" if reference is None else f"   Dice {_dice(masks):.3f}"
    figure.suptitle((plain(title) + score).strip(), fontsize=11)
    handles = [Line2D([], [], color=COLORS[name], lw=3, label=name) for name in masks]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def demo_figure(examples: Sequence[Example], value: int, organ: str, *, title: str = "") -> Figure:
    """A row for each scan: the scan alone, the reference, the prediction, the attention.

    Args:
        examples: The scans; each row shows the slice through the organ's middle. The column for
            attention is drawn if any example has it.
        value: The organ's label value.
        organ: Its name.
        title: The line above all.

    Raises:
        DataError: There is no example, or the grids of one differ.
    """
    if not examples:
        raise DataError("no example to draw", cure="segment at least one scan")
    columns = ["CT scan", f"right answer: {organ}", "network's answer"]
    columns += ["where its gates open"] if any(example.attention for example in examples) else []
    size = 3.0 * len(columns) + 0.3, 2.45 * len(examples) + 1.0
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    rows = figure.subplots(len(examples), len(columns), squeeze=False)
    scores = [
        _draw_example(panels, example, value)
        for panels, example in zip(rows, examples, strict=True)
    ]
    for axes, heading in zip(rows[0], columns, strict=True):
        axes.set_title(plain(heading), fontsize=11)
    mean = f"mean Dice {np.mean(scores):.2f} (1 is perfect)"
    figure.suptitle(f"{plain(title)}\n{mean}".strip(), fontsize=12)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, whole or not at all; the same figure gives the same bytes.

    Raises:
        WriteError: The file cannot be written, or its name ends in something else.
    """
    form = path.suffix[1:]
    if form not in PICTURES:
        rule = f"the name of a picture must end in {' or '.join(PICTURES)}"
        raise WriteError(rule, path=path)
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "", "svg.fonttype": "none"}):  # text stays text
        figure.savefig(stream, format=form, metadata=PICTURES[form])
    whole_file.write_bytes(path, stream.getbuffer())


def _pair(reference: Voxels, prediction: Voxels) -> dict[str, Voxels]:
    return {"reference": reference, "prediction": prediction}


def _views(scan: Voxels, maps: dict[str, Voxels], value: int) -> tuple[View, dict[str, View]]:
    """Views of the scan and of one label in each map."""
    view, *parts = slices.radiological_views(scan, *maps.values())
    masks = [View(part.array == value, part.spacing_mm) for part in parts]
    return view, dict(zip(maps, masks, strict=True))


def _centre(masks: dict[str, View]) -> tuple[int, int, int]:
    """The middle of the first mask that is not empty."""
    arrays = [mask.array for mask in masks.values()]
    return slices.middle(next((array for array in arrays if array.any()), arrays[0]))


def _dice(masks: dict[str, View]) -> float:
    return metrics.dice(masks["prediction"].array, masks["reference"].array)


def _draw_example(panels: Sequence[Axes], example: Example, value: int) -> float:
    """Draw one row of the demo's picture and return the Dice."""
    view, masks = _views(example.scan, _pair(example.reference, example.prediction), value)
    index = _centre(masks)[2]
    body = slices.frame(view.array > WINDOW_HU[0], view.spacing_mm, BODY_MARGIN_MM)
    for axes in panels:
        drawing.draw_scan(axes, view.cut("axial", index, body), WINDOW_HU)
    pieces = {name: mask.cut("axial", index, body) for name, mask in masks.items()}
    for axes, (name, piece) in zip(panels[1:3], pieces.items(), strict=True):
        drawing.draw_tint(axes, piece, COLORS[name])
        drawing.draw_outline(axes, pieces["reference"], COLORS["reference"])
    if example.attention is not None:
        _, attention = slices.radiological_views(example.scan, example.attention)
        drawing.draw_heat(panels[3], attention.cut("axial", index, body))
    elif len(panels) > 3:
        panels[3].set_visible(False)
    reached = _dice(masks)
    panels[0].set_ylabel(plain(example.name), fontsize=11)
    panels[2].set_xlabel(f"Dice {reached:.2f}", fontsize=12, fontweight="bold")
    return reached
