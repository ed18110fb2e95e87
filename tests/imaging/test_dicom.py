"""DICOM series: whole ones lie where their slices lie, others are refused; no tag is quoted."""

import numpy as np
import pytest
import SimpleITK

from attunet3d.core.errors import UserError
from attunet3d.imaging.volume import read_volume

UID = "1.2.826.0.1.3680043.2.1125.1."
TURNED = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])  # columns: i, j, k in LPS


def write_series(folder, step, *, direction=TURNED, count=6, series="7", skip=(), seed=0):
    """Slices of random values, `step` apart in LPS mm, under shuffled names; returns (i, j, k)."""
    folder.mkdir(exist_ok=True)
    array = np.random.default_rng(seed).integers(-1000, 1000, (count, 5, 4)).astype(np.int16)
    names = np.random.default_rng(1).permutation(count)
    for k in range(count):
        if k in skip:
            continue
        image = SimpleITK.GetImageFromArray(array[k : k + 1])
        image.SetSpacing((0.5, 0.75, 2.0))
        image.SetDirection(direction.ravel())
        position = np.array([10.0, -20, 30]) + k * np.array(step)
        image.SetOrigin(position)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        tags = {
            "0008|0060": "CT",
            "0010|0010": "DOE^JOHN",
            "0020|000e": UID + series,
            "0020|000d": UID + "1",
            "0008|0018": f"{UID}{series}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.6f}" for value in direction[:, :2].T.ravel()),
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"s{series}_{names[k]}.dcm"))
        writer.Execute(image)
    return array.T


def test_a_series_lies_where_its_slices_lie(tmp_path):
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    volume = read_volume(tmp_path / "a")
    assert volume.array.shape == (4, 5, 6)
    world = np.diag([-1, -1, 1]) @ (
        np.array([10, -20, 30]) + TURNED @ [0.5 * 2, 0.75 * 3, 0] + [0, 0, 2.5 * 4]
    )
    index = np.rint(volume.grid.to_index(world)).astype(int)
    assert np.allclose(volume.grid.to_world(index), world, atol=1e-4)
    assert volume.array[tuple(index)] == array[2, 3, 4]
    assert volume.warnings == ()


def test_a_tilted_gantry_gives_a_sheared_grid(tmp_path):
    array = write_series(tmp_path / "a", (0, 0.9, 2.5), direction=np.eye(3))
    volume = read_volume(tmp_path / "a")
    assert (volume.array == array).all()
    assert np.allclose(volume.grid.affine[:3, 2], (0, -0.9, 2.5), atol=1e-4)
    assert "gantry was tilted by 19.8°" in volume.warnings[0]


def test_one_slice(tmp_path):
    write_series(tmp_path / "a", (0, 0, 2.5), count=1)
    volume = read_volume(tmp_path / "a")
    assert volume.array.shape == (4, 5, 1)
    assert "one DICOM slice" in volume.warnings[0]


def refused(folder):
    with pytest.raises(UserError) as caught:
        read_volume(folder, max_voxels=1000)
    assert str(folder) in str(caught.value)
    assert "DOE" not in str(caught.value)
    return str(caught.value)


def test_missing_slices_several_series_and_others_are_refused(tmp_path):
    write_series(tmp_path / "gap", (0, 0, 2.5), skip=(3,))
    assert "missing" in refused(tmp_path / "gap")
    for series in ("7", "8"):
        write_series(tmp_path / "two", (0, 0, 2.5), series=series)
    assert "2 DICOM series (6, 6 files)" in refused(tmp_path / "two")
    write_series(tmp_path / "large", (0, 0, 2.5), count=60)
    assert "at most 1000" in refused(tmp_path / "large")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("DOE")
    assert "neither" in refused(tmp_path / "none")


def test_a_torn_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_text("NRRD0004\nDOE")
    assert "gives no size" in refused(tmp_path / "a.nrrd")
    (tmp_path / "b.mha").write_text("DimSize = 2 2 2\nElementDataFile = LOCAL\nDOE")
    assert "cannot be read" in refused(tmp_path / "b.mha")
