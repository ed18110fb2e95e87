"""Networks over one image of their grid: in one pass or by windows."""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attunet3d.core import Config, NetworkConfig, Size, available_bytes, machine
from attunet3d.inference.engine import Forward, average, mirrored, prepare, splits
from attunet3d.inference.precision import Precision
from attunet3d.inference.sliding_window import Slab, Stitching, sliding_window_slabs, whole_volume
from attunet3d.inference.windows import pad
from attunet3d.models import AttentionUNet3D

MEMORY_SHARE = 0.8  # of what is free, for a pass over the whole volume
CUDNN_VALUES = 2**31  # of a tensor; with more cuDNN 9.8 to 9.14 computed wrongly, or not at all


@dataclass
class Account:
    """How an image was in fact done: for the record."""

    mode: str = "window"
    precision: str = "float32"
    fallbacks: list[str] = field(default_factory=list)


def memory_bytes(
    config: NetworkConfig, classes: int, voxels: int, dtype: torch.dtype, *, split: bool = False
) -> int:
    """Estimated peak memory of one pass over `voxels`, weights left out.

    The peak lies in the last decoder block or, with many classes, behind it. There F and G channels
    of the two finest levels are side by side and once more concatenated, then convolved and
    normalised; `split`, they never are. Fused heads hold four times the logits, in float32, and
    a mean of several passes once more.
    """
    first, second = config.channels[:2]
    coarser = config.strides is None or config.strides[0][0] > 1
    if split and coarser and config.norm != "instance":
        features = 4 * first + second + (3 * first if config.norm == "group" else 0)
    else:
        features = 5 * first + 3 * second
    size = 2 if dtype == torch.bfloat16 else 4
    logits = classes * (5 if config.deep_supervision == "fused" else 2)
    return voxels * max(size * features, size * 4 * first + 4 * logits)


class Passes:
    """Networks whose logits are averaged, over images of their grid; any thread may call.

    Args:
        networks: The members, in eval mode, of one number of classes.
        config: `inference` and `network` of the members; the window is set.
        classes: Number of classes, background included.
        device: Where the networks run.
    """

    def __init__(
        self,
        networks: Sequence[AttentionUNet3D],
        config: Config,
        classes: int,
        device: torch.device,
    ) -> None:
        assert config.inference.window is not None
        self.window: Size = config.inference.window
        self.networks = list(networks)
        self.config = config
        self.classes = classes
        self.device = device
        a, b, c = zip(*(network.divisor for network in networks), strict=True)
        self.divisor = math.lcm(*a), math.lcm(*b), math.lcm(*c)
        self.precision = Precision(self.forward, config.inference.precision, device)
        self._prepared: dict[tuple[torch.dtype, bool], Forward] = {}
        self._lock = threading.RLock()

    def forward(self, dtype: torch.dtype, attention: bool = False) -> Forward:
        """All members and mirrorings as one function (B, 1, x, y, z) → (B, K, x, y, z)."""
        with self._lock:
            if (dtype, attention) not in self._prepared:
                engine = self.config.inference.engine
                parts = [
                    prepare(part, self.device, dtype, attention, engine) for part in self.networks
                ]
                mean = average(parts)
                forward = mirrored(mean) if self.config.inference.mirror else mean
                self._prepared[dtype, attention] = forward
            return self._prepared[dtype, attention]

    def slabs(
        self,
        image: Tensor,
        account: Account,
        *,
        all_channels: bool = False,
        attention: bool = False,
    ) -> Iterator[Slab]:
        """Logits of `image`, in one pass or by windows as settings and memory have it.

        Args:
            image: (1, X, Y, Z) on the device.
            account: Filled with what was done.
            all_channels: Both logits of two classes instead of their difference.
            attention: The gates' coefficients as channels after the logits.

        Yields:
            Every plane once, in order.
        """
        inference = self.config.inference
        whole = inference.mode == "whole" and self._whole_fits(image, account)
        sample = self._largest_input(image, whole)
        dtype = self.precision.choose(sample, account.fallbacks.append)
        account.precision = str(dtype).removeprefix("torch.")
        account.mode = "whole" if whole else "window"
        forward = self.forward(dtype, attention)
        if whole:
            try:
                yield from whole_volume(
                    image, forward, divisor=self.divisor, all_channels=all_channels
                )
                return
            except RuntimeError as error:
                if not machine.ran_out_of_memory(error):
                    raise
            torch.cuda.empty_cache()
            account.fallbacks.append("CUDA memory ran out in one pass over the whole: windows")
            account.mode = "window"
        yield from sliding_window_slabs(
            image,
            forward,
            window=self.window,
            overlap=inference.overlap,
            window_batch=inference.window_batch,
            stitching=Stitching(all_channels=all_channels, note=account.fallbacks.append),
        )

    def _whole_fits(self, image: Tensor, account: Account) -> bool:
        widest = image.numel() * sum(self.config.network.channels[:2])  # values, concatenated
        if self.device.type == "cuda" and widest >= CUDNN_VALUES:
            account.fallbacks.append("the whole has too many values for cuDNN in one pass: windows")
            return False
        half = self.precision.halves()
        split = not half and splits(self.config.inference.engine, self.device, torch.float32)
        dtype = torch.bfloat16 if half and self.device.type == "cuda" else torch.float32
        need = memory_bytes(self.config.network, self.classes, image.numel(), dtype, split=split)
        free = available_bytes(self.device)
        if need > MEMORY_SHARE * free:
            account.fallbacks.append(
                f"one pass over the whole needs about {need / 1e9:.1f} GB and"
                f" {free / 1e9:.1f} GB are free: windows"
            )
        return need <= MEMORY_SHARE * free

    def _largest_input(self, image: Tensor, whole: bool) -> Tensor:
        """(B, C, x, y, z) that goes through the networks: all of `image`, or a batch of windows."""
        if whole:
            return image[None]
        parts = []
        for size, length in zip(image.shape[1:], self.window, strict=True):
            start = max(0, (size - length) // 2)
            parts.append(slice(start, min(start + length, size)))
        middle, _ = pad(image[:, parts[0], parts[1], parts[2]], self.window)
        return middle.expand(self.config.inference.window_batch, *middle.shape)
