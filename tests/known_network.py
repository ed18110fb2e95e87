"""A network whose answer is known: a voxel is foreground where the image is above a threshold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from attunet3d.cohort.case_writer import CaseMaps, write_case
from attunet3d.cohort.results import CaseFiles
from attunet3d.core import Array, Floats, Size
from attunet3d.core.config import Config
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Segmentation, Volume
from attunet3d.inference.predictor import Predictor
from attunet3d.models.checkpoint import Checkpoint

SETTINGS = [
    "preprocessing.spacing_mm=[2, 2, 2]",
    "preprocessing.hu_window=[-1000, 1000]",
    "preprocessing.mean_hu=0",
    "preprocessing.std_hu=100",
    "preprocessing.crop_to_body=false",
    "training.patch_size=[16, 16, 16]",
]
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2, 0, 20], [0, 0, 2, -50], [0, 0, 0, 1]])  # LPS
SHAPE = (30, 26, 22)


class ThresholdNetwork(nn.Module):
    """Logits (0, x - threshold) of the normalised image x; attention sigmoid(x) at half size."""

    divisor = (4, 4, 4)

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.cat([torch.zeros_like(x), x - self.threshold], 1)

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        half = nn.functional.avg_pool3d(x, 2)
        return self(x), [torch.sigmoid(torch.cat([half, -half], 1))]


class NestedNetwork(ThresholdNetwork):
    """Logits (0, x - 1, x - 4): a whole above 100 HU, and a mass in it above 400 HU."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x - 1, x - 4], 1)


REGIONS = ["training.regions=[[1, 2], [2]]", "inference.regions_class_order=[1, 2]"]
NESTED = {0: "background", 1: "whole", 2: "mass"}


def nested() -> Array:
    """(I, J, K) HU: a whole, which a mass cuts in two, and an islet of the whole."""
    array = np.zeros(SHAPE, np.int16, order="F")
    array[4:18, 5:15, 5:15] = 300
    array[9:13, 5:15, 5:15] = 800
    array[24:26, 5:7, 5:7] = 300
    return array


def checkpoint(network: nn.Module | None = None, *settings: str, **changes: Any) -> Checkpoint:
    """A loaded model of one label, "ball", around `network`."""
    values: dict[str, Any] = {
        "network": (network or ThresholdNetwork()).eval(),
        "config": Config().with_overrides([*SETTINGS, *settings]),
        "labels": {0: "background", 5: "ball"},
        "checksum": "f" * 64,
        "path": Path("known.safetensors"),
    }
    return Checkpoint(**{**values, **changes})


def ball(
    shape: Size = SHAPE, affine: Floats = AFFINE, radius_mm: float = 12.0, value: float = 300
) -> Array:
    """(I, J, K) int16 in Fortran order: a ball of `value` HU in the middle of 0 HU."""
    grid = Grid(shape, affine)
    index = np.moveaxis(np.indices(shape), 0, -1)
    middle = grid.to_world((np.array(shape) - 1) / 2)
    inside = np.linalg.norm(grid.to_world(index) - middle, axis=-1) <= radius_mm
    return np.asfortranarray(np.where(inside, value, 0).astype(np.int16))


def ball_volume(shape: Size = SHAPE, affine: Floats = AFFINE, **changes: float) -> Volume:
    """The ball as a scan in memory."""
    return Volume(ball(shape, affine, **changes), Grid(shape, affine), name="ball.nii.gz")


def write_scan(path: Path, array: Array | None = None, affine: Floats = AFFINE) -> Path:
    """The ball, or `array`, as a NIfTI file."""
    image = nibabel.Nifti1Image(ball() if array is None else array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_predicted(
    files: CaseFiles, predictor: Predictor, volume: Volume, kinds: Sequence[str] = ()
) -> Segmentation:
    """Segment a scan and write all its files, as `infer` does."""
    maps = CaseMaps(files, volume)
    segmentation, record = predictor.segment_into(volume, kinds, maps.open)
    write_case(files, segmentation, record, maps)
    return segmentation


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
