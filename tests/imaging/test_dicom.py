"""DICOM series: whole ones lie where their slices lie, others are refused; no tag is quoted."""

import copy
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from attunet3d.core import Array, Floats
from attunet3d.core.errors import UserError
from attunet3d.imaging import Segmentation, find_scans, straightened
from attunet3d.imaging.volume import read_volume

ROOT = "1.2.826.0.1.3680043.2.1125.1."
TURNED = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])  # columns: i, j, k in LPS


def write_series(
    folder: Path,
    step: tuple[int, float, float],
    *,
    direction: Floats = TURNED,
    count: int = 6,
    series: str = "7",
    skip: tuple[int, ...] = (),
    seed: int = 0,
) -> Array:
    """Slices of random values, `step` apart in LPS mm, under shuffled names; returns (i, j, k)."""
    folder.mkdir(exist_ok=True, parents=True)
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
            "0018|0050": "2",
            "0020|000e": ROOT + series,
            "0020|000d": ROOT + "1",
            "0008|0018": f"{ROOT}{series}.{k + 1}",
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


def slices(folder: Path) -> list[tuple[Path, FileDataset]]:
    """The data sets of a folder with their files, in the order of the slices."""
    found = [(path, pydicom.dcmread(path)) for path in folder.iterdir()]
    return sorted(found, key=lambda item: float(item[1].InstanceNumber))


def change(folder: Path, number: int | None = None, **tags: Any) -> None:
    """Set tags in one slice or in all; None deletes one."""
    # ITK's writer adds this tag or not, depending on what it wrote before in the process.
    tags.setdefault("SpacingBetweenSlices", None)
    for path, dataset in slices(folder)[
        slice(None) if number is None else slice(number, number + 1)
    ]:
        for keyword, value in tags.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.save_as(path)


def test_a_series_lies_where_its_slices_lie(tmp_path: Path) -> None:
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


def test_a_tilted_gantry_gives_a_sheared_grid(tmp_path: Path) -> None:
    array = write_series(tmp_path / "a", (0, 0.9, 2.5), direction=np.eye(3))
    volume = read_volume(tmp_path / "a")
    assert (volume.array == array).all()
    assert np.allclose(volume.grid.affine[:3, 2], (0, -0.9, 2.5), atol=1e-4)
    assert "sheared by 19.8° (tilted gantry)" in volume.warnings[0]


def test_one_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 0, 2.5), count=1)
    change(tmp_path / "a", SliceThickness="3.5")
    volume = read_volume(tmp_path / "a")
    assert volume.array.shape == (4, 5, 1)
    assert volume.grid.spacing_mm[2] == 3.5
    assert "one DICOM slice" in volume.warnings[0]
    change(tmp_path / "a", SliceThickness=None)
    assert "SliceThickness" in refused(tmp_path / "a")


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_volume(folder, max_voxels=1000)
    assert str(folder) in str(caught.value)
    assert "DOE" not in str(caught.value)
    return str(caught.value)


def test_missing_slices_several_series_and_others_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", (0, 0, 2.5), skip=(3,))
    assert "missing" in refused(tmp_path / "gap")
    for series in ("7", "8"):
        write_series(tmp_path / "two", (0, 0, 2.5), series=series)
    assert "2 CT series: @1 (6 slices of 4×5), @2 (6 slices of 4×5)" in refused(tmp_path / "two")
    write_series(tmp_path / "large", (0, 0, 2.5), count=60)
    assert "at most 1000" in refused(tmp_path / "large")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("DOE")
    assert "holds no CT image, only 1 × file that is not DICOM" in refused(tmp_path / "none")


