"""Where the time of a forward pass and of a training item goes, and how near the machine's limits.

Usage: python -m benchmarks.speed.limits [--out FOLDER] [--repeats N] [--small]

The limits are what this machine does with all its threads: multiply-adds a second in `torch.mm` of
two matrices of 2048², and bytes a second in copying 240 MB from one place to another, with one
thread and with two. A pass is that of `attunet3d infer` in float32 over 96³ voxels, its operators
timed one by one; an item is two augmented patches of 96³, made by one thread.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attunet3d.core import keep_freed_memory
from attunet3d.inference import make_forward_pass
from attunet3d.models import AttentionUNet3D
from benchmarks import measure
from benchmarks.speed.training_peers import prepared_batches, write_cases

CPU = torch.device("cpu")
EDGE, SMALL_EDGE = 96, 32
MATRIX, COPIED = 2048, 60_000_000
KINDS = {  # of operators, by part of their names
    "mkldnn_convolution": "convolution",
    "addmm": "coarse planes added up",
    "upsample": "upsampling",
    "max_pool": "pooling",
    "relu": "ReLU",
    "clamp_min": "ReLU",
}
ITEMS = 12
CHANGES: tuple[str, ...] = ("mirror", "add_noise", "blur", "scale_brightness", "scale_contrast")
CHANGES += ("lower_resolution", "change_gamma")


class Operators(TorchDispatchMode):
    """Seconds and floating-point operations of everything that runs, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = defaultdict(float)
        self.flop: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - began
        name = str(func)
        kind = next((kind for part, kind in KINDS.items() if part in name), "everything else")
        if kind == "convolution":
            weight = args[1]  # (out, in / groups, x, y, z)
            kernel = "×".join(map(str, weight.shape[2:]))
            kind = f"convolutions {kernel}, {weight.shape[1]} → {weight.shape[0]} channels"
            self.flop[kind] += 2 * result.numel() * weight[0].numel()
        self.seconds[kind] += seconds
        return result


def limits(repeats: int) -> dict[str, float]:
    """GFLOP/s of a matrix product with two threads, GB/s (read and written) with one and two.

    Of the fastest turn: a limit is what can be had.
    """
    matrix, source = torch.randn(MATRIX, MATRIX), torch.randn(COPIED)
    target = torch.empty_like(source)
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = min(measure.repeated(lambda: target.copy_(source), repeats))
        found[f"copy_gb_a_second_{threads}"] = round(8e-9 * COPIED / seconds, 1)
    seconds = min(measure.repeated(lambda: matrix @ matrix, repeats))
    found["product_gflop_a_second"] = round(2e-9 * MATRIX**3 / seconds, 1)
    return found


def forward_pass(edge: int, repeats: int) -> list[dict[str, Any]]:
    """Kinds of operators, the longest first."""
    torch.manual_seed(0)
    forward = make_forward_pass(AttentionUNet3D().eval(), CPU, torch.float32)
    image = torch.randn(1, 1, edge, edge, edge)
    whole = statistics.median(measure.repeated(lambda: forward(image), repeats))
    runs = []
    for _ in range(repeats):
        with Operators() as operators:
            forward(image)
        runs.append(operators)
    flop = runs[0].flop
    taken = {kind: statistics.median(run.seconds[kind] for run in runs) for kind in runs[0].seconds}
    lines = [_line("the pass", whole, sum(flop.values()))]
    lines += [_line(kind, seconds, flop[kind]) for kind, seconds in taken.items()]
    return sorted(lines, key=lambda line: -line["ms"])


def _line(kind: str, seconds: float, flop: float) -> dict[str, Any]:
    rate = round(1e-9 * flop / seconds, 1)
    return {"kind": kind, "ms": round(1e3 * seconds, 1), "gflop": 1e-9 * flop, "gflop_a_s": rate}


@contextmanager
def timed(owner: Any, name: str, label: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add what calls of `owner.name` take to `seconds[label]`."""
    plain = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - began

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def training_item(folder: Path, edge: int, items: int) -> list[dict[str, Any]]:
    """Steps of making an item, the longest first."""
    names = ("augmentation", "batches", "placement")
    augmentation, batches, placement = (import_module(f"attunet3d.training.{n}") for n in names)
    torch.set_num_threads(1)
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for owner, name in ((batches, "_cut"), (placement, "place")):
            stack.enter_context(timed(owner, name, name.strip("_"), seconds))
        for name in CHANGES:  # before the transforms are put together
            stack.enter_context(timed(augmentation, name, name.replace("_", " "), seconds))
        made = prepared_batches((folder, 4, edge), 0)
        made.batch(0)
        seconds.clear()
        began = time.perf_counter()
        for step in range(1, items + 1):
            made.batch(step)
        whole = time.perf_counter() - began
    steps = {**seconds, "everything else": whole - sum(seconds.values()), "the item": whole}
    lines = [{"step": name, "ms": round(1e3 * s / items, 2)} for name, s in steps.items()]
    return sorted(lines, key=lambda line: -line["ms"])


def main(arguments: list[str] | None = None) -> None:
    settings = measure.parser(__doc__, repeats=7).parse_args(arguments)
    small, repeats = settings.small, settings.repeats
    keep_freed_memory()
    content: dict[str, Any] = {"limits": limits(repeats)}
    print(content["limits"])
    content["pass"] = forward_pass(SMALL_EDGE if small else EDGE, repeats)
    print("\n" + measure.markdown(content["pass"]))
    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), (72, 64, 56) if small else (320, 240, 208)
        write_cases(folder, 4, shape)
        content["item"] = training_item(folder, SMALL_EDGE if small else EDGE, ITEMS)
    print("\n" + measure.markdown(content["item"]))
    print(measure.save("limits", content, settings.out))


if __name__ == "__main__":
    main()
