"""A phantom of clinical size, as a scanner's export would lie on disk: the benchmarks' input.

512×512×200 voxels of 0.78×0.78×1.25 mm, int16, voxel axes to L, A, S as dcm2niix writes them, air
of -1024 beyond the reconstruction circle, gzip at level 6: 2.3 times smaller than raw, as clinical
CTs are.
"""

import gzip
from pathlib import Path

import numpy as np

from attunet3d.core import PreprocessingConfig
from attunet3d.imaging import Grid, write_nifti
from attunet3d.phantoms import make_phantom

CLINICAL = (512, 512, 200)
SMALL = (128, 128, 64)  # the middle of it
SPACING_MM = (0.78, 0.78, 1.25)
OUTSIDE_HU = -1024
GRID_MM = 1.5
HU = (-160.0, 240.0)


def preprocessing(crop_to_body: bool) -> PreprocessingConfig:
    """To a grid of 1.5 mm and values from -1 to 1."""
    middle, half = (HU[0] + HU[1]) / 2, (HU[1] - HU[0]) / 2
    return PreprocessingConfig(
        spacing_mm=(GRID_MM,) * 3,
        hu_window=HU,
        mean_hu=middle,
        std_hu=half,
        crop_to_body=crop_to_body,
    )


def write_clinical_scan(folder: Path, shape: tuple[int, int, int] = CLINICAL) -> Path:
    """Write the middle `shape` voxels as `folder`/scan.nii.gz; return that path."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * SPACING_MM
    grid = Grid(shape, affine).oriented("LAS")
    volume, _ = make_phantom(3, grid=grid)
    i, j = (np.linspace(-1, 1, size) for size in shape[:2])
    volume.array[i[:, None] ** 2 + j**2 > 1] = OUTSIDE_HU
    path, plain = folder / "scan.nii.gz", folder / "scan.nii"
    write_nifti(plain, volume.array, None, grid)
    path.write_bytes(gzip.compress(plain.read_bytes(), 6))
    plain.unlink()
    return path
