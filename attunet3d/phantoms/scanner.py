"""The simulated scanner: from tissues to exact labels, and to Hounsfield units with noise.

Work goes slab by slab along the last voxel axis, in (K, J, I) order, the memory order of a NIfTI.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from attunet3d.core import Box, Float32s, Floats
from attunet3d.imaging import Grid
from attunet3d.phantoms.artefacts import Points, Scanner, add_texture_, draw_scanner
from attunet3d.phantoms.cohort import EASY, Cohort
from attunet3d.phantoms.tissue import Anatomy, Tissue

AIR_HU, LOWEST_HU = -1000.0, -1024
GRAIN_VOXELS = 0.6  # reach of the noise's correlation between neighbours in a slice
SLAB_VOXELS = 3_000_000


def label_anatomy(anatomy: Anatomy, grid: Grid) -> npt.NDArray[np.uint8]:
    """Label each voxel by its centre: 1 pancreas, 2 tumour if the anatomy gives it a label.

    Returns:
        (I, J, K), Fortran order.
    """
    label = np.zeros(grid.shape[::-1], np.uint8)  # (K, J, I)
    for start, slab in _slabs(grid):
        box = _box(slab, anatomy.pancreas.bounds_mm, anatomy.warp.reach_mm)
        if box is not None:
            points = anatomy.warp(*points_of(slab.cropped(box)))
            planes = slice(start + box[2].start, start + box[2].stop)
            inside = anatomy.pancreas.distance(*points) < 0
            label[planes, box[1], box[0]] = inside
            if anatomy.tumour is not None:
                label[planes, box[1], box[0]] += inside & (anatomy.tumour.distance(*points) < 0)
    return label.T


def scan_anatomy(
    anatomy: Anatomy, grid: Grid, seed: int, cohort: Cohort = EASY
) -> npt.NDArray[np.int16]:
    """Scan a patient with the scanner of this seed: HU (I, J, K), Fortran order."""
    scanner = draw_scanner(seed, cohort, anatomy.pancreas.bounds_mm.mean(axis=0))
    sigma = scanner.blur_mm / np.array(grid.spacing_mm)[::-1]  # (k, j, i)
    halo = int(4 * max(sigma[0], GRAIN_VOXELS)) + 1  # planes that neighbours' blur reaches from
    scan = np.empty(grid.shape[::-1], np.int16)
    for start, slab in _slabs(grid):
        rows, columns, planes = slab.shape
        wide = slab.cropped((slice(0, rows), slice(0, columns), slice(-halo, planes + halo)))
        values = _partial_volumes(anatomy, wide, scanner.motion_mm)
        seen = acquire(values, wide, scanner, seed, start - halo)
        scan[start : start + planes] = seen[halo:-halo]
    return scan.T


def acquire(
    values: Float32s, grid: Grid, scanner: Scanner, seed: int, first_plane: int = 0
) -> npt.NDArray[np.int16]:
    """Turn tissue into a scan: add texture, blur, the kernel, metal and noise.

    Args:
        values: HU averaged over each voxel, (K, J, I).
        grid: Their grid.
        scanner: How the scan is made.
        seed: Seeds the noise.
        first_plane: Number of the first plane, so that slabs of one scan share one noise.

    Returns:
        (K, J, I).
    """
    sigma = scanner.blur_mm / np.array(grid.spacing_mm)[::-1]
    points = points_of(grid)
    add_texture_(values, points, scanner)
    values = gaussian_filter(values, sigma, mode="nearest")
    if scanner.sharpness > 0:
        smooth = gaussian_filter(values, (0, 1, 1), mode="nearest")
        values += np.float32(scanner.sharpness) * (values - smooth)
    if scanner.metal is not None:
        scanner.metal.add_(values, points)
    values += scanner.noise_hu * _noise(grid, seed, first_plane)
    kept: npt.NDArray[np.int16] = np.rint(values).clip(LOWEST_HU, 3071).astype(np.int16)
    return kept


def _slabs(grid: Grid) -> Iterator[tuple[int, Grid]]:
    """Yield the first plane and the grid of each slab of planes along the last axis."""
    rows, columns, planes = grid.shape
    step = max(1, SLAB_VOXELS // (rows * columns))
    for start in range(0, planes, step):
        stop = min(start + step, planes)
        yield start, grid.cropped((slice(0, rows), slice(0, columns), slice(start, stop)))


def points_of(grid: Grid) -> Points:
    """World x, y, z of the voxel centres, each (K, J, I)."""
    a, b, c = (np.arange(length) for length in grid.shape)
    x, y, z = (
        (
            (row[2] * c + row[3])[:, None, None].astype(np.float32)
            + (row[1] * b)[:, None].astype(np.float32)
            + (row[0] * a).astype(np.float32)
        )
        for row in grid.affine[:3]
    )
    return x, y, z


def _box(grid: Grid, bounds_mm: Floats, margin_mm: float) -> Box | None:
    """The box of voxels that may lie within world bounds, or None if there are none."""
    low, high = bounds_mm[0] - margin_mm, bounds_mm[1] + margin_mm
    pick = np.indices((2, 2, 2)).reshape(3, 8).T
    corners = grid.to_index(np.where(pick, high, low))
    first = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    last = np.minimum(np.ceil(corners.max(axis=0)) + 1, grid.shape).astype(int)
    if (first >= last).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return i, j, k


def _partial_volumes(anatomy: Anatomy, grid: Grid, motion_mm: Floats) -> Float32s:
    """HU averaged over each voxel and over the motion while it was scanned.

    Edges are as wide as a pixel; thick slices are the mean of several thin ones.
    """
    spacing = np.array(grid.spacing_mm)
    axis, pixel = int(spacing.argmax()), float(np.median(spacing))
    parts = int(np.clip(spacing[axis] / pixel, 3 if motion_mm.any() else 1, 3))
    total = np.zeros(grid.shape[::-1], np.float32)
    for part in range(parts):
        share = (part + 0.5) / parts - 0.5
        affine = grid.affine.copy()
        affine[:3, 3] += affine[:3, axis] * share + 2 * motion_mm * share
        total += draw_tissues(anatomy, Grid(grid.shape, affine), pixel)
    total /= np.float32(parts)
    return total


def draw_tissues(anatomy: Anatomy, grid: Grid, edge: float) -> Float32s:
    """Paint tissues over one another, with edges `edge` mm wide: HU (K, J, I)."""
    edge_mm = np.float32(edge)
    values = np.full(grid.shape[::-1], AIR_HU, np.float32)
    couch = _box(grid, anatomy.table.shape.bounds_mm, float(edge_mm))
    if couch is not None:
        _blend_(values[couch[::-1]], anatomy.table, points_of(grid.cropped(couch)), edge_mm, None)
    margin = anatomy.warp.reach_mm + float(edge_mm)
    body = _box(grid, anatomy.torso.bounds_mm, margin)
    if body is not None:
        _draw_body(values[body[::-1]], anatomy, grid.cropped(body), edge_mm)
    return values


def _draw_body(values: Float32s, anatomy: Anatomy, grid: Grid, edge_mm: np.float32) -> None:
    points = anatomy.warp(*points_of(grid))
    outline = anatomy.torso.outline(*points[:2])
    for depth, hu in anatomy.wall:
        cavity = share_inside(outline + np.float32(depth), edge_mm)  # of the innermost at the end
        values += cavity * (np.float32(hu) - values)
    margin = anatomy.warp.reach_mm + float(edge_mm)
    for tissue in anatomy.tissues:
        box = _box(grid, tissue.shape.bounds_mm, margin)
        if box is not None:
            x, y, z = (axis[box[::-1]] for axis in points)
            within = cavity[box[::-1]] if tissue.in_cavity else None
            _blend_(values[box[::-1]], tissue, (x, y, z), edge_mm, within)


def _blend_(
    values: Float32s, tissue: Tissue, points: Points, edge_mm: np.float32, within: Float32s | None
) -> None:
    """Paint one tissue over `values`, in place."""
    cover = share_inside(tissue.shape.distance(*points), edge_mm)
    if within is not None:
        cover *= within
    cover *= np.float32(tissue.hu) - values
    values += cover


def share_inside(distance: Float32s, edge_mm: np.float32) -> Float32s:
    """Fraction of a voxel inside a flat edge, from the distance of its centre to it."""
    share: Float32s = np.clip(np.float32(0.5) - distance / edge_mm, 0, 1)
    return share


def _noise(grid: Grid, seed: int, first_plane: int) -> Float32s:
    """Noise of standard deviation 1, correlated within slices; each plane has its own seed."""
    rows, columns, planes = grid.shape
    noise = np.empty((planes, columns, rows), np.float32)
    for row, plane in enumerate(noise):
        number = first_plane + row + 2**20  # planes before the first have numbers, too
        np.random.default_rng([seed, 4, number]).standard_normal(dtype=np.float32, out=plane)
    grain = np.full(3, GRAIN_VOXELS)
    grain[2 - int(np.argmax(grid.spacing_mm))] = 0
    impulse = gaussian_filter1d(np.eye(1, 15, 7)[0], GRAIN_VOXELS)
    gain = np.float32((impulse**2).sum())  # of two axes: the product of two equal roots
    grained: Float32s = gaussian_filter(noise, grain, mode="wrap") / gain
    return grained
