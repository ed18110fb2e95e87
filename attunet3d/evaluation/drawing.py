"""What is drawn on a slice: the scan in grey, outlines, tints, heat, and a ruler."""

from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from attunet3d.evaluation.slices import Slice

EDGES = {"sagittal": "APSI", "coronal": "RLSI", "axial": "RLAP"}  # left, right, top, bottom
RULER_MM = 50
WHITE: dict[str, Any] = {  # readable on bone, too
    "color": "white",
    "path_effects": [patheffects.withStroke(linewidth=1.5, foreground="black")],
}


def draw_scan(axes: Axes, piece: Slice, window_hu: tuple[float, float]) -> None:
    """Draw a slice of a scan in grey, with letters for where the patient's sides are.

    Args:
        axes: Gets millimetres on both axes, y downwards.
        piece: The slice.
        window_hu: What is drawn black and white.
    """
    low, high = window_hu
    x0, x1, y0, y1 = piece.extent_mm
    axes.imshow(
        piece.pixels,
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=piece.extent_mm,
        interpolation="bilinear",  # as viewers do; outlines and tints show the voxels
    )
    axes.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y0, y1), autoscale_on=False)
    left, right, top, bottom = tuple(EDGES[piece.plane])
    style: dict[str, Any] = {**WHITE, "transform": axes.transAxes, "fontsize": 8}
    axes.text(0.015, 0.5, left, ha="left", va="center", **style)
    axes.text(0.985, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 0.985, top, ha="center", va="top", **style)
    axes.text(0.5, 0.015, bottom, ha="center", va="bottom", **style)


def draw_ruler(axes: Axes, piece: Slice) -> None:
    """Draw a bar of 5 cm into the lower left corner."""
    left, right, bottom, top = piece.extent_mm
    x, y = left + 0.04 * (right - left), bottom - 0.06 * (bottom - top)
    axes.plot([x, x + RULER_MM], [y, y], linewidth=2, solid_capstyle="butt", **WHITE)
    text = f"{RULER_MM // 10} cm"
    axes.annotate(text, (x, y), (0, 3), textcoords="offset points", fontsize=8, **WHITE)


def draw_outline(axes: Axes, piece: Slice, color: str, linewidth: float = 1.5) -> None:
    """Draw the outline of a slice of a mask; nothing when the mask is not in this slice."""
    if not piece.pixels.any():
        return
    (x, y), (width, height) = piece.centres_mm(), piece.pixel_mm
    # A ring of zeros closes the outlines that the frame cuts.
    x, y = np.r_[x[0] - width, x, x[-1] + width], np.r_[y[0] - height, y, y[-1] + height]
    inside = np.pad(piece.pixels != 0, 1).astype(np.float32)
    axes.contour(x, y, inside, levels=[0.5], colors=[color], linewidths=linewidth)


def draw_tint(axes: Axes, piece: Slice, color: str, opacity: float = 0.5) -> None:
    """Tint the pixels of a slice of a mask."""
    tint = np.zeros((*piece.pixels.shape, 4))  # (rows, columns, RGBA)
    tint[piece.pixels != 0] = (*to_rgb(color), opacity)
    axes.imshow(tint, extent=piece.extent_mm, interpolation="nearest")


def draw_heat(axes: Axes, piece: Slice, opacity: float = 0.6) -> None:
    """Lay a slice of a map of values in [0, 1] over the scan, dark for 0 and bright for 1."""
    axes.imshow(piece.pixels, cmap="inferno", vmin=0, vmax=1, alpha=opacity, extent=piece.extent_mm)
