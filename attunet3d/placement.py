"""Where the voxels of a patch come from: one affine map and one smooth bend about both centres.

Rotation and zoom are drawn in millimetres, so that a rotation stays one on voxels that are no
cubes. With D = diag(spacing), R the rotation and s the zoom, what lay at q appears at s·R·q (mm
from the centre); hence the voxel at index i of the patch (from its centre) is read at

    D⁻¹ · (R⁻¹ / s) · D · i + bend(i)        of the source region (from its centre).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from attunet3d.config import AugmentationConfig, Size, Triple

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placement:
    """The map from the voxels of a patch to those of the region that it is cut from.

    Args:
        patch_size: Voxels of the patch.
        matrix: (3, 3), patch voxels → source voxels, both from their centres.
        bend: (3, a, b, c), source voxels: displacements at the control points of a cubic B-spline
            that spans the patch; None for a straight map.

    Example:
        >>> turned = rotated((96, 96, 32), (1.0, 1.0, 3.0), (0.0, 0.0, 45.0), zoom=1.0)
        >>> turned.source_size  # a square turned by 45 degrees needs its diagonal
        (136, 136, 32)
    """

    patch_size: Size
    matrix: Array
    bend: Array | None = None

    @property
    def source_size(self) -> Size:
        """Voxels of the smallest region that holds all that the patch is read from.

        Each side is even where the patch's is, so that both centres fall on one point.
        """
        half = (np.array(self.patch_size) - 1) / 2
        reach = np.abs(self.matrix) @ half
        if self.bend is not None:  # a B-spline stays within its control points
            reach = reach + np.abs(self.bend).max(axis=(1, 2, 3))
        x, y, z = (
            size + 2 * math.ceil(more - 1e-6)
            for size, more in zip(self.patch_size, reach - half, strict=True)
        )
        return max(x, 1), max(y, 1), max(z, 1)

    def grid(self, source_size: Size, device: torch.device) -> torch.Tensor:
        """Source positions (X, Y, Z, 3) for `F.grid_sample(align_corners=False)`, last z, y, x.

        Outer sums of three vectors: a tenth of the time of `F.affine_grid`.
        """
        scale = 2 / np.array(source_size)  # voxels from the centre -> [-1, 1] over the extent
        total: torch.Tensor | None = None
        for axis, size in enumerate(self.patch_size):
            steps = np.arange(size) - (size - 1) / 2
            part = steps[:, None] * (scale * self.matrix[:, axis])[::-1]  # (n, 3)
            shape = [1, 1, 1, 3]
            shape[axis] = size
            term = torch.from_numpy(part.astype(np.float32)).to(device).view(shape)
            total = term if total is None else total + term
        assert total is not None
        if self.bend is not None:
            total = total + self._field(scale, device)
        return total

    def _field(self, scale: Array, device: torch.device) -> torch.Tensor:
        """The bend at every voxel of the patch, normalised: (X, Y, Z, 3), last axis z, y, x."""
        assert self.bend is not None
        field = (self.bend * scale[:, None, None, None])[::-1].transpose(1, 2, 3, 0)
        # float64: how a matrix product is split among threads does not show once it is rounded.
        values = torch.from_numpy(field.copy()).to(device)  # (a, b, c, 3)
        for size, points in zip(self.patch_size, self.bend.shape[1:], strict=True):
            spans = points - 3
            at = (np.arange(size) + 0.5) / size * spans
            knots = np.arange(-3.0, spans + 4)
            basis: Any = BSpline.design_matrix(at, knots, 3).toarray()  # (size, points)
            weights = torch.from_numpy(basis).to(device)
            # Contract the first axis and append the new one; the components are moved last again.
            values = torch.tensordot(values, weights, dims=([0], [1])).movedim(-2, -1)
        return values.float()  # (X, Y, Z, 3)


def rotated(patch_size: Size, spacing_mm: Triple, degrees: Triple, zoom: float) -> Placement:
    """The content turned by `degrees` about x, then y, then z (right-handed, mm), and magnified."""
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    spacing = np.array(spacing_mm)
    return Placement(patch_size, (turn.T / zoom) * spacing[None, :] / spacing[:, None])


def draw(
    state: np.random.RandomState, config: AugmentationConfig, patch_size: Size, spacing_mm: Triple
) -> Placement | None:
    """A random placement; None where the patch is to be taken as it lies."""
    turns = state.rand() < config.affine_probability
    bends = state.rand() < config.elastic_probability and config.elastic_mm > 0
    if not (turns or bends):
        return None
    placement = Placement(patch_size, np.eye(3))
    if turns:
        x, y, z = (state.uniform(-most, most) for most in config.rotation_degrees)
        low, high = np.log(config.scale)  # as often smaller as larger
        placement = rotated(
            patch_size, spacing_mm, (x, y, z), float(np.exp(state.uniform(low, high)))
        )
    if not bends:
        return placement
    # Control points four times the largest displacement apart: such a B-spline cannot fold
    # (it may reach 0.40 of the distance; Choi & Lee 2000).
    apart = max(4 * config.elastic_mm, 16.0)
    extent = np.array(patch_size) * spacing_mm
    points = [math.ceil(length / apart) + 3 for length in extent]
    millimetres = state.uniform(-config.elastic_mm, config.elastic_mm, (3, *points))
    bend = millimetres / np.array(spacing_mm)[:, None, None, None]
    return Placement(patch_size, placement.matrix, bend)


def place(
    image: torch.Tensor, label: torch.Tensor, placement: Placement
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a patch through `placement`: the image by trilinear, the label by nearest neighbour.

    Args:
        image: (C, I, J, K) float; beyond its border its border's values go on.
        label: (1, I, J, K) of any dtype, on the image's device.
        placement: Its centre is the region's centre.

    Returns:
        (C, X, Y, Z) and (1, X, Y, Z).
    """
    _, i, j, k = image.shape
    grid = placement.grid((i, j, k), image.device)  # (X, Y, Z, 3)
    moved = F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]
    flat: torch.Tensor | None = None
    for axis, size in enumerate((i, j, k)):  # grid_sample's nearest takes five times as long
        index = ((grid[..., 2 - axis] + 1) * (size / 2) - 0.5).round_().clamp_(0, size - 1)
        step = index.to(torch.int32)
        flat = step if flat is None else flat * size + step
    assert flat is not None
    found = label.reshape(-1).index_select(0, flat.reshape(-1))
    return moved, found.view(1, *placement.patch_size)
