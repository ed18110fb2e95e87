"""Random changes of a training patch: plain functions (image, label, generator) → (image, label).

Images are (1, X, Y, Z) float32, labels (1, X, Y, Z) integers; neither is changed in place. All
randomness comes from the generator, and the results are bit-identical for any number of CPU
threads, which exact resumption needs (MONAI's own contrast and gamma are not).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from monai.networks.layers import gaussian_1d
from torch import Tensor

from attunet3d.core import AugmentationConfig, Size, Triple
from attunet3d.training import placement
from attunet3d.training.components import Transform
from attunet3d.training.placement import Placement, to_device

NOISE_DEVIATIONS = 0.3
BLUR_VOXELS = (0.5, 1.25)
FACTOR = (0.75, 1.25)
ZOOM = (0.5, 1.0)
GAMMA = (0.7, 1.5)
_ONE_THREAD = 2**14  # voxels; torch splits no work of fewer than 2**15 among threads

Pair = tuple[Tensor, Tensor]
Generator = np.random.Generator


class Augmentation:
    """What is done to each training patch: a placement, then one transform after the other.

    Any number of threads may call it at once.

    Args:
        config: What is done, and how often.
        patch_size: Voxels along x, y and z.
        spacing_mm: Of the voxels.
        more: Further transforms, applied last.

    Example:
        >>> image, label = torch.rand(1, 8, 8, 8), torch.zeros(1, 8, 8, 8).byte()
        >>> augmentation = Augmentation(AugmentationConfig(), (8, 8, 8), (1.0, 1.0, 1.0))
        >>> generator = np.random.default_rng(0)
        >>> drawn = augmentation.draw_placement(generator)
        >>> image, label = augmentation(image, label, drawn, generator)
        >>> tuple(image.shape), label.dtype
        ((1, 8, 8, 8), torch.uint8)
    """

    def __init__(
        self,
        config: AugmentationConfig,
        patch_size: Size,
        spacing_mm: Triple,
        more: Sequence[Transform] = (),
    ) -> None:
        self.config, self.patch_size, self.spacing_mm = config, patch_size, spacing_mm
        self.transforms = [*build_transforms(config), *more]

    def draw_placement(self, generator: Generator) -> Placement:
        """Where the patch is read; its `source_size` tells how large a region must be cut."""
        return placement.draw(generator, self.config, self.patch_size, self.spacing_mm)

    def __call__(
        self, image: Tensor, label: Tensor, drawn: Placement, generator: Generator
    ) -> Pair:
        """Read the patch and change it.

        Args:
            image: (1, I, J, K) float, of `drawn.source_size` or of the patch's size.
            label: (1, I, J, K) integers, on the image's device.
            drawn: By `draw_placement`.
            generator: Of everything else that is random.

        Returns:
            (1, X, Y, Z) float32 and (1, X, Y, Z).
        """
        image, label = placement.place(image, label, drawn)
        for transform in self.transforms:
            image, label = transform(image, label, generator)
        return image, label


def build_transforms(config: AugmentationConfig) -> list[Transform]:
    """Return the transforms that can occur, in the order in which a scanner degrades images."""
    steps: list[tuple[float, Transform]] = [
        (config.noise_probability, add_noise),
        (config.blur_probability, blur),
        (config.brightness_probability, scale_brightness),
        (config.contrast_probability, scale_contrast),
        (config.low_resolution_probability, lower_resolution),
        (config.gamma_probability, change_gamma),
    ]
    mirrors = [partial(mirror, axes=config.flip_axes)] if config.flip_axes else []
    return [*mirrors, *(sometimes(p, step) for p, step in steps if p > 0)]


def sometimes(probability: float, transform: Transform) -> Transform:
    """`transform` with a probability, else nothing."""

    def maybe(image: Tensor, label: Tensor, generator: Generator) -> Pair:
        if generator.random() < probability:
            return transform(image, label, generator)
        return image, label

    return maybe


def mirror(image: Tensor, label: Tensor, generator: Generator, axes: Sequence[int]) -> Pair:
    """Mirror along each of `axes` (0 = x) with probability one half."""
    drawn = [1 + axis for axis in sorted(axes) if generator.random() < 0.5]
    return (image.flip(drawn), label.flip(drawn)) if drawn else (image, label)


def add_noise(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Add Gaussian noise of a random strength, made on the image's device."""
    deviation = float(generator.uniform(0, NOISE_DEVIATIONS))
    seed = int(generator.integers(2**63))
    seeded = torch.Generator(image.device).manual_seed(seed)
    noise = torch.randn(image.shape, generator=seeded, device=image.device)
    return image + deviation * noise, label


