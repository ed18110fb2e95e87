"""The ceiling of a network: the convolutions that it runs, timed bare, one after the other."""

import ast
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.timing import LAYOUTS, Result, Setting, rounded, timed

aten = torch.ops.aten


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that run, forward and backward, by all that their time hangs on.

    Args:
        device: Theirs.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten.convolution.default:
            x, weight, bias, *rest = args
            key = (
                "forward",
                tuple(x.shape),
                tuple(weight.shape),
                len(bias) if bias is not None else 0,
                str(rest),
            )
            self.calls[key, x.dtype] += 1
        elif func is aten.convolution_backward.default:
            gradient, x, weight, *rest = args
            shapes = tuple(gradient.shape), tuple(x.shape), tuple(weight.shape)
            self.calls[("backward", *shapes, str(rest)), x.dtype] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self, setting: Setting) -> Result:
        """Time of the bare convolutions, each in the memory layout that suits it best, in ms."""
        total = {"forward": 0.0, "backward": 0.0}
        flops = 0.0
        for (key, dtype), count in self.calls.items():
            best = min(
                statistics.median(timed(self._call(key, dtype, layout), setting, batch=5, warm=2))
                for layout in LAYOUTS.values()
            )
            total[key[0]] += count * best
            flops += count * _flops(key)
        both = sum(total.values())
        return {
            "forward_ms": rounded(1e3 * total["forward"]),
            "backward_ms": rounded(1e3 * total["backward"]),
            "ms": rounded(1e3 * both),
            "gflop": rounded(flops / 1e9),
            "tflop_a_second": rounded(flops / both / 1e12),
            "convolutions": sum(self.calls.values()),
        }

    def _call(
        self, key: tuple[Any, ...], dtype: torch.dtype, layout: torch.memory_format
    ) -> Callable[[], Any]:
        def tensor(shape: tuple[int, ...]) -> torch.Tensor:
            values = torch.randn(shape, device=self.device, dtype=dtype)
            return values.to(memory_format=layout)

        kind, *shapes = key
        if kind == "forward":
            x, weight = tensor(shapes[0]), tensor(shapes[1])
            bias = torch.zeros(shapes[2], device=self.device, dtype=dtype) if shapes[2] else None
            rest = _arguments(shapes[3])
            return lambda: aten.convolution.default(x, weight, bias, *rest)
        gradient, x, weight = (tensor(shape) for shape in shapes[:3])
        rest = _arguments(shapes[3])
        return lambda: aten.convolution_backward.default(gradient, x, weight, *rest)


def _arguments(text: str) -> list[Any]:
    """Strides, paddings and so on from the text under which a call is counted."""
    values: list[Any] = ast.literal_eval(text)
    return values


def _flops(key: tuple[Any, ...]) -> float:
    """Twice the multiplications; backward: once for each of the two gradients that are wanted."""
    kind, *shapes = key
    weight = shapes[1] if kind == "forward" else shapes[2]
    rest = _arguments(shapes[3])
    transposed = rest[3] if kind == "forward" else rest[4]
    x = shapes[0] if kind == "forward" else shapes[1]
    if kind == "backward":
        output = shapes[0]
        wanted = sum(rest[-1][:2])
    else:
        output, wanted = _output_shape(x, weight, rest), 1
    places = torch.Size(x[2:] if transposed else output[2:]).numel()
    return float(2 * wanted * x[0] * places * torch.Size(weight).numel())


def _output_shape(x: Any, weight: Any, rest: list[Any]) -> tuple[int, ...]:
    meta = (torch.empty(shape, device="meta") for shape in (x, weight))
    return tuple(aten.convolution.default(*meta, None, *rest).shape)
