"""The section of the GPU benchmark that asks what trilinear upsampling costs, and how exact it is.

CUDA's backward of `F.interpolate` adds eight values a voxel by atomic operations, in bfloat16 where
the features are. Doubling without aligned corners is also three sums of slices, whose gradient is
again sums of slices: out[2i] = 3/4 x[i] + 1/4 x[i - 1], out[2i + 1] = 3/4 x[i] + 1/4 x[i + 1],
borders repeated.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.timing import LAYOUTS, Result, Section, Setting, milliseconds, rounded, timed

SHAPE, SMALL_SHAPE = (2, 32, 80, 80, 48), (2, 4, 4, 4, 4)  # into the last block of the decoder


def interpolated(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def doubled(x: Tensor) -> Tensor:
    """The same of (B, C, X, Y, Z), axis by axis, the slowest last."""
    for axis in (4, 3, 2):
        size = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
        pair = torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)
        x = torch.stack(pair, axis + 1).flatten(axis, axis + 1)
    return x


def upsampling(setting: Setting) -> Section:
    """Both ways in both memory layouts, in bfloat16; `doubled` also compiled."""
    ways = {"F.interpolate": interpolated, "slices": doubled}
    if not setting.small:
        ways["slices, compiled"] = torch.compile(doubled)
    for layout in LAYOUTS:
        for name, way in ways.items():
            yield f"{name}, {layout}", lambda way=way, layout=layout: measure(setting, way, layout)


def measure(setting: Setting, way: Callable[[Tensor], Tensor], layout: str) -> Result:
    """Forward and backward in ms, and the gradient's error against float64 (largest value: 1)."""
    torch.manual_seed(0)
    shape = SMALL_SHAPE if setting.small else SHAPE
    x = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    y = way(x)
    gradient = torch.randn_like(y)

    def step() -> None:
        x.grad = None
        way(x).backward(gradient)

    with torch.no_grad():
        forward = milliseconds(timed(lambda: way(x), setting, batch=5))["ms"]
    both = milliseconds(timed(step, setting, batch=5))["ms"]
    part = x[:1, :2].detach().double().requires_grad_()
    interpolated(part).backward(gradient[:1, :2].double())
    assert x.grad is not None
    assert part.grad is not None
    error = (x.grad[:1, :2] - part.grad).abs().max() / part.grad.abs().max()
    return {"forward_ms": forward, "both_ms": both, "gradient_error": rounded(float(error))}
