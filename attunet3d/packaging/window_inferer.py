"""Sliding windows as `infer` places and weighs them, for MONAI's engines and bundles."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from attunet3d.core import Size
from attunet3d.inference import Stitching, independent, mirrored, sliding_window_slabs


class WindowInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped here
    """The sliding windows of this package as an `Inferer` of MONAI's.

    MONAI's own `SlidingWindowInferer` shifts the last window of an axis back to the volume's end;
    here windows are spread evenly, so that label maps are those of `attunet3d infer` in window
    mode. The logits of the whole volume are in memory at once.

    Args:
        roi_size: x, y, z voxels of a window.
        overlap: Smallest share of a window that its neighbour covers, in [0, 1).
        sw_batch_size: Windows per call of the network.
        mirror_axes: Axes (0 to 2) along which windows are mirrored, and the logits averaged.
        sigmoid: The network was trained with a sigmoid per class, not with one softmax.

    Example:
        >>> inferer = WindowInferer(roi_size=(8, 8, 8))
        >>> image = torch.rand(1, 1, 12, 8, 9)
        >>> torch.allclose(inferer(image, lambda x: torch.cat([x, -x], 1))[:, :1], image)
        True
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        mirror_axes: Sequence[int] = (),
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        x, y, z = roi_size
        self.roi_size: Size = (x, y, z)
        self.overlap, self.sw_batch_size = overlap, sw_batch_size
        self.mirror_axes, self.sigmoid = tuple(mirror_axes), sigmoid

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute the logits (B, K, X, Y, Z) of `inputs` (B, C, X, Y, Z).

        Args:
            inputs: On the device of the network.
            network: In eval mode; (B, C, x, y, z) → (B, K, x, y, z).
            args: Passed to the network.
            kwargs: Passed to the network.
        """

        def compute(x: Tensor) -> Tensor:
            logits: Tensor = network(x, *args, **kwargs)
            return logits

        forward = mirrored(compute, self.mirror_axes) if self.mirror_axes else compute
        forward = independent(forward) if self.sigmoid else forward
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack([self._logits(image, forward) for image in plain])

    def _logits(self, image: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        slabs = sliding_window_slabs(
            image,
            forward,
            window=self.roi_size,
            overlap=self.overlap,
            window_batch=self.sw_batch_size,
            stitching=Stitching(all_channels=True),
        )
        return torch.cat([slab.logits for slab in slabs], -1)
