"""Scans of other libraries become volumes on the same grid, and label maps go back the same way."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from nibabel.nifti1 import Nifti1Image
from SimpleITK.SimpleITK import Image

from attunet3d.core import DataError
from attunet3d.imaging import Segmentation, Volume, as_kind_of, as_volume, read_volume

AFFINE = np.array([[0, -0.8, 0, 9], [0.7, 0, 0, -8], [0, 0, 2.0, 7], [0, 0, 0, 1]])
ARRAY = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


def nifti() -> Nifti1Image:
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    image.set_qform(AFFINE, 2)
    image.set_sform(AFFINE, 3)
    return image


def itk(tmp_path: Path) -> Image:
    nibabel.save(nifti(), tmp_path / "a.nii.gz")
    return SimpleITK.ReadImage(tmp_path / "a.nii.gz")


def segmented(volume: Volume) -> Segmentation:
    labels = (volume.array > 0).astype(np.uint8)
    return Segmentation(labels, volume.grid, {0: "background", 1: "x"}, volume.geometry)


def checked(volume: Volume) -> Segmentation:
    assert np.array_equal(volume.array, ARRAY)
    assert volume.array.dtype == np.int16
    assert volume.array.flags.f_contiguous
    assert np.allclose(volume.grid.affine, AFFINE, atol=1e-6)
    return segmented(volume)


def test_nibabel_images() -> None:
    scan = nifti()
    found = as_kind_of(checked(as_volume(scan)), scan)
    assert isinstance(found, nibabel.Nifti1Image)
    assert np.array_equal(found.get_fdata() > 0, ARRAY > 0)
    assert np.allclose(found.affine, AFFINE)
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == (2, 3)
    assert found.get_data_dtype() == np.uint8


def test_nibabel_images_in_micrometres_are_brought_to_millimetres() -> None:
    scan = nibabel.Nifti1Image(ARRAY, np.diag([1000.0, 1000, 1000, 1]))
    scan.header.set_xyzt_units("micron")
    assert as_volume(scan).grid.spacing_mm == (1, 1, 1)


def test_nibabel_images_of_other_formats_and_floats() -> None:
    scan = nibabel.MGHImage(ARRAY.astype(np.float32), AFFINE.astype(np.float32))
    volume = as_volume(scan)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.grid.affine, AFFINE, atol=1e-5)


def test_simpleitk_images(tmp_path: Path) -> None:
    scan = itk(tmp_path)
    found = as_kind_of(checked(as_volume(scan)), scan)
    assert np.array_equal(SimpleITK.GetArrayFromImage(found).T, ARRAY > 0)
    assert found.GetOrigin() == scan.GetOrigin()
    assert found.GetDirection() == scan.GetDirection()


def test_metatensors() -> None:
    scan = MetaTensor(torch.from_numpy(ARRAY)[None], affine=torch.from_numpy(AFFINE))
    found = as_kind_of(checked(as_volume(scan)), scan)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.as_tensor()[0].bool(), torch.from_numpy(ARRAY > 0))
    assert np.allclose(found.affine, AFFINE)


def test_arrays_with_an_affine_and_volumes(tmp_path: Path) -> None:
    pair = ARRAY.astype(np.int64), AFFINE
    assert np.array_equal(as_kind_of(checked(as_volume(pair)), pair), ARRAY > 0)
    nibabel.save(nifti(), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert as_volume(volume) is volume
    assert isinstance(as_kind_of(segmented(volume), volume), Segmentation)


def test_what_is_not_a_number_counts_as_air() -> None:
    array = ARRAY.astype(np.float64)
    array[0, 0, 0] = np.nan
    volume = as_volume((array, AFFINE))
    assert volume.array[0, 0, 0] == -1024
    assert "1 voxels are NaN" in volume.warnings[0]


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (ARRAY, "a scan cannot be a ndarray"),
        ((ARRAY[0], AFFINE), "three-dimensional"),
        ((ARRAY.astype(complex), AFFINE), "plain numbers"),
        ((ARRAY, np.eye(3)), "4×4"),
        (MetaTensor(torch.zeros(2, 3, 3, 3)), "one channel"),
        (SimpleITK.Image([3, 3], SimpleITK.sitkInt16), "3D"),
    ],
)
def test_what_is_not_a_scan_is_refused(scan: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_volume(scan)


def test_a_volume_cropped_keeps_its_place() -> None:
    volume = Volume(ARRAY, as_volume((ARRAY, AFFINE)).grid)
    part = volume.cropped((slice(1, 3), slice(2, 5), slice(0, 4)))
    assert np.array_equal(part.array, ARRAY[1:3, 2:5, :4])
    assert np.allclose(part.grid.to_world([0, 0, 0]), volume.grid.to_world([1, 2, 0]))
    assert np.allclose(part.grid.to_world([1, 2, 3]), volume.grid.to_world([2, 4, 3]))
