"""Whether this machine is fit: what `attunet3d doctor` looks at, and the cure of what it finds."""

import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

from attunet3d.core import (
    GIGABYTE,
    available_bytes,
    computes_in_bfloat16,
    cuda_of_torch,
    machine_total_bytes,
    memory_class,
    one_line,
    total_bytes,
    usable_cores,
    version_of,
)
from attunet3d.inference import deviation
from attunet3d.models import AttentionUNet3D

DEVELOPERS_EXTRAS = {"benchmarks", "dev", "docs", "mutants"}
SMALLEST_CLASS_GB = 8
FREE_DISK_GB = 10  # prepared cases of a training and label maps of a cohort easily take more
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CPU_CURE = "the network runs, but slowly; use a processor with AVX2 or a GPU"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Args:
        what: The part that was looked at.
        found: What it is.
        cure: What would cure it; None: it is in order.
    """

    what: str
    found: str
    cure: str | None = None

    def __str__(self) -> str:
        mark = "ok" if self.cure is None else "warning"
        line = f"{mark:<8}{self.what:<10}{self.found}"
        return line if self.cure is None else f"{line}; {self.cure}"


def diagnose() -> Iterator[Finding]:
    """Look at the machine, part by part."""
    yield Finding("Python", platform.python_version())
    yield from _libraries()
    yield _extras()
    yield from _processor()
    yield _memory()
    yield _disk(Path.cwd())
    yield from _gpus()
    for device in _devices():
        yield try_device(device)


def _libraries() -> Iterator[Finding]:
    for name in ("torch", "monai"):
        yield Finding(name, version_of(name))
    wrong = [
        f"{part.name} {version_of(part.name)}"
        for part in _requirements()
        if (part.marker is None or part.marker.evaluate({"extra": ""})) and not _fits(part)
    ]
    cure = "run `pip install --upgrade attunet3d`" if wrong else None
    yield Finding("libraries", ", ".join(wrong) or "all of the versions that are needed", cure)


def _requirements() -> list[Requirement]:
    """What the installed package asks for, extras included; a mere checkout asks for nothing."""
    try:
        return [Requirement(text) for text in metadata.requires("attunet3d") or []]
    except metadata.PackageNotFoundError:
        return []


def _fits(part: Requirement) -> bool:
    version = version_of(part.name)
    return version != "absent" and part.specifier.contains(version, prereleases=True)


def _extras() -> Finding:
    """Which optional parts are installed; none of them is needed, so nothing here is a warning."""
    asked = [part for part in _requirements() if part.marker is not None]
    extras = {
        name for part in asked for name in re.findall(r'extra == "([^"]+)"', str(part.marker))
    }
    names = sorted(extras - DEVELOPERS_EXTRAS)

    def complete(name: str) -> bool:
        parts = [p for p in asked if p.marker is not None and p.marker.evaluate({"extra": name})]
        return all(map(_fits, parts))

    here = [name for name in names if complete(name)]
    missing = [name for name in names if name not in here]
    words = f"installed: {', '.join(here) or 'none'}"
    if missing:
        words += f'; to add others: pip install "attunet3d[{",".join(missing)}]"'
    return Finding("extras", words)


def _processor() -> Iterator[Finding]:
    capability = torch.backends.cpu.get_cpu_capability()
    native = computes_in_bfloat16(torch.device("cpu"))
    words = f"{platform.machine()}, {capability}, bfloat16 {'native' if native else 'emulated'}"
    slow = capability == "DEFAULT" and platform.machine().lower() in ("x86_64", "amd64")
    yield Finding("CPU", words, CPU_CURE if slow else None)
    threads, cores = torch.get_num_threads(), usable_cores()
    cure = None
    if threads > cores:
        cure = f"they wait for each other; set OMP_NUM_THREADS={cores}"
    elif threads < (psutil.cpu_count(logical=False) or 1) and threads < cores:
        cure = f"unset OMP_NUM_THREADS, or set it to {cores}, unless other work needs the cores"
    yield Finding("threads", f"{threads} of torch for {cores} usable cores", cure)


def _memory() -> Finding:
    total, free = machine_total_bytes(), available_bytes(torch.device("cpu"))
    size = memory_class(total)
    cure = None
    if size < SMALLEST_CLASS_GB:
        cure = f"train on a machine of {SMALLEST_CLASS_GB} GB or more; infer works in windows"
    words = f"{total / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB free; plans use {size} GB"
    return Finding("memory", words, cure)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / GIGABYTE
    cure = "free some, or work in another folder" if free < FREE_DISK_GB else None
    return Finding("disk", f"{free:.1f} GB free in {folder}", cure)


def _gpus() -> Iterator[Finding]:
    build = cuda_of_torch()
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        size = total_bytes(device)
        words = f"{torch.cuda.get_device_name(device)}, {size / GIGABYTE:.1f} GB"
        words += f"; plans use {memory_class(size)} GB; CUDA {build}, driver {_driver() or '?'}"
        yield Finding(str(device), words)
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU; for inference, by --device mps")
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return
    driver = _driver()
    if driver is None:
        yield Finding("GPU", "none; the CPU is used")
    elif build is None:
        cure = "install a CUDA build of torch"
        yield Finding("GPU", f"NVIDIA driver {driver}, but torch was built for CPUs", cure)
    else:
        cure = "update the driver, or install a torch of an older CUDA"
        yield Finding("GPU", f"torch of CUDA {build} cannot use NVIDIA driver {driver}", cure)


def _driver(path: Path = NVIDIA_DRIVER) -> str | None:
    """The version of NVIDIA's kernel driver (Linux)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else "unknown"


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return list(map(torch.device, names))


def try_device(
    device: torch.device, run: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> Finding:
    """Pass a small image through a small network, and compare with float64 on the CPU.

    Args:
        device: Where.
        run: Applies network and image in float32, for tests; None: on the device.
    """
    generator = torch.Generator().manual_seed(0)
    network = AttentionUNet3D(channels=(4, 8, 16)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    image = torch.randn((1, 1, 32, 32, 32), generator=generator)

    def on_device(network: nn.Module, image: Tensor) -> Tensor:
        logits: Tensor = network.to(device)(image.to(device))
        return logits.cpu()

    what = f"try {device}"
    with torch.inference_mode():
        exact: Tensor = network.double()(image.double())
        try:
            found = (run or on_device)(network.float(), image)
        except (NotImplementedError, RuntimeError) as error:  # an operator that the device lacks
            words = one_line(error)[:120]
            return Finding(what, f"the network does not run ({words})", _cure(device))
    wrong = deviation(found.double(), exact)
    if wrong is not None:
        return Finding(what, f"the network's answer is wrong ({wrong})", _cure(device))
    return Finding(what, "the network's answer equals the CPU's in float64")


def _cure(device: torch.device) -> str:
    if device.type == "cpu":
        return "install torch again"
    return "use --device cpu, or another version of torch or of the driver"
