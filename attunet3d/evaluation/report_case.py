"""A case of a report, and its scan, label maps and attention made small enough for a web page.

The scan becomes one grey picture, its slices side by side, compressed as WebP; each value stands
for a range of HU that is narrow where soft tissue lies. Label maps and attention are exact on the
coarser grid (deflate). All lie with x to the patient's left, y to posterior and z to inferior.
"""

import base64
import io
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from attunet3d.core import Array, LabelMap
from attunet3d.imaging import Grid, Volume, body_box, resample

MOST_VOXELS = 1_500_000  # about 0.5 MB of a noisy abdomen at this quality
MOST_OF_A_GATE = MOST_VOXELS // 8  # gates are no finer than half the network's grid
QUALITY = 70
WIDEST_PICTURE = 4096  # pixels; every browser decodes pictures of this size
HU_OF_VALUES = np.interp(  # 256 stored values: 1.8 HU apart in soft tissue, 17 in lung, 39 in bone
    np.arange(256), [0, 40, 216, 255], [-1000.0, -300.0, 300.0, 1800.0]
)


Reader = Callable[[Volume], Volume]
"""Reads a label map, given its scan."""


@dataclass(frozen=True, kw_only=True)
class ReportCase:
    """A case of a report, its volumes not read yet."""

    name: str
    scan: Path | None = None
    series: str | None = None
    """Which DICOM series of the folder `scan`."""
    layers: Mapping[str, Reader] = field(default_factory=dict)
    """Label maps by name, such as prediction and reference."""
    attention: Path | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    """Numbers for the table by column; None where there is none."""
    facts: str = ""
    """A line of text about the case."""
    warnings: tuple[str, ...] = ()
    look: tuple[str, ...] = ()
    """Columns whose value asks a person to look."""
    patient: str | None = None
    """Whose scan it is; None: a patient of its own."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The volumes of a case, all on the scan's grid."""

    scan: Volume
    layers: Mapping[str, LabelMap]
    attention: Sequence[Array] = ()
    """A map (I, J, K) in [0, 1] for each gate, the finest level's first."""


def number(value: object) -> float | None:
    """A finite number, of JSON or of a table's cell; None for anything else.

    Example:
        >>> number("0.5"), number(""), number(None)
        (0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def payload(pictures: Pictures) -> str:
    """A case as JSON for the page's viewer, well under 1 MB."""
    box = body_box(pictures.scan)
    source, body = pictures.scan.grid, pictures.scan.grid.cropped(box)
    grid, coarse = coarse_grid(body, MOST_VOXELS), coarse_grid(body, MOST_OF_A_GATE)

    def sampled(array: Array, mode: Literal["linear", "nearest"], target: Grid = grid) -> Array:
        found: Array = resample(torch.from_numpy(array)[None], source, target, mode=mode)[0].numpy()
        return found

    def gate(array: Array) -> str:
        steps = np.rint(sampled(array.astype(np.float32), "linear", coarse) * 15)  # 16 are enough
        return _deflated((steps * 17).astype(np.uint8))

    hu = sampled(pictures.scan.array, "linear")
    content: dict[str, object] = {
        "shape": grid.shape,
        "spacing": [round(length, 4) for length in grid.spacing_mm],
        "scan": _picture(np.rint(np.interp(hu, HU_OF_VALUES, np.arange(256))).astype(np.uint8)),
        "layers": [
            {"name": name, "data": _deflated(sampled(array, "nearest"))}
            for name, array in pictures.layers.items()
        ],
        "attention": {"shape": coarse.shape, "gates": list(map(gate, pictures.attention))},
    }
    return json.dumps(content).replace("</", "<\\/")  # "</script>" in a name ends nothing


def coarse_grid(grid: Grid, most_voxels: int) -> Grid:
    """The same extent along left, posterior and inferior, in at most `most_voxels` voxels.

    An axis whose voxels are longer than the others' keeps them.

    Example:
        >>> fine = Grid((512, 512, 100), np.diag([0.8, 0.8, 5.0, 1.0]))
        >>> coarse_grid(fine, 1_500_000).shape
        (121, 121, 100)
    """
    whole = grid.oriented("LPI")
    spacing = np.array(whole.spacing_mm)
    length = float(spacing.min())
    while True:
        x, y, z = (float(side) for side in np.maximum(spacing, length))
        coarse = whole.with_spacing((x, y, z))
        if math.prod(coarse.shape) <= most_voxels:
            return coarse
        length *= 1.02


def _picture(values: Array) -> dict[str, object]:
    """Slices side by side, row by row, as WebP."""
    x, y, z = values.shape
    columns = max(1, min(z, WIDEST_PICTURE // x))
    rows = -(-z // columns)
    sheet = np.zeros((rows * y, columns * x), np.uint8)
    for k in range(z):
        top, left = k // columns * y, k % columns * x
        sheet[top : top + y, left : left + x] = values[:, :, k].T
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "WEBP", quality=QUALITY, method=4)
    return {"columns": columns, "image": base64.b64encode(content.getvalue()).decode()}


def _deflated(array: Array) -> str:
    return base64.b64encode(zlib.compress(array.tobytes("F"), 9)).decode()
