"""Where the time of a forward pass and of a training item goes, and how near the machine's limits.

Usage: python benchmarks/limits.py [--out FOLDER] [--repeats N] [--small]

The limits are what this machine does with all its threads: multiply-adds a second in `torch.mm` of
two matrices of 2048², and bytes a second in copying 240 MB from one place to another, with one
thread and with two. A pass is that of `attunet3d infer` in float32 over 96³ voxels, its operators
timed one by one; an item is two augmented patches of 96³, made by one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attunet3d.core import keep_freed_memory
from attunet3d.inference import make_engine
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


class Operators(TorchDispatchMode):
    """Seconds and floating-point operations of everything that runs, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()

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


def turns(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of `work`, once unmeasured before."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def limits(repeats: int) -> dict[str, float]:
    """GFLOP/s of a matrix product with two threads, GB/s (read and written) with one and two.

    Of the fastest turn: a limit is what can be had.
    """
    matrix, source = torch.randn(MATRIX, MATRIX), torch.randn(COPIED)
    target = torch.empty_like(source)
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = min(turns(lambda: target.copy_(source), repeats))
        found[f"copy_gb_a_second_{threads}"] = round(8e-9 * COPIED / seconds, 1)
    seconds = min(turns(lambda: matrix @ matrix, repeats))
    found["product_gflop_a_second"] = round(2e-9 * MATRIX**3 / seconds, 1)
    return found


def forward_pass(edge: int, repeats: int) -> list[dict[str, Any]]:
    """Kinds of operators, the longest first."""
    torch.manual_seed(0)
    forward = make_engine(AttentionUNet3D().eval(), CPU, torch.float32)
    image = torch.randn(1, 1, edge, edge, edge)
    whole = statistics.median(turns(lambda: forward(image), repeats))
    runs = []
    for _ in range(repeats):
        with Operators() as operators:
            forward(image)
        runs.append(operators)
    flop = runs[0].flop
    taken = {kind: statistics.median(run.seconds[kind] for run in runs) for kind in runs[0].seconds}
    lines = [_line("the pass", whole, flop.total())]
    lines += [_line(kind, seconds, flop[kind]) for kind, seconds in taken.items()]
    return sorted(lines, key=lambda line: -line["ms"])


def _line(kind: str, seconds: float, flop: int) -> dict[str, Any]:
    rate = round(1e-9 * flop / seconds, 1)
    return {"kind": kind, "ms": round(1e3 * seconds, 1), "gflop": 1e-9 * flop, "gflop_a_s": rate}


@contextmanager
def timed(owner: Any, name: str, label: str, seconds: Counter[str]) -> Iterator[None]:
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
    torch.set_num_threads(1)
    batches = prepared_batches((folder, 4, edge), 0)
    batches.batch(0)
    seconds: Counter[str] = Counter()
    kinds = {type(part) for part in batches.augmentation.transforms}
    with ExitStack() as stack:
        stack.enter_context(timed(batches, "_cut", "cut", seconds))
        for kind in kinds:
            stack.enter_context(timed(kind, "__call__", kind.__name__, seconds))
        began = time.perf_counter()
        for step in range(1, items + 1):
            batches.batch(step)
        seconds["the item"] = time.perf_counter() - began
    steps = sum(taken for name, taken in seconds.items() if name != "the item")
    seconds["everything else"] = seconds["the item"] - steps
    lines = [{"step": name, "ms": round(1e3 * s / items, 2)} for name, s in seconds.items()]
    return sorted(lines, key=lambda line: -line["ms"])


def table(lines: list[dict[str, Any]]) -> str:
    """As Markdown."""
    rows = ["| " + " | ".join(name.replace("_", " ") for name in lines[0]) + " |"]
    rows.append("|---" * len(lines[0]) + "|")
    for line in lines:
        values = (f"{v:.1f}" if isinstance(v, float) else str(v) for v in line.values())
        rows.append("| " + " | ".join(values) + " |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    settings = parser.parse_args(arguments)
    small, repeats = settings.small, settings.repeats
    keep_freed_memory()
    content: dict[str, Any] = {"limits": limits(repeats)}
    print(content["limits"])
    content["pass"] = forward_pass(SMALL_EDGE if small else EDGE, repeats)
    print("\n" + table(content["pass"]))
    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), (72, 64, 56) if small else (320, 240, 208)
        write_cases(folder, 4, shape)
        content["item"] = training_item(folder, SMALL_EDGE if small else EDGE, ITEMS)
    print("\n" + table(content["item"]))
    print(measure.save("limits", content, settings.out))


if __name__ == "__main__":
    main()
