"""The neighbours of the pancreas: organs, bowel and vessels, some with nearly its size and HU."""

import numpy as np
import numpy.typing as npt

from attunet3d.phantoms.shapes import Blend, Ellipsoid, Region, Shape, Tube
from attunet3d.phantoms.tissue import BOTTOM_MM, TOP_MM, PatientSampler, Tissue, rotation


def kidneys(sample: PatientSampler) -> list[Tissue]:
    """Both kidneys: cortex, medulla and a hilum of fat and urine, tilted along the psoas."""
    cortex, medulla = sample.uniform(165, 215), sample.uniform(120, 150)
    found = []
    for side, z in ((1, -32), (-1, -14)):
        centre = sample.position(side * 66, -56, z)
        size = sample.uniform(0.92, 1.1)
        tilt = rotation(np.radians([10 + sample.uniform(-6, 6), -side * 10, -side * 25]))
        hilum = centre + tilt @ np.array([-side * 16.0, 6, 0])
        found += [
            Tissue("kidney", Ellipsoid(centre, size * np.array([28.0, 25, 54]), tilt), cortex),
            Tissue("kidney", Ellipsoid(centre, size * np.array([20.0, 17, 44]), tilt), medulla),
            Tissue("kidney", Ellipsoid(hilum, size * np.array([15.0, 10, 24]), tilt), -70),
            Tissue("kidney", Ellipsoid(hilum, size * np.array([9.0, 5, 10]), tilt), 20),
        ]
    return found


def solid_organs(sample: PatientSampler, hu: float) -> list[Tissue]:
    """Liver with its veins, gallbladder and spleen."""
    liver_hu, spleen_hu = hu + sample.uniform(8, 22), hu + sample.uniform(10, 28)
    right = sample.ellipsoid(sample.position(92, -12, 48), (66, 82, 78), 8)
    left = sample.ellipsoid(sample.position(22, 52, 62), (72, 34, 36), 12)
    back = sample.ellipsoid(sample.position(58, 22, 70), (58, 58, 46), 10)
    liver = Blend((right, back, left), 24)
    found = [Tissue("liver", liver, liver_hu)]
    for x, y, z in ((130, -30, 60), (110, 45, 75), (40, 62, 80)):
        vein = Tube.through(
            0, sample.jittered([(28, -18, 88), (x * 0.6 + 11, y * 0.5, 80), (x, y, z)]), 3.5
        )
        found.append(Tissue("liver vein", Region(vein.bounds_mm, vein.distance, liver), hu + 55))
    gallbladder = sample.ellipsoid(sample.position(64, 50, -8), (13, 19, 24), 20)
    spleen = sample.ellipsoid(sample.position(-112, -44, 50), (27, 48, 52), 12)
    dent = sample.ellipsoid(sample.position(-82, -24, 46), (19, 36, 40), 8)
    hollow = Region(spleen.bounds_mm, lambda x, y, z: -dent.distance(x, y, z), spleen)
    return [
        *found,
        Tissue("gallbladder", gallbladder, sample.uniform(4, 18)),
        Tissue("spleen", hollow, spleen_hu),
    ]


def _hollow_organ(
    name: str, tube: Tube, wall_hu: float, filling_hu: float, wall_mm: float
) -> list[Tissue]:
    """A hollow organ: wall, filling, and gas at the front where the filling is below -200 HU."""
    if filling_hu > -200:
        return [Tissue(name, tube, wall_hu), Tissue(name, tube.shrunk(wall_mm), filling_hu)]
    return [*_hollow_organ(name, tube, wall_hu, 25.0, wall_mm), _gas(tube.shrunk(wall_mm), 0.15)]


def _gas(lumen: Shape, level: float) -> Tissue:
    """Gas in front of a fluid level; `level` runs from −1 (all gas) to 1 (no gas)."""
    low, high = lumen.bounds_mm
    surface = np.float32((low[1] + high[1]) / 2 + level * (high[1] - low[1]) / 2)
    return Tissue("gas", Region(lumen.bounds_mm, lambda x, y, z: surface - y, lumen), -900)


def bowel(sample: PatientSampler, hu: float) -> list[Tissue]:
    """Jejunum with the calibre and nearly the HU of the pancreas, framed by the colon."""
    found = []
    for row, column in np.ndindex(5, 3):
        x, y, z = -58 + 12 * (row % 2), 46 - 30 * column, 4 - 30 * row
        turn = sample.rng.uniform(-16, 16, (6, 3)) * (0, 1, 1)
        knots = np.linspace((x - 46, y, z), (x + 52, y - 6, z - 4), 6) * sample.build + turn
        radius = sample.uniform(11, 16)
        filling = hu - sample.uniform(10, 60)
        found += _hollow_organ(
            "jejunum", Tube.through(0, knots, radius), hu - sample.uniform(8, 28), filling, 3
        )
    for x, y in ((106, -8), (-118, -34)):
        top = -28 if x > 0 else 22
        knots = sample.jittered([(x, y, top), (x * 1.03, y, -60), (x, y + 6, BOTTOM_MM)])
        found += _hollow_organ(
            "colon", Tube.through(2, knots, sample.uniform(17, 24)), 70, sample.uniform(-150, 40), 3
        )
    across = [(106, 22, -22), (70, 62, -48), (20, 76, -60), (-40, 76, -50), (-90, 48, -10)]
    knots = sample.jittered([*across, (-118, 6, 22)], 6)
    colon = Tube.through(0, knots, sample.rng.uniform(17, 25, (6, 1)))
    return found + _hollow_organ("colon", colon, 70, -900 if sample.uniform(0, 1) < 0.7 else 20, 3)


