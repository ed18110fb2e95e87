"""Scans of true anatomy: a patient's outlined organs filled with tissue, so the answer is exact.

The organs have the shapes that people drew. Their HU follow the phase of contrast; kidneys get a
cortex, stomach and duodenum a wall, fluid and gas. Everything else (wall, spine, vessels, bowel) is
a phantom's, fitted to the patient by the middles of the organs, with lungs above the diaphragm.
Where only the pancreas is outlined, its neighbours are the phantom's too, unlabelled.
Nothing here is a patient's CT.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter

from attunet3d.core import Float32s, Floats, LabelMap, Mask
from attunet3d.imaging import Grid, Volume
from attunet3d.phantoms.anatomy import healthy_anatomy
from attunet3d.phantoms.artefacts import draw_scanner
from attunet3d.phantoms.cohort import EASY, Cohort, find_cohort, happens
from attunet3d.phantoms.outlines import Outlines, coarsened
from attunet3d.phantoms.pathology import remaining
from attunet3d.phantoms.phases import draw_dose, hu_in_phase, in_phase
from attunet3d.phantoms.scanner import acquire, draw_tissues, points_of, share_inside
from attunet3d.phantoms.shapes import Region, Torso, Tube
from attunet3d.phantoms.tissue import Anatomy

LUNG_HU, HEART_HU, GAS_HU, FLUID_HU = -830.0, 120.0, -900.0, 25.0
DOME_REACH_MM = 30.0  # the diaphragm spans gaps of about twice this between organs
DOME_HEIGHT_MM = 45.0  # of the diaphragm, from its edge to its top
BELOW_MM, ABOVE_MM = 35.0, 25.0  # of the scan beyond the lowest and the highest organ
KIDNEY_WEIGHT = 5.0  # it lies beside the spine, which must not reach into it
PLACES = {  # middles of a phantom's organs, mm
    "liver": (80, 5, 55),
    "spleen": (-108, -44, 48),
    "left kidney": (-66, -56, -14),
    "gallbladder": (64, 50, -8),
    "stomach": (-45, 28, 45),
    "duodenum": (42, 5, -22),
    "pancreas": (-8, 5, 4),
}
HIDDEN = {"lung", "liver vein", *PLACES}  # tissues of the phantom that outlines or lungs replace
HU_BESIDE_PANCREAS = {  # venous phase, least and greatest difference from the pancreas
    "liver": (5, 22),
    "spleen": (10, 28),
    "oesophagus": (-40, -15),
    "stomach": (-20, -5),
    "duodenum": (-22, -8),
}
OWN_HU = {"gallbladder": (4, 18), "left kidney": (165, 205)}
PHASE_NAMES = {"left kidney": "kidney", "oesophagus": "stomach"}

Contrast = tuple[str, float]  # phase and dose


def fill_outlines(
    outlines: Outlines,
    seed: int,
    *,
    cohort: str | Cohort = EASY,
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0),
    name: str = "",
) -> tuple[Volume, Volume]:
    """Make a synthetic CT of a patient's true organs, and its label map.

    A voxel's label is the organ that most of it holds. Voxels are whole blocks of the outlines'
    voxels, as near to `spacing_mm` as such blocks come.

    Args:
        outlines: The organs.
        seed: Seeds tissue, surroundings and noise.
        cohort: Its phases, texture, noise, blur, metal and `ascites_share` count; disease and
            motion do not, for the organs are given.
        spacing_mm: Wanted voxel size; slices thicker than this stay as they are.
        name: Name of the case.

    Returns:
        The scan (int16, HU) and the label map (uint8) with the values of `outlines.names`.
    """
    cohort, rng = find_cohort(cohort), np.random.default_rng([seed, 6])
    factors = [
        max(1, round(wanted / own))
        for wanted, own in zip(spacing_mm, outlines.grid.spacing_mm, strict=True)
    ]
    table, grid = coarsened(_cropped(outlines), factors)
    shares = dict(zip(outlines.names.values(), table, strict=True))
    phase = cohort.draw_phase(rng)
    contrast = phase, draw_dose(phase, rng)
    world = _phantom_grid(outlines, grid)
    anatomy = _phantom_around(shares, world, seed)
    values = _surroundings(shares, anatomy, world, contrast, happens(rng, cohort.ascites_share))
    _add_organs_(values, shares, anatomy, grid, contrast, rng)
    if "liver" in shares:
        _add_veins_(values, shares["liver"], anatomy, world, contrast)
    centre = outlines.centres_mm().get("pancreas", np.zeros(3))
    scanner = replace(draw_scanner(seed, cohort, centre), motion_mm=np.zeros(3))
    scan = acquire(np.ascontiguousarray(values.T), grid, scanner, seed).T
    return Volume(scan, grid, name=name), Volume(_label(table, outlines), grid, name=name)


def _surroundings(
    shares: dict[str, Float32s], anatomy: Anatomy, world: Grid, contrast: Contrast, ascites: bool
) -> Float32s:
    """HU (I, J, K) around the outlines: the phantom without the outlined organs, and lungs."""
    alone = "liver" not in shares
    hidden = {"pancreas"} if alone else HIDDEN
    drawn = replace(anatomy, tissues=in_phase(remaining(anatomy.tissues, hidden), *contrast))
    drawn = drawn.with_cavity(FLUID_HU) if ascites else drawn
    values = draw_tissues(drawn, world, min(world.spacing_mm)).T
    if not alone:
        _add_lungs_(values, shares, anatomy, world)
    return values


def _add_organs_(
    values: Float32s,
    shares: dict[str, Float32s],
    anatomy: Anatomy,
    grid: Grid,
    contrast: Contrast,
    rng: np.random.Generator,
) -> None:
    """Mix the organs in by their shares of each voxel, in place."""
    hu = anatomy.tissues[-1].hu  # the phantom's pancreas, whose HU the bowel around it resembles
    for organ, share in shares.items():
        inside = _organ(organ, share, grid, hu, rng)
        enhanced = hu_in_phase(PHASE_NAMES.get(organ, organ), inside, *contrast)
        values += share * (enhanced - values)


def _label(shares: Float32s, outlines: Outlines) -> LabelMap:
    """The organ that most of a voxel holds; background where no organ has more than the rest."""
    best = shares.argmax(axis=0)
    rest = 1 - shares.sum(axis=0)
    kept = shares.max(axis=0) > rest
    label: LabelMap = np.where(kept, np.array(list(outlines.names), np.uint8)[best], np.uint8(0))
    return np.asfortranarray(label)


def _cropped(outlines: Outlines) -> Outlines:
    """The slices of the abdomen's organs and some beyond; the oesophagus reaches the neck."""
    inner = [value for value, name in outlines.names.items() if name != "oesophagus"]
    lookup = np.isin(np.arange(256), inner)
    occupied = np.flatnonzero(lookup[outlines.array].any(axis=(0, 1)))
    slice_mm = outlines.grid.spacing_mm[2]
    first = max(int(occupied[0] - BELOW_MM / slice_mm), 0)
    last = min(int(occupied[-1] + ABOVE_MM / slice_mm) + 1, outlines.array.shape[2])
    rows, columns, _ = outlines.array.shape
    box = slice(0, rows), slice(0, columns), slice(first, last)
    return Outlines(outlines.array[box], outlines.grid.cropped(box), outlines.names)


