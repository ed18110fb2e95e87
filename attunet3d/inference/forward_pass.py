"""A network's forward pass as a plain function from image to logits; passes averaged and mirrored.

`make_forward_pass` is the seam: whatever makes a network faster without changing what it computes
(folded normalisation, another runtime) belongs behind it and nowhere else.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.inference import openvino
from attunet3d.inference.agreement import Agreement
from attunet3d.models import AttentionUNet3D, Network, fast_network

ForwardPass = Callable[[Tensor], Tensor]


def make_forward_pass(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    attention: bool = False,
    runtime: str = "torch",
) -> ForwardPass:
    """Turn `network` into a function on `device` that computes in `dtype` and returns float32.

    Args:
        network: In eval mode; not modified, except that instances of other classes are moved to
            `device`.
        device: Where it runs.
        dtype: float32 or bfloat16.
        attention: Append the gates' coefficients, upsampled to the input, to the logits.
        runtime: What runs it, as `InferenceConfig.engine`.

    Returns:
        (B, C, x, y, z) → (B, K, x, y, z), or (B, K + maps, x, y, z).

    Raises:
        DeviceError: The runtime is not installed, or does not run on this device.
    """
    if type(network) is not AttentionUNet3D:  # somebody's own: nothing is known of its insides
        return _by_autocast(network.to(device), dtype, attention)
    stored = dtype if runtime == "torch" else torch.float32
    split = mixes_before_upsampling(runtime, device, dtype)
    graph = fast_network.rewrite_for_inference(network, device, stored, split=split)
    call = _WithAttention(graph) if attention else graph
    if runtime == "openvino":
        return openvino.compiled(call, device, dtype)

    def forward(x: Tensor) -> Tensor:
        """The network's output, as float32."""
        with torch.inference_mode(), _without_tf32():
            outputs: Tensor = call(x)
        return outputs.float()

    return forward


def mixes_before_upsampling(runtime: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the decoder mixes channels before it upsamples (`split_convolution`).

    Measured in float32 on CPUs: 1.2 times as fast, in half the memory. bfloat16 would round once
    more; other runtimes plan by themselves.
    """
    return runtime == "torch" and device.type == "cpu" and dtype == torch.float32


def _without_tf32() -> AbstractContextManager[None]:
    """Convolve float32 as float32: cuDNN's default is TF32, with the mantissa of float16.

    The flag belongs to the process: two threads that compute on CUDA at once may see each other's.
    """
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=True,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


def _by_autocast(network: nn.Module, dtype: torch.dtype, attention: bool) -> ForwardPass:
    call = _WithAttention(network) if attention else network

    def forward(x: Tensor) -> Tensor:
        mixed = torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), mixed, _without_tf32():
            outputs: Tensor = call(x)
        return outputs.float()

    return forward


def average(passes: Sequence[ForwardPass], agreement: Agreement | None = None) -> ForwardPass:
    """The mean of what several passes return, of which `agreement` is told.

    Example:
        >>> float(average([lambda x: x, lambda x: 3 * x])(torch.ones(1)))
        2.0
    """
    if len(passes) == 1:
        return passes[0]

    def forward(x: Tensor) -> Tensor:
        """The mean output."""
        total = passes[0](x)
        chosen = [] if agreement is None else [agreement.winners(total)]
        for part in passes[1:]:
            output = part(x)
            total = total + output
            if agreement is not None:
                chosen.append(agreement.winners(output))
        if agreement is not None:
            agreement.add(chosen)
        return total / len(passes)

    return forward


def mirrored(
    forward: ForwardPass, axes: Sequence[int], agreement: Agreement | None = None
) -> ForwardPass:
    """The mean over all mirrorings of the input along `axes` (0 to 2), each mirrored back.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
        >>> torch.equal(mirrored(lambda x: x, (0, 2))(x), x)
        True
    """
    dims = sorted({axis + 2 for axis in axes})
    subsets = [part for count in range(len(dims) + 1) for part in combinations(dims, count)]

    def through(part: tuple[int, ...]) -> ForwardPass:
        return lambda x: forward(x.flip(part)).flip(part)

    return average([forward, *(through(part) for part in subsets[1:])], agreement)


def independent(forward: ForwardPass) -> ForwardPass:
    """`forward` for a network that was trained with a sigmoid per class, not one softmax.

    There p_c = σ(l_c) by itself, and a class is present where l_c > 0. The background's logit
    becomes 0, so that the margin l_c − l_0, which decides, is l_c.

    Example:
        >>> independent(lambda x: x)(torch.tensor([[3.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """

    def zeroed(x: Tensor) -> Tensor:
        outputs = forward(x).clone()
        outputs[:, 0] = 0
        return outputs

    return zeroed


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
