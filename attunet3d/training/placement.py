"""Maps the voxels of a patch to the source region: an affine map and a smooth deformation.

Rotation and zoom act in millimetres, so that they do not shear anisotropic voxels. With
D = diag(spacing), R the rotation and s the zoom, a point q moves to s·R·q (mm from the centre);
hence the voxel at index i of the patch (from its centre) is read at

    D⁻¹ · (R⁻¹ / s) · D · i + displacement(i)        of the source region (from its centre).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from attunet3d.core import AugmentationConfig, Floats, Size, Triple

_SLAB_VOXELS = 2**17


@dataclass(frozen=True, eq=False)
class Placement:
    """The map from the voxels of a patch to those of its source region.

    Args:
        patch_size: Size of the patch in voxels.
        matrix: (3, 3), patch voxels → source voxels, both from their centres.
        displacement: (3, a, b, c), source voxels, at the control points of a cubic B-spline that
            spans the patch; None for an affine map.

    Example:
        >>> turned = rotated((96, 96, 32), (1.0, 1.0, 3.0), (0.0, 0.0, 45.0), zoom=1.0)
        >>> turned.source_size  # a square turned by 45 degrees needs its diagonal
        (136, 136, 32)
    """

    patch_size: Size
    matrix: Floats
    displacement: Floats | None = None

    @property
    def is_identity(self) -> bool:
        """Whether patch and source region are the same voxels."""
        return self.displacement is None and bool((self.matrix == np.eye(3)).all())

    @property
    def source_size(self) -> Size:
        """Size in voxels of the smallest region that contains the source of the whole patch.

        Each length is even where the patch's is, so that both centres coincide.
        """
        half = (np.array(self.patch_size) - 1) / 2
        moved = np.abs(self.matrix) @ half
        if self.displacement is not None:  # a B-spline stays within its control points
            moved = moved + np.abs(self.displacement).max(axis=(1, 2, 3))
        x, y, z = (
            size + 2 * math.ceil(more - 1e-6)
            for size, more in zip(self.patch_size, moved - half, strict=True)
        )
        return max(x, 1), max(y, 1), max(z, 1)

    def lines(self, source_size: Size, device: torch.device) -> list[list[torch.Tensor]]:
        """Source voxel indices of the affine map, as outer sums.

        Returns:
            For each axis of the source three tensors (X, 1, 1), (1, Y, 1) and (1, 1, Z), whose sum
            is the index at which a voxel of the patch is read.
        """
        centre = (np.array(source_size) - 1) / 2
        lines: list[list[torch.Tensor]] = [[], [], []]
        for axis, size in enumerate(self.patch_size):
            steps = np.arange(size) - (size - 1) / 2
            shape = [1, 1, 1]
            shape[axis] = size
            for row, line in enumerate(lines):
                part = steps * self.matrix[row, axis] + (centre[row] if axis == 0 else 0)
                line.append(to_device(part.astype(np.float32), device).view(shape))
        return lines

    def displacements(self, device: torch.device) -> list[torch.Tensor] | None:
        """Three tensors (X, Y, Z) in voxels, one per axis of the source; None if affine."""
        if self.displacement is None:
            return None
        # float64, so that once rounded the result does not depend on the number of threads.
        values = to_device(self.displacement, device).movedim(0, -1)  # (a, b, c, 3)
        for size, points in zip(self.patch_size, self.displacement.shape[1:], strict=True):
            spans = points - 3
            at = (np.arange(size) + 0.5) / size * spans
            knots = np.arange(-3.0, spans + 4)
            basis: Any = BSpline.design_matrix(at, knots, 3).toarray()  # (size, points)
            weights = to_device(basis, device)
            # Contract the first axis and append the new one; the components are moved last again.
            values = torch.tensordot(values, weights, dims=([0], [1])).movedim(-2, -1)
        return [part.float() for part in values.unbind(-1)]


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to `device`; to a GPU asynchronously, from page-locked memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def rotated(patch_size: Size, spacing_mm: Triple, degrees: Triple, zoom: float) -> Placement:
    """Rotate by `degrees` about x, then y, then z (right-handed, in mm), and magnify by `zoom`."""
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    spacing = np.array(spacing_mm)
    return Placement(patch_size, (turn.T / zoom) * spacing[None, :] / spacing[:, None])


def draw(
    generator: np.random.Generator,
    config: AugmentationConfig,
    patch_size: Size,
    spacing_mm: Triple,
) -> Placement:
    """Draw a random placement; the identity if neither a rotation nor a deformation is drawn."""
    turns = generator.random() < config.affine_probability
    deforms = generator.random() < config.elastic_probability and config.elastic_mm > 0
    placement = Placement(patch_size, np.eye(3))
    if turns:
        x, y, z = (generator.uniform(-most, most) for most in config.rotation_degrees)
        low, high = np.log(config.scale)  # as often smaller as larger
        zoom = float(np.exp(generator.uniform(low, high)))
        placement = rotated(patch_size, spacing_mm, (x, y, z), zoom)
    if not deforms:
        return placement
    # Control points four times the largest displacement apart: such a B-spline cannot fold
    # (it may reach 0.40 of the distance; Choi & Lee 2000).
    apart = max(4 * config.elastic_mm, 16.0)
    extent = np.array(patch_size) * spacing_mm
    points = [math.ceil(length / apart) + 3 for length in extent]
    millimetres = generator.uniform(-config.elastic_mm, config.elastic_mm, (3, *points))
    displacement = millimetres / np.array(spacing_mm)[:, None, None, None]
    return Placement(patch_size, placement.matrix, displacement)


def place(
    image: torch.Tensor, label: torch.Tensor, placement: Placement
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample a patch: the image by trilinear, the label by nearest-neighbour interpolation.

    Args:
        image: (C, I, J, K) float; outside, the values of its border are repeated.
        label: (1, I, J, K) of any dtype, on the image's device.
        placement: The map, about the centre of the image.

    Returns:
        (C, X, Y, Z) float32 and (1, X, Y, Z).
    """
    if placement.is_identity:
        return _centre(image, placement.patch_size).float(), _centre(label, placement.patch_size)
    device, (x, y, z) = image.device, placement.patch_size
    size: Size = (image.shape[1], image.shape[2], image.shape[3])
    moved = image.new_empty(image.shape[0], x, y, z, dtype=torch.float32)
    labels = label.new_empty(1, x, y, z)
    lines, displacements = placement.lines(size, device), placement.displacements(device)
    # Slabs that stay in a core's cache take half the time; a GPU takes all at once.
    slab = max(_SLAB_VOXELS // (y * z), 1) if device.type == "cpu" else x
    for start in range(0, x, slab):
        part = slice(start, start + slab)
        positions = [first[part] + second + third for first, second, third in lines]
        for position, displacement in zip(positions, displacements or (), strict=False):
            position.add_(displacement[part])
        for position, length in zip(positions, size, strict=True):
            position.clamp_(0, length - 1)
        nearest = _flat([(position + 0.5).int() for position in positions], size)
        labels[0, part] = label.reshape(-1).index_select(0, nearest).view(-1, y, z)
        _trilinear(image, positions, moved[:, part])
    return moved, labels


def _centre(tensor: torch.Tensor, size: Size) -> torch.Tensor:
    """Crop (C, I, J, K) to `size` about its centre, where it is larger."""
    for axis, length in enumerate(size, start=1):
        spare = max(tensor.shape[axis] - length, 0)
        tensor = tensor.narrow(axis, spare // 2, tensor.shape[axis] - spare)
    return tensor


def _trilinear(image: torch.Tensor, positions: list[torch.Tensor], out: torch.Tensor) -> None:
    """Interpolate the image at the positions (x, y, z), all inside it, into `out` (C, x, y, z).

    Eight gathers take a third of the time of `F.grid_sample`, which is not vectorised for volumes.
    Differences and products are separate operations, because the rounding of fused ones depends on
    how threads split the voxels.
    """
    _, *size = image.shape
    lower = [
        position.int().clamp_(max=max(length - 2, 0))
        for position, length in zip(positions, size, strict=True)
    ]
    shares = [p.sub_(low).reshape(-1) for p, low in zip(positions, lower, strict=True)]
    flat = _flat(lower, size)
    strides = (size[1] * size[2], size[2], 1)
    steps = [stride if length > 1 else 0 for stride, length in zip(strides, size, strict=True)]
    offsets = [sum(corner) for corner in product(*((0, step) for step in steps))]
    for channel, filled in zip(image, out, strict=True):
        voxels = channel.reshape(-1)
        values = [voxels[offset:].index_select(0, flat).float() for offset in offsets]
        for share in reversed(shares):  # the last axis is the fastest among the corners
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [high.sub_(low).mul_(share).add_(low) for low, high in pairs]
        filled.copy_(values[0].view_as(filled))


def _flat(indices: list[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """Row-major indices (n,) of voxels given by three tensors; the first is overwritten."""
    first, second, third = indices
    return first.mul_(size[1]).add_(second).mul_(size[2]).add_(third).reshape(-1)