WRONG: dict[
    str, tuple[int | None, dict[str, Any], str]
] = {  # what is wrong with one slice or all: (slice, tags, words of the refusal)
    "no spacing": (None, {"PixelSpacing": None}, "has no PixelSpacing"),
    "no spacing in one": (2, {"PixelSpacing": None}, "has no PixelSpacing"),
    "other spacing in one": (0, {"PixelSpacing": [1, 1]}, "differ in PixelSpacing (0.5 to 1 mm)"),
    "spacing of nothing": (None, {"PixelSpacing": [0, 0.5]}, "must be positive"),
    "no orientation": (3, {"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
    "long orientation": (None, {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "perpendicular"),
    "no position": (1, {"ImagePositionPatient": None}, "has no ImagePositionPatient"),
    "slope of nothing": (None, {"RescaleSlope": 0}, "RescaleSlope 0"),
    "doubled": (2, {"ImagePositionPatient": [10, -20, 30]}, "1 of its 6 slices lie where others"),
    "half of the slices": (
        None,
        {"SpacingBetweenSlices": 1.25},
        "apart, SpacingBetweenSlices is 1.25",
    ),
    "colour": (None, {"SamplesPerPixel": 3}, "holds colour"),
    "a table of values": (None, {"ModalityLUTSequence": [Dataset()]}, "by a table"),
    "no rows": (4, {"Rows": None}, "does not give Rows"),
    "no pixels": (4, {"PixelData": None}, "without pixels"),
    "MR": (None, {"SOPClassUID": MRImageStorage}, "holds no CT image, only 6 × MR Image"),
    "MR by modality": (None, {"Modality": "MR"}, "only 6 × image of modality MR"),
    "damaged modality": (2, {"Modality": "C T"}, "damaged Modality"),
    "contours": (None, {"SOPClassUID": RTStructureSetStorage}, "only 6 × RT Structure Set"),
    "a report": (None, {"SOPClassUID": BasicTextSRStorage}, "only 6 × Basic Text SR"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_would_put_voxels_elsewhere_or_on_another_scale_is_refused(
    tmp_path: Path, what: str
) -> None:
    number, tags, words = WRONG[what]
    write_series(tmp_path / "a", (0, 0, 2.5))
    change(tmp_path / "a", number, **tags)
    assert words in refused(tmp_path / "a")


def test_positions_in_micrometres_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 0, 2500))
    assert "slices lie 2500 mm apart: at most 100 mm" in refused(tmp_path / "a")


@pytest.mark.parametrize("keep", [0, 2, 20, 38])
def test_pixels_shorter_than_the_header_says_are_refused(tmp_path: Path, keep: int) -> None:
    write_series(tmp_path / "a", (0, 0, 2.5))
    path, dataset = slices(tmp_path / "a")[3]
    dataset.PixelData = dataset.PixelData[:keep]
    dataset.save_as(path)
    message = refused(tmp_path / "a")
    assert path.name in message
    assert "without pixels" in message if keep == 0 else f"{keep} of 40 bytes" in message


def test_a_grey_scale_shown_inverted_has_the_same_hounsfield_units(tmp_path: Path) -> None:
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    change(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_volume(tmp_path / "a").array, array)


@pytest.mark.parametrize("slopes", [(1, 50), (1, 0.5), (1, 20)])
def test_each_slice_has_its_own_slope_and_intercept(
    tmp_path: Path, slopes: tuple[int, float]
) -> None:
    array = write_series(tmp_path / "a", (0, 0, 2.5)).astype(float)
    for number in range(6):
        slope = slopes[min(number, 1)]
        change(tmp_path / "a", number, RescaleSlope=slope, RescaleIntercept=-10 * number)
        array[..., number] = array[..., number] * slope - 10 * number
    found = read_volume(tmp_path / "a").array
    assert np.array_equal(found, array)
    assert found.dtype == (np.int16 if slopes == (1, 20) else np.float32)


def test_values_without_a_scale_are_told(tmp_path: Path) -> None:
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    change(tmp_path / "a", RescaleSlope=None, RescaleIntercept=None)
    volume = read_volume(tmp_path / "a")
    assert np.array_equal(volume.array, array)
    assert volume.warnings == ("no RescaleSlope is given; stored values are taken as HU",)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_plain_transfer_syntaxes(tmp_path: Path, syntax: UID) -> None:
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    for path, dataset in slices(tmp_path / "a"):
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            path,
            dataset,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )
    assert np.array_equal(read_volume(tmp_path / "a").array, array)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_transfer_syntaxes(tmp_path: Path, syntax: UID) -> None:
    """RLE is decoded by pydicom, JPEG-LS by GDCM."""
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    for path, dataset in slices(tmp_path / "a"):
        dataset.compress(syntax)
        dataset.save_as(path)
    assert np.array_equal(read_volume(tmp_path / "a").array, array)


def test_a_syntax_that_nothing_decodes_is_named_with_the_cure(tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 0, 2.5))
    path, dataset = slices(tmp_path / "a")[2]
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = UID(
        "1.2.840.10008.1.2.4.201"
    )  # High-Throughput JPEG 2000
    dataset.save_as(path)
    message = refused(tmp_path / "a")
    assert "High-Throughput" in message
    assert "install pylibjpeg" in message


def test_bits_above_those_stored_are_left_out(tmp_path: Path) -> None:
    """Old scanners keep overlays there."""
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    for path, dataset in slices(tmp_path / "a"):
        values = np.frombuffer(dataset.PixelData, "<i2")
        dataset.PixelData = ((values & 0x0FFF) | 0x5000).astype("<i2").tobytes()
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.save_as(path)
    assert np.array_equal(read_volume(tmp_path / "a").array, array)


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    array = write_series(tmp_path / "a", (0, 0, 2.5))
    for path, dataset in slices(tmp_path / "a")[3:]:
        dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), None
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_volume(tmp_path / "a").array, array)


