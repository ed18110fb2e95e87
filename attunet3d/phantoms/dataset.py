"""Phantom scans with exact labels: patients made of shapes, seen by a simulated scanner.

The label of a voxel is the sign of the pancreas's function at its centre, on any grid; the
scanner averages over voxels, blurs and adds noise. Same seed, same patient, whatever the grid.
"""

import json
from pathlib import Path

import numpy as np

from attunet3d.core import whole_file
from attunet3d.imaging import Grid, Segmentation, Volume, write_nifti
from attunet3d.phantoms.anatomy import random_anatomy
from attunet3d.phantoms.cohort import EASY, Cohort, find_cohort
from attunet3d.phantoms.scanner import label_anatomy, scan_anatomy
from attunet3d.phantoms.tissue import rotation

LABELS = {0: "background", 1: "pancreas"}
TUMOUR_LABELS = {**LABELS, 2: "tumour"}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "LPI", "RAI", "SAL", "ASL", "PIR", "ILA")


def make_phantom(
    seed: int, *, grid: Grid | None = None, cohort: str | Cohort = EASY
) -> tuple[Volume, Volume]:
    """Scan the patient of a seed: a CT and its label map.

    Args:
        seed: Same seed and cohort, same patient.
        grid: Where to scan; None: `random_grid(seed, cohort=cohort)`.
        cohort: What patients and scanners are like: "easy", "hard", "hard_elsewhere" or a
            `Cohort` of one's own.

    Returns:
        The scan in HU (int16) and the label (uint8, 1 = pancreas), both (I, J, K) in Fortran
        order. The pancreas's exact volume is `random_anatomy(seed, cohort).pancreas_ml`.

    Example:
        >>> import numpy as np
        >>> affine = np.diag([9.0, 9, 9, 1])
        >>> affine[:3, 3] = -176, -130, -81
        >>> coarse = Grid((40, 30, 20), affine)
        >>> ct, label = make_phantom(7, grid=coarse)
        >>> ct.array.dtype, label.array.dtype, int(ct.array.min()) < -950
        (dtype('int16'), dtype('uint8'), True)
    """
    cohort = find_cohort(cohort)
    anatomy, grid = random_anatomy(seed, cohort), grid or random_grid(seed, cohort=cohort)
    name = f"phantom_{seed:04}"
    scan = Volume(scan_anatomy(anatomy, grid, seed, cohort), grid, name=name)
    return scan, Volume(label_anatomy(anatomy, grid), grid, name=name)


def random_grid(
    seed: int,
    *,
    matrix: int = 112,
    slices: int | None = None,
    cohort: Cohort = EASY,
) -> Grid:
    """Draw a grid over the upper abdomen: random spacing, orientation and tilt.

    Args:
        seed: Same seed, same grid.
        matrix: Voxels along both axes of a slice; 512 in the clinic, fewer for a quick demo.
        slices: Their number; None: as many as cover about 21 cm.
        cohort: Its `slice_mm` and `oblique_degrees` count.
    """
    rng = np.random.default_rng([seed, 2])
    pixel, thickness = rng.uniform(370, 430) / matrix, rng.uniform(*cohort.slice_mm)
    count = slices or round(rng.uniform(200, 230) / thickness)
    most = cohort.oblique_degrees
    turn = rotation(np.radians(rng.uniform(-most, most, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * (pixel, pixel, thickness)
    middle = np.array([matrix - 1, matrix - 1, count - 1]) / 2
    affine[:3, 3] = rng.uniform((-6, -16, -1), (6, -4, 11)) - affine[:3, :3] @ middle
    return Grid((matrix, matrix, count), affine).oriented(str(rng.choice(ORIENTATIONS)))


def write_phantoms(
    folder: Path,
    count: int,
    seed: int = 0,
    *,
    matrix: int = 112,
    cohort: str | Cohort = EASY,
) -> Path:
    """Write a data set in the layout of the Medical Segmentation Decathlon.

    Phantom n is patient `seed + n` on the grid of that seed, so seeds further apart than `count`
    share no patient.

    Returns:
        The folder, which then holds `dataset.json`, `imagesTr` and `labelsTr`.

    Raises:
        WriteError: The folder cannot be made or written.
    """
    folder, cohort = whole_file.make_folder(Path(folder)), find_cohort(cohort)
    labels = TUMOUR_LABELS if cohort.tumour_label else LABELS
    pairs = []
    for number in range(seed, seed + count):
        image, label = (f"{part}/phantom_{number:04}.nii.gz" for part in ("imagesTr", "labelsTr"))
        for path in (image, label):
            whole_file.make_folder((folder / path).parent)
        grid = random_grid(number, matrix=matrix, cohort=cohort)
        ct, truth = make_phantom(number, grid=grid, cohort=cohort)
        write_nifti(folder / image, ct.array, None, ct.grid)
        Segmentation(truth.array, truth.grid, labels).save(folder / label)
        pairs.append({"image": f"./{image}", "label": f"./{label}"})
    whole_file.write_text(
        folder / "dataset.json", json.dumps(_description(pairs, labels), indent=2) + "\n"
    )
    return folder


def _description(pairs: list[dict[str, str]], labels: dict[int, str]) -> dict[str, object]:
    return {
        "name": "Phantom abdomens",
        "description": "Made of shapes by attunet3d.phantoms; the pancreas is known exactly",
        "reference": "attunet3d",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in labels.items()},
        "numTraining": len(pairs),
        "numTest": 0,
        "training": pairs,
        "test": [],
    }
