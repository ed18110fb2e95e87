"""Networks over one image of their grid: in one pass, or by overlapping windows."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attunet3d.core import DeviceError, InferenceConfig, NetworkConfig, Regions, Size, machine
from attunet3d.inference import memory
from attunet3d.inference.agreement import Agreement
from attunet3d.inference.forward_pass import (
    ForwardPass,
    average,
    independent,
    make_forward_pass,
    mirrored,
    mixes_before_upsampling,
)
from attunet3d.inference.precision import choose_precision, uses_bfloat16
from attunet3d.inference.record import Execution
from attunet3d.inference.slice_passes import SlicePasses
from attunet3d.inference.sliding_window import (
    Slab,
    Stitching,
    pad,
    sliding_window_slabs,
    whole_volume,
    window_starts,
)
from attunet3d.models import AttentionUNet3D, GridAttentionGate, Network, finest_channels


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How the networks would run over an image."""

    mode: Literal["whole", "window"]
    precision: str
    windows: int
    """Number of windows, or 1."""
    bytes: int
    """Peak memory of the networks and what is stitched."""
    seconds: float
    """Estimated from the time of one window."""
    notes: tuple[str, ...] = ()
    """Why it is otherwise than the settings ask for."""


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble, in eval mode."""

    network: Network
    config: NetworkConfig
    mirror_axes: tuple[int, ...] = ()
    """Axes (0 to 2) along which it is mirrored and averaged."""


class Inferer:
    """Networks whose logits are averaged, over images of their grid; any thread may call it.

    Args:
        members: The networks.
        config: The window is set.
        classes: Background included.
        device: Where the networks run.
        budget: Bytes of memory of the class of machines; decides whether one pass is allowed.
        activation: "sigmoid" for networks that were trained with one per class.
        regions: The classes that make up each, where they overlap; see `class_regions`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        config: InferenceConfig,
        classes: int,
        device: torch.device,
        budget: int,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        regions: Regions | None = None,
    ) -> None:
        assert config.window is not None
        self.window: Size = config.window
        self.members, self.config, self.classes = list(members), config, classes
        self.device, self.budget, self.activation = device, budget, activation
        self.regions: Regions = regions or {}
        a, b, c = zip(*(member.network.divisor for member in members), strict=True)
        self.divisor = math.lcm(*a), math.lcm(*b), math.lcm(*c)
        self.slices = SlicePasses.of([member.network for member in members], classes)
        self._passes: dict[tuple[torch.dtype, bool], list[ForwardPass]] = {}  # one per member
        self._lock = threading.RLock()

    def forward_pass(
        self, dtype: torch.dtype, attention: bool = False, agreement: Agreement | None = None
    ) -> ForwardPass:
        """All members and mirrorings as one function (B, 1, x, y, z) → (B, K, x, y, z).

        Args:
            dtype: In which the networks compute.
            attention: Append the gates' coefficients.
            agreement: Told what the members say or, of a single one, its mirrorings.
        """
        with self._lock:
            if (dtype, attention) not in self._passes:
                parts = [self._member_pass(part, dtype, attention) for part in self.members]
                self._passes[dtype, attention] = parts
            passes = self._passes[dtype, attention]
        axes = [member.mirror_axes for member in self.members]
        if len(passes) == 1:
            return mirrored(passes[0], axes[0], agreement)
        return average([mirrored(*pair) for pair in zip(passes, axes, strict=True)], agreement)

    def _member_pass(self, member: Member, dtype: torch.dtype, attention: bool) -> ForwardPass:
        runtime = self.config.engine
        forward = make_forward_pass(member.network, self.device, dtype, attention, runtime)
        return independent(forward) if self.activation == "sigmoid" else forward

    def slabs(
        self,
        image: Tensor,
        execution: Execution,
        *,
        all_logits: bool = False,
        attention: bool = False,
    ) -> Iterator[Slab]:
        """The logits of `image`, in one pass or by windows as the settings and the budget say.

        Args:
            image: (1, X, Y, Z) on the device.
            execution: Filled with what was done.
            all_logits: Both logits of two classes instead of their difference.
            attention: The gates' coefficients as well.

        Yields:
            Every plane once, in order.

        Raises:
            DeviceError: Less memory is free than this takes.
        """
        whole = self._in_one_pass(image, execution)
        self._require_memory(image, whole, attention)
        dtype = self._precision(image, execution)
        if len(self.members) > 1 or self.members[0].mirror_axes:
            execution.agreement = Agreement(self.classes, self.regions)
        forward = self.forward_pass(dtype, attention, execution.agreement)
        run = self._whole if whole else self._windows
        for slab in run(image, forward, all_logits or attention, execution):
            if attention:
                parts = slab.logits[: self.classes], slab.logits[self.classes :]
                yield Slab(slab.start, *parts)
            else:
                yield slab

    @torch.inference_mode()
    def forecast(self, image: Tensor, *, attention: bool = False) -> Forecast:
        """Tell how `slabs` would go over `image`; the networks run over one window."""
        execution = Execution()
        whole = self._in_one_pass(image, execution)
        dtype = self._precision(image, execution)
        forward, sample = self.forward_pass(dtype, attention), self._middle(image)
        forward(sample)  # whatever a first call does besides
        begin = time.perf_counter()
        float(forward(sample).sum())  # a GPU has finished only when the sum is known
        seconds = time.perf_counter() - begin
        axes = zip(image.shape[1:], self.window, strict=True)
        windows = math.prod(
            len(window_starts(size, part, self.config.overlap)) for size, part in axes
        )
        share = image.numel() / sample.numel() if whole else windows / len(sample)
        return Forecast(
            mode=execution.mode,
            precision=execution.precision,
            windows=1 if whole else windows,
            bytes=self._bytes(image, whole, attention),
            seconds=seconds * share,
            notes=tuple(execution.fallbacks),
        )

    def _precision(self, image: Tensor, execution: Execution) -> torch.dtype:
        """The precision to compute in; what was chosen is noted."""
        wanted, middle = self.config.precision, self._middle(image)
        note = execution.fallbacks.append
        dtype = choose_precision(wanted, self.device, self.forward_pass, middle, note)
        execution.precision = str(dtype).removeprefix("torch.")
        return dtype

    def _whole(
        self, image: Tensor, forward: ForwardPass, all_logits: bool, execution: Execution
    ) -> Iterator[Slab]:
        run = whole_volume if self.slices is None else self.slices.slabs
        try:
            yield from run(image, forward, divisor=self.divisor, all_channels=all_logits)
        except RuntimeError as error:
            if not machine.ran_out_of_memory(error):
                raise
            raise DeviceError(
                f"memory ran out in one pass over {tuple(image.shape[1:])} voxels",
                cure="end what else uses this device, or give a smaller --memory",
            ) from error

    def _windows(
        self, image: Tensor, forward: ForwardPass, all_logits: bool, execution: Execution
    ) -> Iterator[Slab]:
        return sliding_window_slabs(
            image,
            forward,
            window=self.window,
            overlap=self.config.overlap,
            window_batch=self.config.window_batch,
            stitching=Stitching(all_channels=all_logits, note=execution.fallbacks.append),
        )

    def _in_one_pass(self, image: Tensor, execution: Execution) -> bool:
        """Whether the image goes through in one pass: a function of settings, model and budget."""
        mode = self.config.mode
        execution.mode = "window"
        if mode == "window" or (mode == "auto" and not self._sees_alike):
            return False
        widest = max(sum(finest_channels(member.config)) for member in self.members)
        voxels = image.numel() if self.slices is None else self.slices.voxels(image)
        values, need = voxels * widest, self._whole_bytes(image)
        reason = memory.why_not_whole(need, values, self.device, self.budget)
        if reason and mode == "whole":
            execution.fallbacks.append(reason)
        execution.mode = "window" if reason else "whole"
        return reason is None

    @property
    def has_gates(self) -> bool:
        """Whether every member has attention gates."""
        return all(
            any(isinstance(part, GridAttentionGate) for part in member.network.modules())
            if type(member.network) is AttentionUNet3D
            else hasattr(member.network, "forward_with_attention")
            for member in self.members
        )

    @property
    def _sees_alike(self) -> bool:
        """Whether every member computes in a window what it computes in the whole.

        Instance and group normalisation take their statistics over the input, so such a network
        must see what it saw in training, a patch. A network of slices has BatchNorm or nothing.
        Nothing is known of a network of another class.
        """
        return self.slices is not None or all(
            type(member.network) is AttentionUNet3D and member.config.norm == "batch"
            for member in self.members
        )

    def pass_bytes(self, voxels: int) -> int:
        """Estimated peak memory of one pass over so many voxels; members run one after the other.

        A CPU may keep float32 copies, and bfloat16 gets no credit there.
        """
        bfloat16 = uses_bfloat16(self.config.precision, self.device)
        dtype = torch.bfloat16 if bfloat16 and self.device.type == "cuda" else torch.float32
        split = not bfloat16 and mixes_before_upsampling(self.config.engine, self.device, dtype)
        return max(
            memory.pass_bytes(member.config, self.classes, voxels, dtype, split=split)
            for member in self.members
        )

    def _whole_bytes(self, image: Tensor) -> int:
        """Estimated peak memory of one pass over the whole, or of one over some of its slices."""
        if self.slices is None:
            return self.pass_bytes(image.numel())
        return self.pass_bytes(self.slices.voxels(image)) + self.slices.slab_bytes(image)

    def _bytes(self, image: Tensor, whole: bool, attention: bool) -> int:
        """Estimated peak memory of the networks and what is stitched."""
        if whole:
            return self._whole_bytes(image)
        channels = self.classes + 8 * attention
        sums = 4 * channels * image[0, ..., 0].numel() * self.window[2]
        return sums + self.pass_bytes(self.config.window_batch * math.prod(self.window))

    def _require_memory(self, image: Tensor, whole: bool, attention: bool) -> None:
        if not whole and self.device.type != "cpu":
            return  # on CUDA the windows make room where they can
        cure = "end what else uses this device's memory, or give a smaller --memory"
        if not whole:
            cure = "leave --save-attention out" if attention else "give a smaller inference.window"
        memory.require_memory(self._bytes(image, whole, attention), self.device, cure)

    def _middle(self, image: Tensor) -> Tensor:
        """(B, C, x, y, z) as a batch of windows is, from the middle of the image."""
        parts = []
        for size, length in zip(image.shape[1:], self.window, strict=True):
            start = max(0, (size - length) // 2)
            parts.append(slice(start, min(start + length, size)))
        middle, _ = pad(image[:, parts[0], parts[1], parts[2]], self.window)
        return middle.expand(self.config.window_batch, *middle.shape)
