"""Any grid goes through the whole of inference and comes out bit by bit; what lies on it stays put.

Affines are drawn at random: flips, oblique cuts, sheared gantries, voxels of 0.4 to 5 mm, each
with shapes, number types, slopes, units and form codes. The network is one whose answer is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from attunet3d.cohort.results import case_files
from attunet3d.core import Floats, whole_file
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import read_label, read_volume
from attunet3d.inference.predictor import Predictor
from tests.known_network import checkpoint, write_predicted

PREDICTOR = Predictor([checkpoint()], "cpu")
FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
INSIDE, OUTSIDE = 300, -100  # HU; the network's threshold lies at 100, in the middle
MM = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}


@dataclass
class Scan:
    """A ball on a grid, and how it is stored."""

    affine: np.ndarray  # voxel → mm
    shape: tuple[int, int, int]
    middle: np.ndarray  # of the ball, voxels
    radius_mm: float
    dtype: str
    slope: float
    intercept: float
    units: str
    codes: tuple[int, int]  # sform, qform
    kind: type

    def values(self) -> Floats:
        """(I, J, K) HU, partial volumes at the rim of the ball."""
        index = np.moveaxis(np.indices(self.shape), 0, -1) - self.middle
        apart = np.linalg.norm(index @ self.affine[:3, :3].T, axis=-1)
        step = np.linalg.norm(self.affine[:3, :3], axis=0).max()
        share = np.clip(0.5 + (self.radius_mm - apart) / step, 0, 1)
        found: Floats = OUTSIDE + share * (INSIDE - OUTSIDE)
        return found

    def save(self, path: Path) -> Path:
        """Write the scan; the header's lengths are in its units."""
        stored = (self.values() - self.intercept) / self.slope
        stored = stored if self.dtype.startswith("f") else np.rint(stored)
        affine = np.diag([1 / MM[self.units]] * 3 + [1.0]) @ self.affine
        image = self.kind(stored.astype(self.dtype), None)
        image.header.set_data_dtype(self.dtype)
        image.header.set_xyzt_units(self.units)
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        image.header.set_sform(affine, self.codes[0])
        image.header.set_qform(affine, self.codes[1], strip_shears=True)
        image.header.set_slope_inter(self.slope, self.intercept)
        nib.save(image, path)
        return path


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


@st.composite
def affines(draw: Callable[..., Any], sheared: bool = True) -> Floats:
    """4×4, voxel → mm: spacing, then shear, then rotation, then axes permuted and mirrored."""
    spacing = np.diag([draw(number(0.4, 5)) for _ in "ijk"])
    shear = np.eye(3)
    if sheared and draw(st.booleans()):
        shear[draw(st.sampled_from([(0, 1), (0, 2), (1, 2)]))] = draw(number(-0.5, 0.5))
    angles = [draw(st.sampled_from([0.0, 90.0]) | number(-180, 180)) for _ in "xyz"]
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ shear @ spacing
    matrix = matrix[:, list(draw(st.permutations(range(3))))]
    matrix = matrix * [draw(st.sampled_from([-1, 1])) for _ in "ijk"]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, [draw(number(-800, 800)) for _ in "xyz"]
    return affine


@st.composite
def scans(draw: Callable[..., Any]) -> Scan:
    """A ball of 10 to 14 mm somewhere in a scan that holds it whole."""
    codes = draw(st.sampled_from([(1, 0), (1, 1), (2, 1), (0, 1), (4, 0)]))
    affine = draw(affines(sheared=codes[0] > 0))  # a qform has no shear
    # The extent along voxel axis i of a ball of radius 1 mm is the length of row i of the inverse.
    radius = draw(number(10, 14))
    reach = np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1) * (radius + 6)
    shape = tuple(int(np.ceil(2 * r)) + draw(st.integers(1, 6)) for r in reach)
    room = np.array(shape) - 1 - 2 * reach
    middle = reach + np.maximum(room, 0) * [draw(number(0, 1)) for _ in "ijk"]
    dtype = draw(st.sampled_from(["i2", "i4", "u2", "f4", "f8"]))
    slope, intercept = draw(st.sampled_from([(1, 0), (1, -1024), (0.5, -1000), (2.0, -1100.5)]))
    if dtype == "u2" and intercept == 0:
        intercept = -1024
    units = draw(st.sampled_from(sorted(MM)))
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    return Scan(affine, shape, middle, radius, dtype, slope, intercept, units, codes, kind)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(scan=scans())
def test_the_grid_comes_out_bit_by_bit_and_the_ball_stays_where_it_is(
    tmp_path: Path, scan: Scan
) -> None:
    path = scan.save(tmp_path / "a.nii.gz")
    volume = read_volume(path)
    files = case_files(whole_file.make_folder(tmp_path / "out"), "a")
    write_predicted(files, PREDICTOR, volume, ["probabilities"])

    source = nib.load(path)
    for name in (files.mask, files.maps("probabilities")):
        found = nib.load(name)
        assert type(found) is type(source)
        assert found.shape[:3] == source.shape
        assert found.affine.tobytes() == source.affine.tobytes()
        for field in FIELDS:
            assert found.header[field].tobytes() == source.header[field].tobytes(), field

    label = read_label(files.mask)
    assert label.grid.affine.tobytes() == volume.grid.affine.tobytes()
    assert set(np.unique(label.array)) == {0, 5}
    index = np.argwhere(label.array == 5)
    apart = np.abs(index.mean(0) - scan.middle)
    assert apart.max() < 0.5, f"{apart} voxels off"
    # And by the world: the header's affine, as another reader has it, leads to the same place.
    world = apply_affine(found.affine, index.mean(0)) * MM[scan.units]
    wanted = apply_affine(scan.affine, scan.middle)
    step = np.linalg.norm(scan.affine[:3, :3], axis=0).max()
    assert np.linalg.norm(world - wanted) < step


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(scan=scans())
def test_values_come_out_of_every_type_slope_and_unit(tmp_path: Path, scan: Scan) -> None:
    volume = read_volume(scan.save(tmp_path / "a.nii"))
    assert volume.array.shape == scan.shape
    half_a_step = 0.51 * abs(scan.slope) if not scan.dtype.startswith("f") else 1e-3
    assert np.abs(volume.array - scan.values()).max() <= half_a_step
    tolerance = 1e-4 * np.abs(scan.affine).max()
    assert np.abs(volume.grid.affine - scan.affine).max() <= tolerance
    assert volume.grid.voxel_volume_ml == pytest.approx(
        abs(np.linalg.det(scan.affine[:3, :3])) / 1000, rel=1e-4
    )


@settings(max_examples=100, deadline=None)
@given(affine=affines(), data=st.data())
def test_a_grid_leads_there_and_back(affine: Floats, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 40)] * 3))
    grid = Grid(shape, affine)
    index = [data.draw(number(-50, 50)) for _ in "ijk"]
    assert grid.to_index(grid.to_world(index)) == pytest.approx(index, abs=1e-6)
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    i, j, k = (slice(start, n) for start, n in zip(starts, shape, strict=True))
    assert grid.cropped((i, j, k)).to_world([0, 0, 0]) == pytest.approx(grid.to_world(starts))
    assert grid.matches(Grid(shape, affine), 0.0)
