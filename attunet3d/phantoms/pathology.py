"""Changes a phantom by disease and surgery: masses, atrophy, resection, removed organs.

The pancreas stays one swept tube, whose volume is known exactly; a mass is a region within it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from attunet3d.phantoms.cohort import Cohort, happens
from attunet3d.phantoms.shapes import Ellipsoid, Region, Shape, Tube
from attunet3d.phantoms.tissue import Tissue

REMOVABLE = ("spleen", "gallbladder", "left kidney")
HEAD = "head resected"


@dataclass(frozen=True, eq=False)
class Disease:
    """The disease and the surgery of one patient."""

    pancreas: Tube
    tumour: Shape | None
    pancreas_offset_hu: float
    """Added to the pancreas's HU: fat between its lobules darkens it."""
    gone: frozenset[str]
    """Names of the organs that surgery removed."""


def draw_disease(pancreas: Tube, cohort: Cohort, rng: np.random.Generator) -> Disease:
    """The disease of one patient of a cohort, with the shape that it gives the pancreas."""
    gone = {name for name in REMOVABLE if happens(rng, cohort.missing_share)}
    offset = 0.0
    if happens(rng, cohort.atrophy_share):
        pancreas, offset = pancreas.scaled(rng.uniform(0.65, 0.85)), -float(rng.uniform(5, 30))
    if happens(rng, cohort.resected_share):
        length, tail = pancreas.at[-1] - pancreas.at[0], rng.uniform() < 0.6
        cut = pancreas.at[0] + length * rng.uniform(*((0.35, 0.6) if tail else (0.6, 0.72)))
        low, high = (cut, np.inf) if tail else (-np.inf, cut)
        pancreas = pancreas.cut(low, high)
        gone |= {"spleen"} if tail and rng.uniform() < 0.5 else set()
        gone |= set() if tail else {HEAD}
    tumour = None
    if happens(rng, cohort.tumour_share):
        pancreas, tumour = _tumour(pancreas, rng)
    return Disease(pancreas, tumour, offset, frozenset(gone))


def _tumour(pancreas: Tube, rng: np.random.Generator) -> tuple[Tube, Shape]:
    """The pancreas swollen around a mass, and the mass, which does not reach beyond it."""
    start, stop = pancreas.at[0], pancreas.at[-1]
    at = float(start + (stop - start) * rng.uniform(0.12, 0.88))
    radius = float(rng.uniform(7, 16))
    swelling = 1 + rng.uniform(0.1, 0.6) * np.exp(-(((pancreas.at - at) / (1.2 * radius)) ** 2))
    swollen = replace(pancreas, radii=pancreas.radii * swelling[:, None])
    y, z = (np.interp(at, pancreas.at, pancreas.centre[:, side]) for side in (0, 1))
    centre = np.array([at, y, z]) + rng.uniform(-3, 3, 3)
    mass = Ellipsoid(centre, radius * rng.uniform(0.8, 1.2, 3))
    return swollen, Region(mass.bounds_mm, mass.distance, swollen)


def remaining(tissues: Iterable[Tissue], gone: Collection[str]) -> tuple[Tissue, ...]:
    """The tissues without those of the organs named in `gone`."""

    def is_gone(tissue: Tissue) -> bool:
        if tissue.name == "kidney":  # negative x is the patient's left
            return "left kidney" in gone and bool(tissue.shape.bounds_mm.mean(axis=0)[0] < 0)
        return tissue.name in gone or (tissue.name == "duodenum" and HEAD in gone)

    return tuple(tissue for tissue in tissues if not is_gone(tissue))
