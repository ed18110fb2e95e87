"""Networks as plain functions from patch to logits: made ready, averaged, mirrored.

`prepare` is the seam: whatever makes a network faster without changing what it computes (folded
normalisation, another engine) belongs behind it and nowhere else.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.inference import openvino
from attunet3d.models import AttentionUNet3D, fast_network

Forward = Callable[[Tensor], Tensor]

MIRRORINGS = [axes for count in range(4) for axes in combinations((2, 3, 4), count)]


def prepare(
    network: AttentionUNet3D,
    device: torch.device,
    dtype: torch.dtype,
    attention: bool = False,
    engine: str = "torch",
) -> Forward:
    """`network` as a function on `device` that computes in `dtype` and returns float32.

    Args:
        network: In eval mode; only read. One of another class is itself moved to `device`.
        device: Where it runs.
        dtype: float32 or bfloat16.
        attention: Append the gates' coefficients, upsampled to the input, to the logits.
        engine: What runs it, as `InferenceConfig.engine`.

    Returns:
        (B, C, x, y, z) → (B, K, x, y, z), or (B, K + maps, x, y, z).

    Raises:
        DeviceError: The engine is not installed, or does not run on this device.
    """
    if type(network) is not AttentionUNet3D:  # somebody's own: nothing is known of its insides
        return _as_it_is(network.to(device), dtype, attention)
    stored = dtype if engine == "torch" else torch.float32
    split = splits(engine, device, dtype)
    graph = fast_network.rewrite_for_inference(network, device, stored, split=split)
    call = _WithAttention(graph) if attention else graph
    if engine == "openvino":
        return openvino.compiled(call, device, dtype)

    def forward(x: Tensor) -> Tensor:
        with torch.inference_mode(), _whole_float32():
            outputs: Tensor = call(x)
        return outputs.float()

    return forward


def splits(engine: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the decoder mixes channels before it upsamples (`split_convolution`).

    Measured in float32 on CPUs: 1.2 times as fast, in half the memory. bfloat16 would round once
    more; other engines plan by themselves.
    """
    return engine == "torch" and device.type == "cpu" and dtype == torch.float32


def _whole_float32() -> AbstractContextManager[None]:
    """Convolve float32 as float32: cuDNN's default is TF32, with the mantissa of float16.

    The flag is the process's: two threads that compute on CUDA at once may see each other's.
    """
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=True,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


def _as_it_is(network: nn.Module, dtype: torch.dtype, attention: bool) -> Forward:
    call = _WithAttention(network) if attention else network

    def forward(x: Tensor) -> Tensor:
        mixed = torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), mixed, _whole_float32():
            outputs: Tensor = call(x)
        return outputs.float()

    return forward


def average(parts: Sequence[Forward]) -> Forward:
    """The mean of what several functions return; of one function, that function.

    Example:
        >>> float(average([lambda x: x, lambda x: 3 * x])(torch.ones(1)))
        2.0
    """
    if len(parts) == 1:
        return parts[0]

    def forward(x: Tensor) -> Tensor:
        total = parts[0](x)
        for part in parts[1:]:
            total = total + part(x)
        return total / len(parts)

    return forward


def mirrored(part: Forward) -> Forward:
    """The mean over the eight mirrorings of the input, each mirrored back.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
        >>> torch.equal(mirrored(lambda x: x)(x), x)
        True
    """

    def through(axes: tuple[int, ...]) -> Forward:
        return lambda x: part(x.flip(axes)).flip(axes)

    return average([part, *(through(axes) for axes in MIRRORINGS[1:])])


class _WithAttention(nn.Module):
    """A network that appends its gates' coefficients, upsampled to the input, to the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits, maps = self.network.forward_with_attention(x)  # type: ignore[operator]
        full = [
            F.interpolate(part.float(), x.shape[2:], mode="trilinear", align_corners=False)
            for part in maps  # (B, gates, d, h, w)
        ]
        return torch.cat([logits.float(), *full], dim=1)
