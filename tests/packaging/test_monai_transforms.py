"""The preprocessing inside someone else's MONAI pipeline, on real NIfTI files and MetaTensors."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, LoadImaged

from attunet3d.core import DataError
from attunet3d.core.model_config import PreprocessingConfig
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.preprocessing import label_to_network_grid, to_network_grid
from attunet3d.imaging.volume import Volume
from attunet3d.packaging.monai_transforms import ToNetworkGridd, ToSourceGridd

CONFIG = PreprocessingConfig(
    spacing_mm=(2.0, 2.0, 2.0), hu_window=(-160.0, 240.0), mean_hu=40.0, std_hu=50.0
)
AFFINE = np.array(  # LPS, turned by 10 degrees about z, slices of 3 mm
    [
        [-0.9848, 0.1736, 0.0, 60.0],
        [-0.1736, -0.9848, 0.0, 70.0],
        [0.0, 0.0, 3.0, -200.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@pytest.fixture
def files(tmp_path: Path) -> dict[Any, str]:
    """A body with an organ of 60 HU, and its label (value 4)."""
    x, y, z = np.ogrid[:80, :72, :20]
    array = np.full((80, 72, 20), -1000, np.int16)
    array[np.broadcast_to(((x - 40) / 30) ** 2 + ((y - 36) / 24) ** 2 < 1, array.shape)] = 20
    organ = ((x - 45) / 18) ** 2 + ((y - 34) / 14) ** 2 + ((z - 10) / 7) ** 2 < 1
    array[organ] = 60
    label = (organ * 4).astype(np.uint8)
    for name, values in (("image", array), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}


def loader() -> LoadImaged:
    return LoadImaged(["image", "label"], reader="NibabelReader", ensure_channel_first=True)


def forward() -> ToNetworkGridd:
    return ToNetworkGridd(["image", "label"], CONFIG, label_keys=["label"], values=[0, 4])


def original(files: dict[Any, str], name: str) -> Volume:
    file = nibabel.load(files[name])
    array = np.asfortranarray(np.asanyarray(file.dataobj))
    return Volume(array, Grid(array.shape, file.affine))


def test_does_what_inference_does(files: dict[Any, str]) -> None:
    loaded = loader()(files)
    before = {key: loaded[key].clone() for key in loaded}
    out = forward()(loaded)
    wanted = to_network_grid(original(files, "image"), CONFIG)
    torch.testing.assert_close(out["image"].as_tensor(), wanted.tensor)
    np.testing.assert_allclose(out["image"].affine, wanted.grid.affine, atol=1e-4)
    assert tuple(out["image"].meta["spatial_shape"]) == (80, 72, 20)  # the file's, as MONAI has it
    classes = label_to_network_grid(original(files, "label"), wanted.grid, [0, 4])
    assert out["label"].dtype == torch.uint8
    assert torch.equal(out["label"].as_tensor()[0], classes)
    np.testing.assert_allclose(out["label"].affine, wanted.grid.affine, atol=1e-4)
    for key, tensor in before.items():
        assert torch.equal(loaded[key].as_tensor(), tensor.as_tensor())


def test_voxels_stay_where_they_are_in_the_patient(files: dict[Any, str]) -> None:
    out = forward()(loader()(files))
    inside = out["image"][0, ...][out["label"][0] > 0].as_tensor()
    assert float(inside.median()) == pytest.approx((60 - 40) / 50, abs=1e-3)
    grid = Grid(tuple(out["label"].shape[1:]), out["label"].affine.numpy())
    centre = grid.to_world(np.argwhere(out["label"][0].numpy() > 0)).mean(0)
    wanted = original(files, "image").grid.to_world((45, 34, 10))
    np.testing.assert_allclose(centre, wanted, atol=0.5)


def test_there_and_back_through_loader_and_collation(files: dict[Any, str]) -> None:
    chain = Compose([loader(), forward()])
    batches = DataLoader(Dataset([files], chain), batch_size=1, collate_fn=list_data_collate)
    batch = next(iter(batches))
    batch["logits"] = batch["label"].as_tensor().float() - 0.5  # (1, 1, X, Y, Z), a margin
    item = decollate_batch(batch)[0]
    back = ToSourceGridd(["logits"], like="image", values=[0, 4], keep_largest=[4])(item)
    truth = original(files, "label")
    found = back["logits"]
    assert found.dtype == torch.uint8
    np.testing.assert_allclose(found.affine, truth.grid.affine, atol=1e-6)
    home = found[0].numpy()
    assert home.shape == truth.array.shape
    assert set(np.unique(home)) == {0, 4}
    both = ((home == 4) & (truth.array == 4)).sum()
    assert 2 * both / ((home == 4).sum() + (truth.array == 4).sum()) > 0.96
    assert item["image"].applied_operations == []


def test_lps_tensors_are_placed_alike(files: dict[Any, str]) -> None:
    ras = forward()(loader()(files))
    loaded = loader()(files)
    flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    for key in ("image", "label"):
        loaded[key].affine = flip @ loaded[key].affine
        loaded[key].meta["space"] = "LPS"
    lps = forward()(loaded)
    np.testing.assert_allclose(lps["image"].affine, ras["image"].affine)
    assert torch.equal(lps["image"].as_tensor(), ras["image"].as_tensor())
    assert lps["image"].meta["space"] == "RAS"


def test_image_alone_and_missing_keys(files: dict[Any, str]) -> None:
    loaded = loader()(files)
    only = ToNetworkGridd(["image", "other"], CONFIG, allow_missing_keys=True)(
        {"image": loaded["image"], "id": "case 7"}
    )
    assert set(only) == {"image", "id"}
    with pytest.raises(KeyError, match="other"):
        ToNetworkGridd(["image", "other"], CONFIG)({"image": loaded["image"]})


def test_what_cannot_be_placed_is_named(files: dict[Any, str]) -> None:
    loaded = loader()(files)
    with pytest.raises(DataError, match="image: must be a MetaTensor of one channel"):
        ToNetworkGridd(["image"], CONFIG)({"image": torch.zeros(1, 4, 4, 4)})
    two = MetaTensor(torch.zeros(2, 4, 4, 4), affine=torch.eye(4))
    with pytest.raises(DataError, match=r"one channel .* \(2, 4, 4, 4\)"):
        ToNetworkGridd(["image"], CONFIG)({"image": two})
    with pytest.raises(DataError, match="one must be an image"):
        ToNetworkGridd(["label"], CONFIG, label_keys=["label"])(loaded)
    with pytest.raises(DataError, match="is not a result of ToNetworkGridd"):
        ToSourceGridd(["image"], like="image")(loaded)
    placed = forward()(loaded)
    placed["logits"] = torch.zeros(1, 3, 3, 3)
    with pytest.raises(DataError, match=r"shape \(1, 3, 3, 3\) do not fit the grid"):
        ToSourceGridd(["logits"], like="image")(placed)
    loaded["label"] = loaded["label"] + 0.25
    with pytest.raises(DataError, match="label: label values must be whole numbers"):
        forward()(loaded)