def adjacent_loops(sample: PatientSampler, pancreas: Tube, hu: float) -> list[Tissue]:
    """Bowel loops that touch body and tail, so that fat does not outline the whole pancreas."""
    found = []
    for x in (-76, -50, -24, 4):
        middle, half = (
            np.array([np.interp(x, pancreas.at, table[:, side]) for side in (0, 1)])
            for table in (pancreas.centre, pancreas.radii)
        )
        angle = np.radians(sample.uniform(-125, 80))  # in front and below
        out = np.array([np.cos(angle), np.sin(angle)])
        radii = sample.rng.uniform((14, 11, 11), (26, 17, 17))
        y, z = middle + out * (half + radii[1:])
        loop = sample.ellipsoid(np.array([x + sample.uniform(-8, 8), y, z]), radii, 40)
        found.append(Tissue("jejunum", loop, hu - sample.uniform(10, 30)))
    return found


def stomach(sample: PatientSampler, hu: float) -> list[Tissue]:
    """Stomach: fundus under the left dome, body in front, antrum across the midline."""
    knots = sample.jittered(
        [(-96, 6, 74), (-76, 14, 70), (-48, 38, 46), (-14, 60, 16), (16, 58, 2), (36, 46, 0)]
    )
    fullness = sample.uniform(0.8, 1.15)
    radii = np.array([(30, 26), (40, 36), (34, 34), (24, 26), (18, 19), (12, 13)]) * fullness
    tube = Tube.through(0, knots, radii, cap_mm=26)
    lumen = tube.shrunk(sample.uniform(3.5, 5.5))
    return [
        Tissue("stomach", tube, hu - sample.uniform(5, 20)),
        Tissue("stomach", lumen, sample.uniform(10, 45)),
        _gas(lumen, sample.uniform(0.1, 0.6)),
    ]


def duodenum(sample: PatientSampler, pancreas: Tube, hu: float) -> list[Tissue]:
    """Duodenum around the head of the pancreas: bulb, descending and horizontal part."""
    low, high = pancreas.bounds_mm
    outer = high[0] + 6
    head_y, foot = pancreas.centre[-1, 0], low[2] - 9
    radius, wall = sample.uniform(10.5, 13.5), hu - sample.uniform(8, 22)
    filling = hu - sample.uniform(15, 70)
    bulb = [(34, 44, 2), (outer - 6, 30, 4), (outer + 4, head_y + 10, 0)]
    down = [(outer + 2, head_y + 8, 8), (outer + 5, head_y, -20), (outer - 4, head_y - 6, foot - 4)]
    across = [(outer + 2, head_y - 8, foot), (24, -10, foot - 8), (-34, -12, foot + 2)]
    found = []
    for axis, knots in ((0, bulb), (2, down), (0, across)):
        tube = Tube.through(axis, np.asarray(knots) + sample.rng.uniform(-2, 2, (3, 3)), radius)
        found += _hollow_organ("duodenum", tube, wall, filling, 3)
    return found


def vessels(sample: PatientSampler, pancreas: Tube, hu: float) -> list[Tissue]:
    """Aorta and vena cava in front of the spine; veins that meet behind the pancreatic neck."""
    aorta_hu, portal_hu = sample.uniform(140, 175), hu + sample.uniform(35, 65)

    def behind(x: float, gap: float) -> tuple[float, float, float]:
        y, z = (np.interp(x, pancreas.at, pancreas.centre[:, side]) for side in (0, 1))
        depth = np.interp(x, pancreas.at, pancreas.radii[:, 0])
        return x, float(y - depth - gap), float(z + 2)

    meeting = np.array(behind(12, 4))
    splenic = np.array([meeting, *(behind(x, 2.5) for x in (-8, -30, -52, -72)), (-94, -40, 42)])
    portal = [meeting - np.array([2, 0, 2]), (28, 8, 24), (52, 6, 40), (74, 2, 46)]
    mesenteric = [meeting + np.array([0, 2, 4]), (8, 16, -40), (2, 26, -90), (0, 30, BOTTOM_MM)]
    artery = [(-6, -30, 12), (-6, -16, -2), (-8, 4, -40), (-10, 14, -90), (-10, 18, BOTTOM_MM)]
    great = [(-9, -40, TOP_MM), (-9, -38, 0), (-7, -38, BOTTOM_MM)]
    cava = [(30, -22, 95), (24, -30, 40), (22, -34, -20), (20, -36, BOTTOM_MM)]
    cava_radii = np.array([(10, 9), (12, 8), (12, 9), (11, 9)])
    drawn: list[tuple[str, int, npt.ArrayLike, npt.ArrayLike, float]] = [
        ("aorta", 2, sample.jittered(great, 1.5), sample.uniform(9, 12), aorta_hu),
        ("cava", 2, sample.jittered(cava, 2), cava_radii, hu + 35),
        ("artery", 2, artery, 3.8, aorta_hu),
        ("vein", 2, mesenteric, 5.5, portal_hu),
        ("vein", 0, portal, 6.5, portal_hu),
        ("vein", 0, splenic, 4.2, portal_hu),
    ]
    return [
        Tissue(name, Tube.through(axis, knots, r), value) for name, axis, knots, r, value in drawn
    ]
