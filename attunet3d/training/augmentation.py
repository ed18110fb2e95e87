"""Random changes of a training patch, as MONAI dictionary transforms with an explicit seed.

MONAI's own take several times as long for the same, and the last bits of some depend on the number
of CPU threads (contrast's mean and gamma's power in float32), which would end exact resume: these
give the same bits whatever the threads, and draw their noise on the image's device.
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.layers import gaussian_1d
from monai.transforms import MapTransform, RandomizableTransform

from attunet3d.core import AugmentationConfig, Size, Triple
from attunet3d.training import placement

Item = dict[str, Any]
_BLUR_VOXELS = (0.5, 1.25)
_NOISE_DEVIATIONS = 0.3
_FACTOR = (0.75, 1.25)
_GAMMA = (0.7, 1.5)
_ZOOM = (0.5, 1.0)
_ONE_THREAD = 2**14  # voxels; torch splits no work of fewer than 2**15 among threads


class RandPlaced(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Rotate, zoom and bend image and label alike; give the patch at the region's centre.

    The region may be larger than the patch (`Placement.source_size` says how large it must be for
    nothing to be read beyond its border) or the patch itself.
    """

    def __init__(self, config: AugmentationConfig, patch_size: Size, spacing_mm: Triple) -> None:
        RandomizableTransform.__init__(self)
        MapTransform.__init__(self, ("image", "label"))
        self.config, self.patch_size, self.spacing_mm = config, patch_size, spacing_mm
        self.placement: placement.Placement | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw the next placement."""
        self.placement = placement.draw(self.R, self.config, self.patch_size, self.spacing_mm)

    def __call__(self, data: Mapping[str, Any]) -> Item:
        """Move `image` (C, I, J, K) and `label` (1, I, J, K) to the patch (…, X, Y, Z)."""
        item = dict(data)
        self.randomize()
        if self.placement is None:
            image, label = (_centre(item[key], self.patch_size) for key in self.keys)
        else:
            image, label = _plain(item["image"]), _plain(item["label"])
            image, label = placement.place(image, label, self.placement)
        return {**item, "image": image.float(), "label": label}


class RandMirrored(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Mirror image and label alike along each of `axes` (0 = x) with probability one half."""

    def __init__(self, axes: Sequence[int]) -> None:
        RandomizableTransform.__init__(self)
        MapTransform.__init__(self, ("image", "label"))
        self.axes = tuple(sorted(set(axes)))

    def __call__(self, data: Mapping[str, Any]) -> Item:
        """Copy `image` and `label` (C, X, Y, Z) once, whatever the number of axes."""
        item = dict(data)
        drawn = [1 + axis for axis in self.axes if self.R.rand() < 0.5]
        if drawn:
            item.update({key: _plain(item[key]).flip(drawn) for key in self.keys})
        return item


