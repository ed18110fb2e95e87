"""A picture of a case to glance at: three slices through its labels, drawn without axes or text.

Axial, coronal and sagittal stand side by side as radiologists have them: the patient's right on the
left, anterior and superior on top.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from attunet3d.core import Array, LabelMap, whole_file
from attunet3d.imaging import Grid, Segmentation, Volume, axis_map, colour_of

WINDOW_HU: tuple[float, float] = (-160.0, 240.0)  # of the abdomen's soft tissue
OPACITY = 0.45
HEIGHT = 320  # pixels of the axial slice
TALLEST = 4 * HEIGHT  # of any slice; a scan that is longer is drawn smaller


def draw_preview(path: Path, scan: Volume, segmentation: Segmentation) -> None:
    """Write a PNG of the slices of a scan that hold most of the labels.

    Raises:
        WriteError: The disk is full or the folder read-only.
    """
    grid = scan.grid.oriented("LPI")
    hu, labels = (_turned(array, scan.grid, grid) for array in (scan.array, segmentation.array))
    a, b, c = grid.spacing_mm
    x, y, z = _busiest(labels)
    slices = [
        (hu[:, :, z].T, labels[:, :, z].T, (a, b)),  # rows, columns
        (hu[:, y].T, labels[:, y].T, (a, c)),
        (hu[x].T, labels[x].T, (b, c)),
    ]
    sides = np.array(grid.spacing_mm) * grid.shape
    scale = min(HEIGHT / sides[1], TALLEST / sides.max())  # pixels per mm, the same in all slices
    pictures = [_drawn(*part, scale) for part in slices]
    width, height = sum(part.width for part in pictures), max(part.height for part in pictures)
    sheet, left = Image.new("RGB", (width, height)), 0
    for picture in pictures:
        sheet.paste(picture, (left, (height - picture.height) // 2))
        left += picture.width
    file = io.BytesIO()
    sheet.save(file, "PNG")
    whole_file.write_bytes(path, file.getvalue())


def _turned(array: Array, source: Grid, target: Grid) -> Array:
    """A view of `array` with its axes along those of `target`, the same voxels."""
    axes = axis_map(source, target)
    turned = array.transpose(axes.order)
    return turned[tuple(slice(None, None, -1 if step < 0 else 1) for step in axes.scale)]


def _busiest(labels: LabelMap) -> list[int]:
    """The index along each axis with most labelled voxels, else the middle."""
    lines = np.zeros(labels.shape[0]), np.zeros(labels.shape[1]), np.zeros(labels.shape[2])
    for k in range(labels.shape[2]):
        mask = labels[:, :, k] != 0
        lines[0][:] += mask.sum(1)
        lines[1][:] += mask.sum(0)
        lines[2][k] = mask.sum()
    return [int(line.argmax()) if line.any() else len(line) // 2 for line in lines]


def _drawn(hu: Array, labels: LabelMap, pixel_mm: tuple[float, float], scale: float) -> Image.Image:
    """A slice (rows, columns) as RGB, with `scale` pixels per mm."""
    low, high = WINDOW_HU
    grey = (hu.astype(np.float32).clip(low, high) - low) / (high - low) * 255
    colours = np.array([(0, 0, 0), *(colour_of(value) for value in range(1, 256))], np.float32)
    share = OPACITY * (labels != 0)[..., None]
    mixed = (1 - share) * grey[..., None] + share * colours[labels]
    width, height = (
        round(n * mm * scale) for n, mm in zip(labels.shape[::-1], pixel_mm, strict=True)
    )
    size = max(1, width), max(1, height)
    return Image.fromarray(np.rint(mixed).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
