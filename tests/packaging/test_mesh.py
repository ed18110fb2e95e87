"""Meshes of shapes whose volume, area and place are known, read back by trimesh."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from attunet3d.core import Mask
from attunet3d.imaging import Grid, Segmentation
from attunet3d.packaging.mesh import FORMATS, surface, write_meshes
from tests.imaging.source_series import DIRECTIONS, SPACING

RADIUS = 14.0


def ball(direction: Any = None) -> tuple[Mask, Grid]:
    """A ball of 14 mm around (5, -3, 8) RAS mm on an anisotropic grid, and its grid."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else direction) * np.array(SPACING)
    shape = (50, 46, 18)
    affine[:3, 3] = np.array([5.0, -3.0, 8.0]) - affine[:3, :3] @ (np.array(shape) / 2)
    grid = Grid(shape, affine)
    points = grid.to_world(np.moveaxis(np.indices(shape), 0, -1))
    return np.linalg.norm(points - [5, -3, 8], axis=-1) <= RADIUS, grid


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_a_ball_has_its_volume_area_and_centre_in_lps(kind: str) -> None:
    mesh = surface(*ball(DIRECTIONS[kind]))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)
    assert mesh.area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.05)
    np.testing.assert_allclose(mesh.center_mass, [-5, 3, 8], atol=0.1)


def test_a_mask_at_the_border_is_closed() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[:10, :, :] = True
    mesh = surface(mask, Grid(mask.shape, np.eye(4)))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 12, 12), (1, 1, 9)])
def test_one_voxel_thick_structures_keep_a_surface(shape: tuple[int, int, int]) -> None:
    mask = np.zeros((14, 14, 14), bool)
    mask[tuple(slice(1, 1 + n) for n in shape)] = True
    mesh = surface(mask, Grid(mask.shape, np.diag([0.5, 0.5, 0.5, 1])))
    assert mesh.is_watertight
    assert mesh.volume > 0


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_read_back_by_name(form: str, tmp_path: Path) -> None:
    mask, grid = ball()
    array = np.where(mask, np.uint8(3), np.uint8(0))
    labels = {0: "background", 3: "left kidney", 4: "spleen"}
    (path,) = write_meshes(tmp_path / "meshes", Segmentation(array, grid, labels), form)
    assert path.name == f"left_kidney.{form}"
    assert not write_meshes(tmp_path / "none", Segmentation(array * 0, grid, labels), form)
    assert not (tmp_path / "none").exists()
    mesh = trimesh.load(path, force="mesh")
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)