class _RandImaged(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """With a probability, `change` the values of the image and leave all else alone."""

    def __init__(self, prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, ("image",))

    def __call__(self, data: Mapping[str, Any]) -> Item:
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            item["image"] = self.change(_plain(item["image"]))
        return item

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """A new image (C, X, Y, Z) by what `self.R` draws."""


class RandNoised(_RandImaged):
    """Add Gaussian noise of a random strength, made on the image's device."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Image plus noise."""
        deviation = float(self.R.uniform(0, _NOISE_DEVIATIONS))
        generator = torch.Generator(image.device).manual_seed(int(self.R.randint(2**31 - 1)))
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        return image + deviation * noise


class RandBlurred(_RandImaged):
    """Smooth by a Gaussian, one random width an axis."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Sums of shifted copies: a tenth of the time of `conv3d` with kernels this thin."""
        for axis in (1, 2, 3):
            taps = gaussian_1d(torch.tensor(self.R.uniform(*_BLUR_VOXELS)), truncated=3.0).tolist()
            reach, size = len(taps) // 2, image.shape[axis]
            first, last = image.narrow(axis, 0, 1), image.narrow(axis, size - 1, 1)
            padded = torch.cat([*[first] * reach, image, *[last] * reach], dim=axis)
            image = padded.narrow(axis, 0, size) * (taps[0] / sum(taps))
            for shift, tap in enumerate(taps[1:], start=1):
                image.add_(padded.narrow(axis, shift, size), alpha=tap / sum(taps))
        return image


class RandBrightened(_RandImaged):
    """Multiply the values."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """All by one factor."""
        return image * float(self.R.uniform(*_FACTOR))


class RandContrasted(_RandImaged):
    """Stretch or squeeze the values about their mean."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Mean in float64, so that no order of summation shows."""
        mean = image.mean(dtype=torch.float64).float()
        return (image - mean) * float(self.R.uniform(*_FACTOR)) + mean


class RandCoarsened(_RandImaged):
    """Keep as little as half the voxels along each axis and fill in linearly between them."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """The nearest voxel at each coarse voxel's centre, then trilinear between the centres.

        Axis by axis, x and y made coarse first and finer last, when z has its full size again.
        """
        zoom = float(self.R.uniform(*_ZOOM))
        kept, lower, upper, shares = zip(
            *(_coarse(size, zoom, image.device) for size in image.shape[1:]), strict=True
        )
        image = image.index_select(1, kept[0]).index_select(2, kept[1])
        below, above = kept[2][lower[2]], kept[2][upper[2]]
        image = _between(image, 3, below, above, shares[2])
        image = _between(image, 2, lower[1], upper[1], shares[1])
        return _between(image, 1, lower[0], upper[0], shares[0])


class RandGamma(_RandImaged):
    """Bend the grey scale between the patch's lowest and highest value."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Values low + span · ((v − low) / span)^gamma; a constant patch stays as it is."""
        low, high = image.aminmax()
        span = (high - low).clamp(min=torch.finfo(image.dtype).tiny)
        power = float(self.R.uniform(*_GAMMA))
        scaled = ((image - low) / span).reshape(-1)
        piece = scaled.numel() if image.is_cuda else _ONE_THREAD
        for part in torch.split(scaled, piece):
            part.log2_().mul_(power).exp2_()  # a power in a third of `pow_`'s time; 0 stays 0
        return scaled.mul_(span).add_(low).view_as(image)


class Augmentation:
    """What is done to each training patch, a pure function of the patch and a seed.

    Any number of threads may call it at once.

    Args:
        config: What is done, and how often.
        patch_size: Voxels along x, y and z.
        spacing_mm: Of a voxel.

    Example:
        >>> import torch
        >>> patch = {"image": torch.rand(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8).byte()}
        >>> augmentation = Augmentation(AugmentationConfig(), (8, 8, 8), (1.0, 1.0, 1.0))
        >>> once, again = augmentation(patch, seed=3), augmentation(patch, seed=3)
        >>> bool((once["image"] == again["image"]).all()), once["label"].dtype
        (True, torch.uint8)
    """

    def __init__(self, config: AugmentationConfig, patch_size: Size, spacing_mm: Triple) -> None:
        self._place = RandPlaced(config, patch_size, spacing_mm)
        self.transforms: list[RandomizableTransform] = [
            self._place,
            RandMirrored(config.flip_axes),
            *_intensities(config),
        ]

    def source_size(self, seed: int | Sequence[int]) -> Size:
        """Voxels of the region that `__call__` with this seed wants, centred as the patch."""
        place: RandPlaced = _drawing(self._place, _state(seed))
        place.randomize()
        drawn = place.placement
        return place.patch_size if drawn is None else drawn.source_size

    def __call__(self, data: Mapping[str, Any], seed: int | Sequence[int]) -> Item:
        """Return a changed copy of `data`.

        Args:
            data: "image" (C, I, J, K) float and "label" (1, I, J, K) integers on one device, of
                the patch's size or of `source_size(seed)`; other entries pass through.
            seed: The same seed gives the same bits, on CPU whatever the number of threads.

        Returns:
            "image" (C, X, Y, Z) float32 and "label" (1, X, Y, Z), plain tensors.
        """
        state = _state(seed)
        item = dict(data)
        for transform in self.transforms:
            item = dict(_drawing(transform, state)(item))
        return {**item, "image": _plain(item["image"]), "label": _plain(item["label"])}


def _intensities(config: AugmentationConfig) -> list[Any]:
    """In the order in which a scanner spoils an image; what cannot happen is left out."""
    steps = [
        (config.noise_probability, RandNoised(config.noise_probability)),
        (config.blur_probability, RandBlurred(config.blur_probability)),
        (config.brightness_probability, RandBrightened(config.brightness_probability)),
        (config.contrast_probability, RandContrasted(config.contrast_probability)),
        (config.low_resolution_probability, RandCoarsened(config.low_resolution_probability)),
        (config.gamma_probability, RandGamma(config.gamma_probability)),
    ]
    return [step for probability, step in steps if probability > 0]


def _drawing(transform: RandomizableTransform, state: np.random.RandomState) -> Any:
    """A copy that draws from `state`: MONAI's transforms keep what they drew."""
    return copy.copy(transform).set_random_state(state=state)


def _coarse(size: int, zoom: float, device: torch.device) -> list[torch.Tensor]:
    """What a coarse axis keeps; each voxel's lower and upper coarse neighbour, upper's share."""
    count = max(round(size * zoom), 1)
    kept = ((np.arange(count) + 0.5) * (size / count)).astype(np.int32)
    at = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    lower = at.astype(np.int32)
    arrays = (kept, lower, np.minimum(lower + 1, count - 1), (at - lower).astype(np.float32))
    return [placement.sent(array, device) for array in arrays]


def _between(
    image: torch.Tensor, axis: int, lower: torch.Tensor, upper: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Along `axis` of (C, X, Y, Z), what lies at `share` of the way from `lower` to `upper`."""
    shape = [-1 if number == axis else 1 for number in range(4)]
    low = image.index_select(axis, lower)
    return image.index_select(axis, upper).sub_(low).mul_(share.view(shape)).add_(low)


def _state(seed: int | Sequence[int]) -> np.random.RandomState:
    # PCG64 behind MONAI's RandomState: takes several words, and starts ten times as fast.
    return np.random.RandomState(np.random.PCG64(seed))


def _plain(tensor: Any) -> torch.Tensor:
    """The tensor without MONAI's metadata."""
    plain: torch.Tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain


def _centre(tensor: torch.Tensor, size: Size) -> torch.Tensor:
    """The middle of (C, I, J, K) at `size`, or as much as there is."""
    for axis, length in enumerate(size, start=1):
        spare = max(tensor.shape[axis] - length, 0)
        tensor = tensor.narrow(axis, spare // 2, tensor.shape[axis] - spare)
    return tensor