def blur(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Smooth by a Gaussian, with a random width per axis.

    Sums of shifted copies take a tenth of the time of `conv3d` with kernels this thin.
    """
    for axis in (1, 2, 3):
        width = torch.tensor(generator.uniform(*BLUR_VOXELS))
        taps = gaussian_1d(width, truncated=3.0).tolist()
        radius, size = len(taps) // 2, image.shape[axis]
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, size - 1, 1)
        padded = torch.cat([*[first] * radius, image, *[last] * radius], dim=axis)
        image = padded.narrow(axis, 0, size) * (taps[0] / sum(taps))
        for shift, tap in enumerate(taps[1:], start=1):
            image.add_(padded.narrow(axis, shift, size), alpha=tap / sum(taps))
    return image, label


def scale_brightness(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Multiply all values by one factor."""
    return image * float(generator.uniform(*FACTOR)), label


def scale_contrast(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Stretch or squeeze the values about their mean."""
    mean = image.mean(dtype=torch.float64).float()  # so that no order of summation shows
    return (image - mean) * float(generator.uniform(*FACTOR)) + mean, label


def lower_resolution(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Keep as little as half the voxels along each axis and fill in linearly between them.

    The nearest voxel at each coarse voxel's centre, then trilinear between the centres. Axis by
    axis: x and y are made coarse first and fine last, when z has its full size again.
    """
    zoom = float(generator.uniform(*ZOOM))
    kept, lower, upper, shares = zip(
        *(_coarse(size, zoom, image.device) for size in image.shape[1:]), strict=True
    )
    image = image.index_select(1, kept[0]).index_select(2, kept[1])
    below, above = kept[2][lower[2]], kept[2][upper[2]]
    image = _between(image, 3, below, above, shares[2])
    image = _between(image, 2, lower[1], upper[1], shares[1])
    return _between(image, 1, lower[0], upper[0], shares[0]), label


def change_gamma(image: Tensor, label: Tensor, generator: Generator) -> Pair:
    """Values low + span · ((v − low) / span)^gamma between the patch's lowest and highest value.

    A constant patch stays as it is.
    """
    low, high = image.aminmax()
    span = (high - low).clamp(min=torch.finfo(image.dtype).tiny)
    power = float(generator.uniform(*GAMMA))
    scaled = ((image - low) / span).reshape(-1)
    piece = scaled.numel() if image.is_cuda else _ONE_THREAD
    for part in torch.split(scaled, piece):
        part.log2_().mul_(power).exp2_()  # a power in a third of `pow_`'s time; 0 stays 0
    return scaled.mul_(span).add_(low).view_as(image), label


def _coarse(size: int, zoom: float, device: torch.device) -> list[Tensor]:
    """What a coarse axis keeps; each voxel's lower and upper coarse neighbour, upper's share."""
    count = max(round(size * zoom), 1)
    kept = ((np.arange(count) + 0.5) * (size / count)).astype(np.int32)
    at = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    lower = at.astype(np.int32)
    arrays = (kept, lower, np.minimum(lower + 1, count - 1), (at - lower).astype(np.float32))
    return [to_device(array, device) for array in arrays]


def _between(image: Tensor, axis: int, lower: Tensor, upper: Tensor, share: Tensor) -> Tensor:
    """Along `axis` of (C, X, Y, Z), what lies at `share` of the way from `lower` to `upper`."""
    shape = [-1 if number == axis else 1 for number in range(4)]
    low = image.index_select(axis, lower)
    return image.index_select(axis, upper).sub_(low).mul_(share.view(shape)).add_(low)
