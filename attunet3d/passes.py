"""Networks over one image of their grid: in one pass or by windows, in the precision that holds."""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attunet3d import runtime
from attunet3d.config import Config
from attunet3d.forward import Forward, average, mirrored, prepare, splits
from attunet3d.model_settings import NetworkConfig
from attunet3d.network import AttentionUNet3D
from attunet3d.sliding_window import Slab, Stitching, sliding_window, whole_volume
from attunet3d.typed_values import Size

RELATIVE_ERROR = 0.02  # of bfloat16 logits against the largest float32 logit
AGREEMENT = 0.999  # least share of voxels with the same class
MEMORY_SHARE = 0.8  # of what is free, for a pass over the whole volume
RECHECK = 1.25  # a pass this many times larger than any checked one is checked anew


@dataclass
class Account:
    """How an image was in fact done: for the record."""

    mode: str = "window"
    precision: str = "float32"
    fallbacks: list[str] = field(default_factory=list)


def parting(fast: Tensor, exact: Tensor) -> str | None:
    """How `fast` logits (B, K, …) part from `exact` ones beyond what rounding does; None: not.

    Example:
        >>> exact = torch.tensor([[[1.0, -4.0], [-1.0, 4.0]]])
        >>> parting(exact * 1.001, exact), parting(-exact, exact)
        (None, 'relative error 2, same class in 0.0 % of voxels')
    """
    error = float((fast - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
    same = float((fast.argmax(1) == exact.argmax(1)).float().mean())
    if error <= RELATIVE_ERROR and same >= AGREEMENT:
        return None
    return f"relative error {error:.2g}, same class in {100 * same:.1f} % of voxels"


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
        self._checked_values = 0  # of the largest pass in which bfloat16 was held to float32
        self._parted: str | None = None  # how far it was off when it was
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
        dtype = self._dtype(image, whole, account)
        account.precision = str(dtype).removeprefix("torch.")
        account.mode = "whole" if whole else "window"
        forward = self.forward(dtype, attention)
        if whole:
            try:
                yield from whole_volume(
                    image, forward, divisor=self.divisor, all_channels=all_channels
                )
                return
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                account.fallbacks.append("CUDA memory ran out in one pass over the whole: windows")
                account.mode = "window"
        yield from sliding_window(
            image,
            forward,
            window=self.window,
            overlap=inference.overlap,
            window_batch=inference.window_batch,
            stitching=Stitching(all_channels=all_channels, note=account.fallbacks.append),
        )

    def _whole_fits(self, image: Tensor, account: Account) -> bool:
        half = self._halves()
        split = not half and splits(self.config.inference.engine, self.device, torch.float32)
        dtype = torch.bfloat16 if half and self.device.type == "cuda" else torch.float32
        need = memory_bytes(self.config.network, self.classes, image.numel(), dtype, split=split)
        free = runtime.available_memory_bytes(self.device)
        if need > MEMORY_SHARE * free:
            account.fallbacks.append(
                f"one pass over the whole needs about {need / 1e9:.1f} GB and"
                f" {free / 1e9:.1f} GB are free: windows"
            )
        return need <= MEMORY_SHARE * free

    def _halves(self) -> bool:
        """Whether bfloat16 is wanted, and the device computes in it."""
        wanted = self.config.inference.precision
        tried = wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda")
        return tried and runtime.computes_in_bfloat16(self.device)

    def _dtype(self, image: Tensor, whole: bool, account: Account) -> torch.dtype:
        """The precision to compute in; on CUDA `auto` holds bfloat16 to float32 first."""
        wanted = self.config.inference.precision
        if not self._halves():
            if wanted == "bfloat16":
                account.fallbacks.append("this device has no instructions for bfloat16: float32")
            return torch.float32
        if wanted == "bfloat16":
            return torch.bfloat16
        sample = image if whole else _middle(image, self.window)
        with self._lock:
            if self._parted is None and sample.numel() > RECHECK * self._checked_values:
                self._self_test(sample[None], account)
            if self._parted:
                account.fallbacks.append(f"bfloat16 self-test failed ({self._parted}): float32")
            return torch.float32 if self._parted else torch.bfloat16

    def _self_test(self, sample: Tensor, account: Account) -> None:
        try:
            fast, exact = self.forward(torch.bfloat16)(sample), self.forward(torch.float32)(sample)
            self._parted = parting(fast, exact)
            self._checked_values = sample.numel()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            smaller = _middle(sample[0], self.window)[None]
            if smaller.numel() < sample.numel():
                account.fallbacks.append("CUDA memory ran out in the bfloat16 self-test: a window")
                self._self_test(smaller, account)
            else:  # then float32 is no choice here
                account.fallbacks.append("CUDA memory ran out in the bfloat16 self-test: left out")
            self._checked_values = sample.numel()  # the largest that memory lets be checked


def _middle(image: Tensor, window: Size) -> Tensor:
    """The window in the middle of `image` (C, X, Y, Z), which is cut where it sticks out."""
    parts = []
    for size, length in zip(image.shape[1:], window, strict=True):
        start = max(0, (size - length) // 2)
        parts.append(slice(start, min(start + length, size)))
    return image[:, parts[0], parts[1], parts[2]]
