"""The surroundings of the abdomen: spine, muscles, ribs, lungs, and the table."""

import numpy as np
import numpy.typing as npt

from attunet3d.core import Float32s, Floats
from attunet3d.phantoms.shapes import Ellipsoid, Region, Torso, Tube
from attunet3d.phantoms.tissue import BOTTOM_MM, TOP_MM, PatientSampler, Tissue

BEHIND_VERTEBRA = (  # offset from the vertebra's centre and half axes, mm; HU
    ("process", (0.0, -33.0, -8.0), (4.0, 13.0, 11.0), 330.0),
    ("process", (0.0, -24.0, 0.0), (40.0, 4.0, 6.0), 300.0),
    ("canal", (0.0, -24.5, 0.0), (10.5, 7.5, 18.0), 25.0),
)


def chest(sample: PatientSampler, torso: Torso, wall_mm: float) -> list[Tissue]:
    """Lung bases above the diaphragm, and the lower ribs in the wall."""
    lungs = [
        Tissue(
            "lung", sample.ellipsoid(sample.position(side * 82, -25, 185), (72, 92, 112), 5), -850
        )
        for side in (1, -1)
    ]
    pitch, tilt, start = sample.uniform(28, 33), sample.uniform(0.45, 0.7), sample.uniform(-12, 4)
    depth = np.float32(wall_mm - 3)

    def ribs(x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        along = z + np.float32(tilt) * y  # constant along a rib, which falls towards the front
        from_rib = along - pitch * np.rint(along / np.float32(pitch))
        bone = np.hypot(torso.outline(x, y) + depth, np.float32(0.5) * from_rib) - np.float32(3.5)
        front = (y - np.float32(0.9) * (z - np.float32(start)) - 25) * np.float32(0.74)
        end: Float32s = np.maximum(np.maximum(bone, front), np.float32(26) - np.abs(x))
        return end

    width, back = torso.half_width_mm, torso.half_depth_mm
    box = np.array([[-width, -back, -110.0], [width, back, TOP_MM]])
    return [*lungs, Tissue("rib", Region(box, ribs), 380, False)]


def spine(sample: PatientSampler, torso: Torso) -> list[Tissue]:
    """Vertebrae with discs, canal and processes, and the muscles beside them."""
    x, y, start = sample.uniform(-4, 4), 58 - torso.half_depth_mm, sample.uniform(-17, 17)
    pitch, half = sample.uniform(33, 38), np.array([22.0, 16.5]) * sample.uniform(0.92, 1.08)
    found = [
        Tissue("muscle", _column([x + side * 33, y - 24], (25, 17)), 58, False) for side in (1, -1)
    ]
    found += [Tissue("muscle", _psoas(sample, x + side * 30, y), 58) for side in (1, -1)]
    found += [
        Tissue("disc", _column([x, y], half), 85, False),
        Tissue("lamina", _column([x, y - 27], (17, 13)), 260, False),
        Tissue("canal", _column([x, y - 25], (11, 8.5)), 25, False),
    ]
    for level in range(-5, 6):
        centre = np.array([x, y, start + level * pitch])
        height = pitch / 2 - 4
        found += [
            Tissue("cortex", _drum(centre, (*half, height)), 420, False),
            Tissue("vertebra", _drum(centre, (*(half - 1.8), height - 1.8)), 190, False),
        ]
        found += [
            Tissue(name, Ellipsoid(centre + np.array(offset), np.array(radii)), hu, False)
            for name, offset, radii, hu in BEHIND_VERTEBRA
        ]
    return found


def _column(centre: npt.ArrayLike, radii: npt.ArrayLike) -> Tube:
    ends = np.array([BOTTOM_MM, TOP_MM])
    return Tube(2, ends, np.tile(centre, (2, 1)), np.tile(radii, (2, 1)).astype(float), np.ones(2))


def _drum(centre: Floats, half: tuple[float, float, float]) -> Tube:
    at = np.linspace(centre[2] - half[2], centre[2] + half[2], 25)
    waist = 1 - 0.09 * (1 - ((at - centre[2]) / half[2]) ** 2)
    return Tube(2, at, np.tile(centre[:2], (25, 1)), np.outer(waist, half[:2]), np.ones(25))


def _psoas(sample: PatientSampler, x: float, y: float) -> Tube:
    out = 1 if x > 0 else -1
    knots = [(x, y + 2, 10), (x + 4 * out, y + 3, -40), (x + 14 * out, y + 12, BOTTOM_MM)]
    return Tube.through(2, knots, [(5, 5), (14, 15), (22, 20)])


def table(torso: Torso) -> Tissue:
    """A thin curved table under the back."""
    back = -torso.half_depth_mm - 4

    def couch(x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        sag = y - np.float32(back) - x * x * np.float32(6e-4)
        shell: Float32s = np.maximum(np.abs(sag) - np.float32(2), np.abs(x) - np.float32(210))
        return shell

    return Tissue(
        "table", Region(np.array([[-210, back - 3, -1e4], [210, back + 30, 1e4]]), couch), -60
    )
