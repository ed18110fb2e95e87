"""Drawing on a slice: the scan in grey, outlines, tints, heat, and a ruler."""

from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from attunet3d.evaluation.slices import Slice

SIDES = {"sagittal": "APSI", "coronal": "RLSI", "axial": "RLAP"}  # left, right, top, bottom
PLACES = (0.015, 0.5, "left"), (0.985, 0.5, "right"), (0.5, 0.985, "top"), (0.5, 0.015, "bottom")
RULER_MM = 50
WHITE: dict[str, Any] = {  # readable on bone, too
    "color": "white",
    "fontsize": 8,
    "path_effects": [patheffects.withStroke(linewidth=1.5, foreground="black")],
}


def draw_scan(axes: Axes, piece: Slice, window_hu: tuple[float, float]) -> None:
    """Draw a slice of a scan in grey, with letters for the patient's sides.

    Args:
        axes: Will have millimetres on both axes, y downwards.
        piece: The slice.
        window_hu: The values drawn black and white.
    """
    x0, x1, y0, y1 = piece.extent_mm
    axes.imshow(
        piece.pixels,
        cmap="gray",
        vmin=window_hu[0],
        vmax=window_hu[1],
        extent=piece.extent_mm,
        interpolation="bilinear",  # as viewers do; outlines and tints show the voxels
    )
    axes.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y0, y1), autoscale_on=False)
    for side, (x, y, place) in zip(SIDES[piece.plane], PLACES, strict=True):
        ha, va = (place, "center") if place in ("left", "right") else ("center", place)
        axes.text(x, y, side, ha=ha, va=va, transform=axes.transAxes, **WHITE)


def draw_ruler(axes: Axes, piece: Slice) -> None:
    """Draw a bar of 5 cm into the lower left corner."""
    left, right, bottom, top = piece.extent_mm
    x, y = left + 0.04 * (right - left), bottom - 0.06 * (bottom - top)
    line = {name: value for name, value in WHITE.items() if name != "fontsize"}
    axes.plot([x, x + RULER_MM], [y, y], linewidth=2, solid_capstyle="butt", **line)
    axes.annotate(f"{RULER_MM // 10} cm", (x, y), (0, 3), textcoords="offset points", **WHITE)


def draw_outline(axes: Axes, piece: Slice, color: str, linewidth: float = 1.5) -> None:
    """Draw the outline of a slice of a mask, or nothing if the slice does not meet the mask."""
    if not piece.pixels.any():
        return
    # A ring of zeros closes outlines that reach the edge of the frame.
    inside = np.pad(piece.pixels != 0, 1).astype(np.float32)
    (rows, columns), (left, right, bottom, top) = piece.pixels.shape, piece.extent_mm
    width, height = (right - left) / columns, (bottom - top) / rows
    axes.contour(
        inside,
        levels=[0.5],
        colors=[color],
        linewidths=linewidth,
        origin="upper",
        extent=(left - width, right + width, bottom + height, top - height),
    )


def draw_tint(axes: Axes, piece: Slice, color: str, opacity: float = 0.5) -> None:
    """Tint the pixels of a slice of a mask."""
    tint = np.zeros((*piece.pixels.shape, 4))  # (rows, columns, RGBA)
    tint[piece.pixels != 0] = (*to_rgb(color), opacity)
    axes.imshow(tint, extent=piece.extent_mm, interpolation="nearest")


def draw_heat(axes: Axes, piece: Slice, opacity: float = 0.6) -> None:
    """Lay a slice of a map of values in [0, 1] over the scan, dark for 0 and bright for 1."""
    axes.imshow(piece.pixels, cmap="inferno", vmin=0, vmax=1, alpha=opacity, extent=piece.extent_mm)