def _phantom_grid(outlines: Outlines, grid: Grid) -> Grid:
    """The patient's grid in a phantom's world: each axis shifted and stretched to fit."""
    centres = outlines.centres_mm()
    known = [name for name in PLACES if name in centres]
    ours, theirs = (np.array([table[n] for n in known], float) for table in (centres, PLACES))
    scale = np.ones(3)
    if len(known) > 1:
        scale = np.clip(theirs.std(axis=0) / np.maximum(ours.std(axis=0), 1.0), 0.85, 1.15)
    weights = [KIDNEY_WEIGHT if name == "left kidney" else 1.0 for name in known]
    to_phantom = np.diag([*scale, 1.0])
    to_phantom[:3, 3] = np.average(theirs - scale * ours, axis=0, weights=weights)
    return Grid(grid.shape, to_phantom @ grid.affine)


def _phantom_around(shares: dict[str, Float32s], grid: Grid, seed: int) -> Anatomy:
    """A phantom whose body holds the organs and whose vessels run along the true pancreas."""
    taken = np.add.reduce(list(shares.values())) > 0.5
    pancreas = shares.get("pancreas")
    tube = None if pancreas is None else _tube(grid.to_world(np.argwhere(pancreas > 0.5)))
    plain = healthy_anatomy(seed)
    x, y, _ = (axis.T[taken] for axis in plain.warp(*points_of(grid)))
    return healthy_anatomy(seed, tube, _holding(plain.torso, x, y, plain.wall[-1][0]))


def _tube(points: Floats) -> Tube | None:
    """A tube along x through an organ's voxels (n, 3); None where there are too few."""
    if len(points) < 50:
        return None
    edges = np.quantile(points[:, 0], np.linspace(0, 1, 8))
    knots, radii = [], []
    for low, high in pairwise(edges):
        part = points[(points[:, 0] >= low) & (points[:, 0] <= high)]
        knots.append(part.mean(axis=0))
        radii.append(np.maximum(2 * part[:, 1:].std(axis=0), 4.0))
    return Tube.through(0, knots, radii)


