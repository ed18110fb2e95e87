"""Every export of a label that is a region holds all of its values, read back by its library."""

import json
from pathlib import Path
from typing import Any

import highdicom
import nrrd
import numpy as np
import pytest
import SimpleITK
import torch
import trimesh
from monai.data import MetaTensor

from attunet3d.core import Mask
from attunet3d.core.model_config import PreprocessingConfig
from attunet3d.imaging import Grid, Segmentation, open_organ_masks
from attunet3d.models.checkpoint import load_model
from attunet3d.packaging import bundle, formats, label_maps
from attunet3d.packaging.dicom_seg import write_dicom_seg
from attunet3d.packaging.mesh import write_meshes
from attunet3d.packaging.monai_transforms import ToNetworkGridd, ToSourceGridd
from attunet3d.packaging.rtstruct import write_rtstruct
from attunet3d.packaging.seg_nrrd import write_seg_nrrd
from attunet3d.packaging.source_series import SourceSeries
from tests.imaging.source_series import SHAPE, make_series
from tests.packaging.test_bundle import save

LABELS = {0: "background", 1: "whole pancreas", 2: "tumour", 7: "liver"}
REGIONS = {1: (1, 2), 2: (2,), 7: (7,)}
WHOLE, TUMOUR, LIVER = (
    np.s_[3:12, 3:13, 1:6],
    np.s_[6:9, 3:13, 1:6],  # cuts the rest in two
    np.s_[14:18, 3:9, 2:5],
)


def nested(grid: Grid) -> Segmentation:
    array = np.zeros(SHAPE, np.uint8, order="F")
    for place, value in ((WHOLE, 1), (TUMOUR, 2), (LIVER, 7)):
        array[place] = value
    return Segmentation(array, grid, LABELS, regions=REGIONS)


def masks() -> dict[str, Mask]:
    found = {}
    for name, place in (("whole pancreas", WHOLE), ("tumour", TUMOUR), ("liver", LIVER)):
        found[name] = np.zeros(SHAPE, bool)
        found[name][place] = True
    return found


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
def test_segments_and_structures_of_dicom_overlap(form: str, tmp_path: Path) -> None:
    slices, grid = make_series("oblique")
    write = {"seg": write_dicom_seg, "rtstruct": write_rtstruct}[form]
    write(tmp_path / "a.dcm", nested(grid), SourceSeries(tuple(slices)), "1.0")
    found = open_organ_masks(tmp_path / "a.dcm")
    assert found is not None
    for name, mask in masks().items():
        np.testing.assert_array_equal(found.mask(name, grid), mask)


def test_highdicom_gives_every_segment_whole(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    write_dicom_seg(tmp_path / "a.dcm", nested(grid), SourceSeries(tuple(slices)), "1.0")
    file = highdicom.seg.segread(tmp_path / "a.dcm")
    assert [part.SegmentLabel for part in file.SegmentSequence] == list(masks())
    pixels = file.get_pixels_by_source_instance(
        [slice_.SOPInstanceUID for slice_ in slices], assert_missing_frames_are_empty=True
    )
    for index, mask in enumerate(masks().values()):
        np.testing.assert_array_equal(pixels[..., index].transpose(2, 1, 0), mask)


def test_regions_of_dicom_that_do_not_overlap_hold_their_values(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    ours = nested(grid)
    apart = Segmentation(ours.array, grid, {0: "background", 1: "a", 7: "b"}, None, {1: (1, 2)})
    write_dicom_seg(tmp_path / "a.dcm", apart, SourceSeries(tuple(slices)), "1.0")
    found = open_organ_masks(tmp_path / "a.dcm")
    assert found is not None
    np.testing.assert_array_equal(found.mask("a", grid), masks()["whole pancreas"])


def test_segments_of_slicer_that_overlap_lie_in_layers(tmp_path: Path) -> None:
    _, grid = make_series("oblique")
    write_seg_nrrd(tmp_path / "a.seg.nrrd", nested(grid))
    array, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    assert (header["dimension"], array.shape) == (4, (2, *SHAPE))
    assert header["kinds"] == ["list", "domain", "domain", "domain"]
    for number, (name, mask) in enumerate(masks().items()):
        key = f"Segment{number}_"
        layer, value = int(header[key + "Layer"]), int(header[key + "LabelValue"])
        assert header[key + "Name"] == name
        np.testing.assert_array_equal(array[layer] == value, mask)
    assert header["Segment0_Extent"] == "3 11 3 12 1 5"
    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert (image.GetNumberOfComponentsPerPixel(), image.GetSize()) == (2, SHAPE)
    lps = np.array(image.TransformIndexToPhysicalPoint((4, 9, 2)))
    np.testing.assert_allclose(lps * [-1, -1, 1], grid.to_world((4, 9, 2)), atol=1e-6)


def test_regions_of_slicer_that_do_not_overlap_lie_in_one_layer(tmp_path: Path) -> None:
    _, grid = make_series("axial")
    ours = nested(grid)
    apart = Segmentation(ours.array, grid, {0: "background", 1: "a", 7: "b"}, None, {1: (1, 2)})
    write_seg_nrrd(tmp_path / "a.seg.nrrd", apart)
    array, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    assert header["dimension"] == 3
    np.testing.assert_array_equal(array == 1, masks()["whole pancreas"])


def test_the_mesh_of_a_region_surrounds_all_of_it(tmp_path: Path) -> None:
    grid = Grid(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0]))
    paths = write_meshes(tmp_path, nested(grid))
    assert [path.name for path in paths] == ["whole_pancreas.stl", "tumour.stl", "liver.stl"]
    whole, tumour = (trimesh.load(path, force="mesh") for path in paths[:2])
    np.testing.assert_allclose(whole.extents, [9, 10, 15], atol=0.6)
    assert whole.body_count == 1
    assert whole.volume == pytest.approx(3 * tumour.volume, rel=0.15)


