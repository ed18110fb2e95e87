"""Maps written box by box read back plane by plane, in a file that other programs read as well."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from attunet3d.core import Box, DataError, Float32s, WriteError
from attunet3d.imaging import Grid, MapReader, MapWriter, Volume
from attunet3d.imaging import maps as maps_module

SHAPE, COUNT = (5, 6, 7), 3
AFFINE = np.array([[0, -0.5, 0, 9], [0.75, 0, 0, -8], [0, 0, 2.0, 7], [0, 0, 0, 1]])


def scan() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), Grid(SHAPE, AFFINE))


def values(seed: int = 0) -> Float32s:
    """(maps, i, j, k) in [0, 1], the last map empty."""
    array = np.random.default_rng(seed).random((COUNT, *SHAPE), np.float32)
    array[-1] = 0
    return array


def boxes(axis: int, step: int, backwards: bool) -> Iterator[Box]:
    """Boxes that cover all voxels, a few planes of an axis at a time, in halves of another."""
    starts = range(0, SHAPE[axis], step)
    other, half = (axis + 1) % 3, SHAPE[(axis + 1) % 3] // 2
    for start in reversed(starts) if backwards else starts:
        for part in (slice(0, half), slice(half, SHAPE[other])):
            box = [slice(0, n) for n in SHAPE]
            box[axis] = slice(start, min(start + step, SHAPE[axis]))
            box[other] = part
            yield box[0], box[1], box[2]


def written(path: Path, array: Float32s, parts: Iterator[Box]) -> Path:
    with MapWriter(path, scan(), len(array)) as writer:
        for box in parts:
            writer.write(box, array[:, *box])
    return path


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("backwards", [False, True])
def test_boxes_in_any_order_give_the_same_file_for_every_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int, backwards: bool
) -> None:
    monkeypatch.setattr(maps_module, "SLAB_VOXELS", 3 * SHAPE[0] * SHAPE[1])  # slabs of 3 planes
    array = values()
    path = written(tmp_path / "maps.nii.gz", array, boxes(axis, 2, backwards))
    assert os.listdir(tmp_path) == ["maps.nii.gz"]
    image = nibabel.load(path)
    assert image.shape == (*SHAPE, COUNT)
    assert np.allclose(image.affine, AFFINE)
    expected = np.rint(np.moveaxis(array, 0, -1) * 65535)
    assert np.array_equal(image.dataobj.get_unscaled(), expected)
    assert np.abs(image.get_fdata() - np.moveaxis(array, 0, -1)).max() < 0.51 / 65535
    other = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T
    assert np.allclose(other, image.get_fdata(), atol=1e-6)
    gzip.decompress(path.read_bytes())  # the checksum and the length are right
    with MapReader(path, scan().grid, COUNT) as reader:
        for k in (3, 0, SHAPE[2] - 1):
            assert np.abs(reader.plane(k) - array[..., k]).max() < 0.51 / 65535


def test_voxels_that_nobody_writes_are_zero_and_values_are_clipped(tmp_path: Path) -> None:
    with MapWriter(tmp_path / "a.nii.gz", scan(), 1) as writer:
        writer.write((slice(1, 2), slice(2, 3), slice(3, 5)), np.full((1, 1, 1, 2), 1.5))
    found = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    assert np.argwhere(found).tolist() == [[1, 2, 3, 0], [1, 2, 4, 0]]
    assert found.max() == pytest.approx(1, abs=1e-9)


def test_an_error_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz", values(), boxes(2, 2, False))
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), MapWriter(path, scan(), COUNT) as writer:
        writer.write((slice(0, 1),) * 3, np.full((COUNT, 1, 1, 1), 1 // 0))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]
    with pytest.raises(WriteError, match=r"missing/a\.nii\.gz: cannot be written"):
        MapWriter(tmp_path / "missing" / "a.nii.gz", scan(), COUNT)


def test_maps_of_another_grid_or_number_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz", values(), boxes(2, 2, False))
    with pytest.raises(DataError, match=r"a\.nii\.gz: holds 3 volumes .* must be 2"):
        MapReader(path, scan().grid, 2)
    moved = AFFINE.copy()
    moved[2, 3] += 1
    with pytest.raises(DataError, match=r"a\.nii\.gz: does not lie on the label map's grid"):
        MapReader(path, Grid(SHAPE, moved), COUNT)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="copy the file again"):
        MapReader(path, scan().grid, COUNT)


def test_maps_of_other_number_types_read_alike(tmp_path: Path) -> None:
    array = values()[0]
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    with MapReader(tmp_path / "a.nii", scan().grid, 1) as reader:
        assert np.array_equal(reader.plane(4)[0], array[..., 4])


MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from attunet3d.imaging import Grid, MapReader, MapWriter, Volume
shape, count = (256, 256, 128), 10
like = Volume(np.zeros((1, 1, 1), np.int16), Grid(shape, np.eye(4)))
noise = np.random.default_rng(0).random((count, 256, 256, 1), np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with MapWriter(Path(sys.argv[1]), like, count) as writer:
    for k in range(shape[2]):
        writer.write((slice(0, 256), slice(0, 256), slice(k, k + 1)), noise)
with MapReader(Path(sys.argv[1]), like.grid, count, Path(sys.argv[1]).parent) as reader:
    assert abs(reader.plane(100) - noise[..., 0]).max() < 1e-5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_holds_a_few_planes(tmp_path: Path) -> None:
    """The maps are 168 MB as stored and 335 MB as given."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80_000  # kB