def test_other_objects_beside_the_series_are_passed_over_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    array = write_series(folder, (0, 0, 2.5))
    one = slices(folder)[0][1]
    others: dict[str, dict[str, Any]] = {
        "report": {"SOPClassUID": BasicTextSRStorage},
        "contours": {"SOPClassUID": RTStructureSetStorage},
        "capture": {"SOPClassUID": SecondaryCaptureImageStorage},
        "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "private": {"SOPClassUID": "1.2.3.4"},
    }
    for name, tags in others.items():
        other = copy.deepcopy(one)
        for keyword, value in tags.items():
            setattr(other, keyword, value)
        other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
        other.save_as(folder / name)
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".hidden").write_bytes(b"x")
    volume = read_volume(folder)
    assert np.array_equal(volume.array, array)
    assert volume.warnings == (
        "passed over: 1 × Basic Text SR, 1 × RT Structure Set, 1 × Secondary Capture Image,"
        " 1 × file that is not DICOM, 1 × localiser, 1 × unknown object",
    )


def test_one_of_several_series_is_chosen(tmp_path: Path) -> None:
    arrays = {}
    for number, name in ((3, "Abdomen PORTAL"), (4, "Abdomen native")):
        folder = tmp_path / "all" / str(number)
        folder.parent.mkdir(exist_ok=True)
        arrays[number] = write_series(folder, (0, 0, 2.5), series=str(number), seed=number)
        change(folder, SeriesNumber=number, SeriesDescription=name)
    message = refused(tmp_path / "all")
    assert "2 CT series: @1 (number 3, 6 slices of 4×5), @2 (number 4" in message
    assert "PORTAL" not in message
    for wanted, number in (("3", 3), ("native", 4), (ROOT + "3", 3), ("@2", 4)):
        found = read_volume(tmp_path / "all", series=wanted)
        assert np.array_equal(found.array, arrays[number]), wanted
    with pytest.raises(UserError, match="holds no series '5'"):
        read_volume(tmp_path / "all", series="5")


def test_slices_missing_at_the_ends_are_told_where_the_tags_tell(tmp_path: Path) -> None:
    write_series(tmp_path / "first", (0, 0, 2.5), skip=(0, 1))
    assert read_volume(tmp_path / "first").warnings == (
        "instance numbers begin at 3: slices may be missing at an end",
    )
    write_series(tmp_path / "last", (0, 0, 2.5), skip=(5,))
    change(tmp_path / "last", ImagesInAcquisition=6)
    assert "5 slices of the 6" in read_volume(tmp_path / "last").warnings[0]


