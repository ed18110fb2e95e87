"""How the GPU benchmark measures: repeated work, bare convolutions, kernels, share of busy time."""

import ast
import contextlib
import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attunet3d import runtime

Result = dict[str, Any]
Step = tuple[str, Callable[[], Any]]  # a name in the section's results, and what gives them
Section = Iterator[Step]

aten = torch.ops.aten
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
LONGEST_MESSAGE = 600


@dataclass(frozen=True)
class Setting:
    """Where and how large to measure.

    Args:
        device: The GPU, or the CPU in the small run.
        small: Seconds instead of minutes: tiny networks and scans, nothing compiled.
        work: Folder of phantoms, the trained model, and results by section.
    """

    device: torch.device
    small: bool
    work: Path

    @property
    def repeats(self) -> int:
        """Of each measurement."""
        return 1 if self.small else 5


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    work: Callable[[], Any], setting: Setting, *, batch: int = 1, warm: int = 3
) -> list[float]:
    """Seconds of one `work`, a number a repeat; each repeat queues `batch` of them, then waits."""
    for _ in range(1 if setting.small else warm):
        work()
    seconds = []
    for _ in range(setting.repeats):
        synchronise(setting.device)
        began = time.perf_counter()
        for _ in range(batch):
            work()
        synchronise(setting.device)
        seconds.append((time.perf_counter() - began) / batch)
    return seconds


def milliseconds(seconds: list[float]) -> Result:
    """Median, least and most, in ms."""
    values = statistics.median(seconds), min(seconds), max(seconds)
    return dict(zip(("ms", "least_ms", "most_ms"), (rounded(1e3 * v) for v in values), strict=True))


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Result]:
    """A record that has the GPU's peak memory in GB (10^9 bytes) at the end; empty on the CPU."""
    record: Result = {}
    if device.type != "cuda":
        yield record
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield record
    record["peak_allocated_gb"] = rounded(torch.cuda.max_memory_allocated(device) / 1e9)
    record["peak_reserved_gb"] = rounded(torch.cuda.max_memory_reserved(device) / 1e9)


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` returns, or its error as a record: one failure ends nothing else."""
    try:
        return work()
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": words[:LONGEST_MESSAGE]}


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that run, forward and backward, by all that their time hangs on.

    Args:
        device: Theirs.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
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
    return 2.0 * wanted * x[0] * places * torch.Size(weight).numel()


def _output_shape(x: Any, weight: Any, rest: list[Any]) -> tuple[int, ...]:
    meta = (torch.empty(shape, device="meta") for shape in (x, weight))
    return tuple(aten.convolution.default(*meta, None, *rest).shape)


def kernels(work: Callable[[], Any], device: torch.device, count: int = 14) -> list[Result]:
    """The operations of one `work` that take most time, with their share of all."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    work()
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = [
        (row.key, float(getattr(row, name)), row.count)
        for row in profiler.key_averages()
        if row.device_type == torch.autograd.DeviceType.CPU  # kernels count with what calls them
    ]
    total = sum(time_us for _, time_us, _ in found) or 1.0
    found.sort(key=lambda entry: -entry[1])
    return [
        {
            "operation": key[:80],
            "ms": rounded(time_us / 1e3),
            "share": rounded(time_us / total),
            "calls": calls,
        }
        for key, time_us, calls in found[:count]
    ]


class BusyShare:
    """The share of time in which the GPU ran a kernel, by nvidia-smi; None where there is none."""

    def __init__(self, setting: Setting) -> None:
        self.index = setting.device.index or 0 if setting.device.type == "cuda" else None
        self.share: float | None = None
        self._sampler: subprocess.Popen[str] | None = None

    def __enter__(self) -> "BusyShare":
        if self.index is not None:
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            with contextlib.suppress(OSError):
                self._sampler = subprocess.Popen(
                    ["nvidia-smi", f"--id={self.index}", *query, "--loop-ms=100"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sampler is None:
            return
        self._sampler.terminate()
        lines, _ = self._sampler.communicate()
        values = [int(line) for line in lines.split() if line.isdigit()]
        self.share = rounded(statistics.fmean(values) / 100) if values else None


def machine(setting: Setting) -> Section:
    """The device, its driver, and what else the numbers hang on."""
    yield "device", lambda: device(setting)
    yield "versions", runtime.versions
    yield "cores", os.cpu_count


def device(setting: Setting) -> Result:
    """Name, memory, driver and libraries of the GPU."""
    if setting.device.type != "cuda":
        return {"name": "CPU"}
    facts = torch.cuda.get_device_properties(setting.device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = attempt(lambda: subprocess.run(query, capture_output=True, text=True).stdout.split())
    return {
        "name": facts.name,
        "memory_gb": rounded(facts.total_memory / 1e9),
        "multiprocessors": facts.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