def _holding(torso: Torso, x: Float32s, y: Float32s, wall_mm: float) -> Torso:
    """The torso, wide and deep enough that points lie beneath its wall."""
    for _ in range(60):
        beyond = torso.outline(x, y) + wall_mm + 2
        if not (beyond > 0).any():
            break
        sideways = np.abs(x[beyond > 0]) / torso.half_width_mm
        along_y = np.abs(y[beyond > 0]) / torso.half_depth_mm
        wider = bool(sideways.mean() > along_y.mean())
        torso = replace(
            torso,
            half_width_mm=torso.half_width_mm * (1.02 if wider else 1.0),
            half_depth_mm=torso.half_depth_mm * (1.0 if wider else 1.02),
        )
    return torso


def _add_lungs_(
    values: Float32s, shares: dict[str, Float32s], anatomy: Anatomy, grid: Grid
) -> None:
    """Lungs and heart above a diaphragm that lies on liver, spleen and stomach; in place."""
    x, y, z = (axis.T for axis in anatomy.warp(*points_of(grid)))  # (I, J, K)
    under = [shares[name] > 0.5 for name in ("liver", "spleen", "stomach") if name in shares]
    below = np.logical_or.reduce(under)
    height = _diaphragm_mm(below, z, grid.spacing_mm)[:, :, None] + 3
    depth = anatomy.torso.outline(x[:, :, :1], y[:, :, :1]) + np.float32(anatomy.wall[-1][0] + 1)
    behind = (np.abs(x) < 24 + 0.2 * np.abs(y + 40)) & (y < -12)  # spine, great vessels
    lung = (z > height) & (depth < 0) & ~behind
    heart = ((x + 22) / 62) ** 2 + ((y - 42) / 52) ** 2 + ((z - height - 36) / 42) ** 2 < 1
    edge = gaussian_filter(lung.astype(np.float32), 0.6)
    values += edge * (LUNG_HU - values)
    edge = gaussian_filter((heart & (z > height) & (depth < 0)).astype(np.float32), 0.7)
    values += edge * (HEART_HU - values)


def _diaphragm_mm(organs: Mask, z: Float32s, spacing_mm: tuple[float, ...]) -> Float32s:
    """Height (I, J): a smooth dome over the highest organ voxel within reach of each column."""
    top = np.where(organs, z, np.float32(z.min())).max(axis=2)
    width = [2 * round(DOME_REACH_MM / mm) + 1 for mm in spacing_mm[:2]]
    dome = np.maximum(maximum_filter(top, width, mode="nearest"), top.max() - DOME_HEIGHT_MM)
    smooth = gaussian_filter(dome, [DOME_REACH_MM / 2 / mm for mm in spacing_mm[:2]])
    height: Float32s = np.maximum(smooth, top)  # never through an organ
    return height


def _add_veins_(
    values: Float32s, liver: Float32s, anatomy: Anatomy, grid: Grid, phase: Contrast
) -> None:
    """A phantom's hepatic veins where they run through the true liver; in place."""
    x, y, z = points_of(grid)
    edge = np.float32(min(grid.spacing_mm))
    for tissue in anatomy.tissues:
        if tissue.name == "liver vein" and isinstance(tissue.shape, Region):
            distance = tissue.shape.function(x, y, z).T
            cover = share_inside(distance, edge) * liver
            values += cover * (np.float32(hu_in_phase("liver vein", tissue.hu, *phase)) - values)


def _organ(name: str, share: Float32s, grid: Grid, hu: float, rng: np.random.Generator) -> Float32s:
    """HU inside one organ in the venous phase, (I, J, K) or one number for all of it."""
    low, high = HU_BESIDE_PANCREAS.get(name, (0.0, 0.0))
    value = rng.uniform(*OWN_HU[name]) if name in OWN_HU else hu + rng.uniform(low, high)
    if name in ("stomach", "duodenum", "left kidney"):
        depth = distance_transform_edt(share > 0.5, grid.spacing_mm).astype(np.float32)
        return _parts(name, depth, value, rng)
    return np.array(value, np.float32)


def _parts(name: str, depth: Float32s, value: float, rng: np.random.Generator) -> Float32s:
    """HU by the depth (I, J, K), in mm, below the organ's surface."""
    if name == "left kidney":
        inner = np.where(depth > 17, np.float32(-50), np.float32(rng.uniform(120, 150)))
        return np.where(depth > 7, inner, np.float32(value))
    wall = rng.uniform(3, 5) if name == "stomach" else 2.5
    values = np.where(depth > wall, np.float32(rng.uniform(10, 50)), np.float32(value))
    lumen = np.argwhere(depth > wall)
    if len(lumen) and (name == "stomach" or rng.uniform() < 0.4):
        level = np.quantile(lumen[:, 1], rng.uniform(0.35, 0.85))  # gas rises to the front
        front = np.arange(depth.shape[1])[None, :, None] > level
        values[(depth > wall) & front] = GAS_HU
    return values