def enhanced(folder: Path, step: float = 2.5) -> Array:
    """One file of six frames, stored top down; its values as (i, j, k)."""
    array = write_series(folder, (0, 0, step), direction=np.eye(3))
    found = slices(folder)
    one = copy.deepcopy(found[0][1])
    one.SOPClassUID = EnhancedCTImageStorage
    one.NumberOfFrames = 6
    frames: list[Any] = []
    for number, (path, dataset) in enumerate(found):
        frame, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = dataset.ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept = 1, 10 * number
        frame.PlanePositionSequence = [place]
        frame.PixelValueTransformationSequence = [scale]
        frames.insert(0, frame)
        path.unlink()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = one.PixelSpacing
    orientation.ImageOrientationPatient = one.ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = frames
    for keyword in (
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        del one[keyword]
    one.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    one.PixelData = b"".join(dataset.PixelData for _, dataset in reversed(found))
    one.save_as(folder / "enhanced.dcm")
    return array + 10 * np.arange(6)


def test_an_enhanced_file_of_many_frames_is_one_scan(tmp_path: Path) -> None:
    array = enhanced(tmp_path / "a")
    volume = read_volume(tmp_path / "a")
    assert np.array_equal(volume.array, array)
    affine = np.diag([-0.5, -0.75, 2.5, 1])
    affine[:3, 3] = -10, 20, 30
    assert np.allclose(volume.grid.affine, affine)
    change(tmp_path / "a", PerFrameFunctionalGroupsSequence=[])
    assert "6 frames, and says where 0 of them lie" in refused(tmp_path / "a")


def test_a_label_map_of_a_tilted_gantry_lies_right_for_every_reader(tmp_path: Path) -> None:
    """With a qform it would lie elsewhere for programs that read the qform (ITK's)."""
    write_series(tmp_path / "a", (0, 0.9, 2.5), direction=np.eye(3), count=30)
    scan = read_volume(tmp_path / "a")
    labels = (scan.array > 0).astype(np.uint8)
    segmentation = Segmentation(labels, scan.grid, {0: "background", 1: "x"}, scan.geometry)
    segmentation.save(tmp_path / "sheared.nii.gz")
    header = nibabel.load(tmp_path / "sheared.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
    assert np.allclose(header.get_sform(), scan.grid.affine, atol=1e-5)
    with pytest.raises(RuntimeError):
        SimpleITK.ReadImage(tmp_path / "sheared.nii.gz")
    straight = straightened(segmentation)
    straight.save(tmp_path / "straight.nii.gz")
    image = SimpleITK.ReadImage(tmp_path / "straight.nii.gz")
    found = nibabel.load(tmp_path / "straight.nii.gz")
    assert int(found.header["qform_code"]) == 1
    rng = np.random.default_rng(0)
    for index in rng.integers(0, labels.shape, (200, 3)):  # each voxel within half a voxel
        world = scan.grid.to_world(index)
        lps = (np.diag([-1, -1, 1]) @ world).tolist()
        assert image.GetPixel(image.TransformPhysicalPointToIndex(lps)) == labels[tuple(index)]
        place = np.rint(np.linalg.inv(found.affine) @ [*world, 1] - 1e-4)[:3].astype(int)
        assert found.dataobj[tuple(place)] == labels[tuple(index)]


def test_a_torn_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text("NRRD0004\nDOE")
    assert "gives no size" in refused(tmp_path / "a.nrrd")
    (tmp_path / "b.mha").write_text("DimSize = 2 2 2\nElementDataFile = LOCAL\nDOE")
    assert "cannot be read" in refused(tmp_path / "b.mha")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipes_beside_the_slices_are_not_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would never end."""
    write_series(tmp_path / "ct", (0, 0, 2))
    os.mkfifo(tmp_path / "ct" / "0.dcm")
    os.mkfifo(tmp_path / "1.dcm")
    assert find_scans(tmp_path) == [("ct", tmp_path / "ct")]
    assert read_volume(tmp_path / "ct").array.shape == (4, 5, 6)
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / "1.dcm")
    with pytest.raises(UserError, match="holds no scan"):
        find_scans(tmp_path / "other")