def test_stored_results_are_exported_with_their_regions(tmp_path: Path) -> None:
    ours = nested(Grid(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0])))
    (tmp_path / "out").mkdir()
    ours.save(tmp_path / "out" / "case.nii.gz")
    names = {str(value): name for value, name in LABELS.items()}
    content = {"labels": names, "regions": {"1": [1, 2]}, "files": {}, "settings": {}}
    (tmp_path / "out" / "case.json").write_text(json.dumps(content))
    assert label_maps.convert_label_maps(tmp_path / "out", tmp_path / "mesh", "mesh").done
    mesh = trimesh.load(tmp_path / "mesh" / "case" / "whole_pancreas.stl", force="mesh")
    np.testing.assert_allclose(mesh.extents, [9, 10, 15], atol=0.6)


def test_packages_say_what_makes_up_a_region(tmp_path: Path) -> None:
    settings = ["inference.regions_class_order=[1,2]", "training.regions=[[1,2],[2]]"]
    labels = {0: "background", 1: "whole pancreas", 2: "tumour"}
    model = load_model(save(tmp_path / "model.safetensors", *settings, labels=labels))
    facts = formats._about(model, (16, 16, 16))
    assert json.loads(facts["regions"]) == {"1": [1, 2], "2": [2]}
    assert "| 1, 2 | whole pancreas |\n| 2 | tumour |" in bundle.readme(model, (16, 16, 16))
    steps = bundle.inference(model, (16, 16, 16))["postprocessing"]["transforms"]
    assert [list(part) for part in steps[0]["regions"]] == [[1, 2], [2]]


def test_a_bundle_keeps_the_largest_part_of_the_whole_region() -> None:
    """In MONAI's pipeline, too: without the tumour the rest would be two parts."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.tensor(affine))
    config = PreprocessingConfig(
        spacing_mm=(2.0, 2.0, 2.0), normalisation="volume", crop_to_body=False
    )
    item: dict[Any, Any] = dict(ToNetworkGridd(["image"], config)({"image": image}))
    logits = torch.full((3, *SHAPE), -1.0)
    logits[0] = 0
    logits[1][WHOLE], logits[1][LIVER], logits[2][TUMOUR] = 1, 1, 1
    back: dict[str, Any] = {"keep_largest": [1], "order": [1, 2], "regions": [[1, 2], [2]]}
    chain = ToSourceGridd(["pred"], like="image", values=[0, 1, 2], sigmoid=True, **back)
    found = chain(item | {"pred": logits})["pred"][0].numpy()
    np.testing.assert_array_equal(found > 0, masks()["whole pancreas"])
