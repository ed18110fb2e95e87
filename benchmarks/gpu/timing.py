"""How the GPU benchmark measures: repeated work, memory, operations, share of busy time."""

import contextlib
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attunet3d.core import versions
from benchmarks import measure

Result = dict[str, Any]
Step = tuple[str, Callable[[], Any]]  # a name in the section's results, and what gives them
Section = Iterator[Step]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
LONGEST_MESSAGE = 600
CPU_EVENTS = torch._C._autograd.DeviceType.CPU  # kernels count with the operation that calls them


@dataclass(frozen=True)
class Setting:
    """Where and how large to measure.

    Args:
        device: The GPU, or the CPU in the small run.
        small: Seconds instead of minutes: tiny networks and scans.
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
    warm = 1 if setting.small else warm
    wait = partial(synchronise, setting.device)
    return measure.repeated(work, setting.repeats, warm=warm, batch=batch, wait=wait)


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
        if row.device_type == CPU_EVENTS
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

    def __exit__(self, *error: object) -> None:
        if self._sampler is None:
            return
        self._sampler.terminate()
        lines, _ = self._sampler.communicate()
        values = [int(line) for line in lines.split() if line.isdigit()]
        self.share = rounded(statistics.fmean(values) / 100) if values else None


def machine(setting: Setting) -> Section:
    """The device, its driver, and what else the numbers hang on."""
    yield "device", lambda: device(setting)
    yield "versions", versions
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
