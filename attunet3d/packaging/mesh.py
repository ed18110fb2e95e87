"""Surfaces of labels as triangle meshes, in millimetres: STL, PLY and GLB.

Coordinates are LPS, as DICOM and 3D Slicer take meshes by default. The surface is the 0.5 level of
the mask blurred by less than a voxel (marching cubes: Lewiner et al. 2003), then smoothed without
shrinking (Taubin 1995), so that the steps between slices vanish and the volume stays.
"""

from pathlib import Path

import numpy as np
import trimesh
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from attunet3d.core import Mask, whole_file
from attunet3d.imaging import Grid, Segmentation, colour_of

FORMATS = ("stl", "ply", "glb")
BLUR_MM = 1.0
MOST_BLUR_VOXELS = 0.7  # more would take structures one voxel thick away
MARGIN = 3  # voxels of background around a mask, so that the blurred surface closes
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def surface(mask: Mask, grid: Grid, smoothing: int = 10) -> trimesh.Trimesh:
    """Find the closed surface of a mask.

    Args:
        mask: (I, J, K), not empty.
        grid: Where its voxels lie.
        smoothing: Rounds of Taubin smoothing.

    Returns:
        A watertight mesh in LPS mm, its normals outwards.

    Example:
        >>> mask = np.zeros((20, 20, 20), bool); mask[5:15, 5:15, 5:15] = True
        >>> mesh = surface(mask, Grid(mask.shape, np.eye(4)))
        >>> mesh.is_watertight, round(float(mesh.volume), -2)
        (True, 900.0)
    """
    box = tuple(slice(int(found.min()), int(found.max()) + 1) for found in np.nonzero(mask))
    field = np.pad(mask[box].astype(np.float32), MARGIN)
    blur = np.minimum(BLUR_MM / np.array(grid.spacing_mm), MOST_BLUR_VOXELS)
    soft = gaussian_filter(field, blur)
    if soft.max() <= 0.5:  # too thin to blur
        soft = field
    points, faces, _, _ = marching_cubes(soft, 0.5)
    index = points - MARGIN + np.array([part.start for part in box])
    mesh = trimesh.Trimesh(grid.to_world(index) * RAS_TO_LPS, faces, process=True)
    trimesh.smoothing.filter_taubin(mesh, iterations=smoothing)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def write_meshes(folder: Path, segmentation: Segmentation, form: str = "stl") -> list[Path]:
    """Write a mesh for each label with voxels, as `folder`/NAME.FORM.

    Args:
        folder: Made if it is missing and a label has voxels.
        segmentation: A label map on a scan's grid.
        form: "stl", "ply" or "glb"; the latter two keep colours.

    Returns:
        The files written.

    Raises:
        WriteError: The disk is full or the folder read-only.
    """
    written = []
    for value, name in sorted(segmentation.labels.items()):
        if not value or not (mask := segmentation.mask_of(value)).any():
            continue
        mesh = surface(mask, segmentation.grid)
        mesh.visual.vertex_colors = [*colour_of(value), 255]
        path = whole_file.make_folder(folder) / f"{'_'.join(name.split()).replace('/', '_')}.{form}"
        content = mesh.export(file_type=form)
        whole_file.write_bytes(path, content.encode() if isinstance(content, str) else content)
        written.append(path)
    return written
