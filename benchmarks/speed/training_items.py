"""How fast training items are made: two augmented patches of 96³ voxels, from prepared cases.

Usage: python -m benchmarks.speed.training_items [--out FOLDER] [--repeats N] [--small]

All start from the same phantom CTs of 320×240×208 voxels of 1 mm, prepared beforehand, and give
two float32 patches and their labels; half of the patches are centred on the pancreas.

* attunet3d: cases memory-mapped from the cache; `PatchBatches.batch`, and with workers, which are
  threads, `PatchBatches.iterate`.
* MONAI `CacheDataset`: as its tutorials write it, LoadImaged … CropForegroundd cached in RAM, then
  RandCropByPosNegLabeld(pos=1, neg=1, num_samples=2) and random transforms; `DataLoader`.
* MONAI, tuned: the same with what its guide to fast training adds: foreground and background
  indices computed once (FgBgToIndicesd), `copy_cache=False`, no metadata in the random part.
* nnU-Net: `nnUNetDataLoader` of nnunetv2 with `nnUNetTrainer.get_training_transforms`, which are
  batchgeneratorsv2's, on its Blosc2 files; with workers its `NonDetMultiThreadedAugmenter`.
* nnU-Net, cases in RAM: the same from arrays that lie in memory before the clock starts.
* nnU-Net, cases in RAM, our probabilities: and with transforms set to what ours does.

Probabilities a patch (`AugmentationConfig`'s defaults): mirror 0.5 each axis; rotation ±15, 15, 30
degrees and zoom 0.7–1.4 in 0.3; noise up to 0.3 in 0.1; blur 0.5–1.25 voxels in 0.15; brightness
×0.75–1.25 in 0.15; contrast ×0.75–1.25 in 0.15; low resolution 0.5–1 in 0.25; gamma 0.7–1.5 in 0.3.
nnU-Net's own: mirror 0.5 each axis; rotation ±30 degrees in 0.2, zoom in 0.2, noise 0.1, blur
0.2 × 0.5, brightness and contrast 0.15, low resolution 0.25 × 0.5, gamma 0.1 inverted and 0.3.

What still differs: ours and nnU-Net cut a larger region before they turn it, MONAI turns the patch
itself and repeats its border. MONAI takes both patches of an item from one case; its zoom is one
factor an axis. nnU-Net interpolates labels linearly (with our probabilities it takes the nearest,
as ours and MONAI do) and turns and zooms independently (1 − √0.7 each, so that 0.3 of the patches
are resampled). Ours draws each item from a seed of its own, so any step can be had at any time.

Each way's shapes and types must agree, and its share of foreground voxels within a factor of 1.5.
Then memory against the number of cases (4 and 40, of 192×160×160): what the process that makes
the items holds after preparing and at its peak over 20 items.
"""

import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.speed.training_peers import WAYS, Cases, prepared_batches, write_cases

ITEMS = 24  # a turn
WAITING = 24  # more than any puts by with two workers: nnU-Net 2 × 6, and one a worker
ENOUGH = 100  # items whose share of foreground can be compared
MOST_APART = 1.5  # times


def prepare_items(name: str, cases: Cases, workers: int, items: int) -> Callable[[], Any]:
    """The work of one turn: take the next `items`.

    It tells shapes and types, and of all turns so far the share of foreground and the seconds:
    what workers put by while others had their turn is taken before the clock starts.
    """
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    vars(current_process())["_config"]["daemon"] = False  # or it could have no workers
    made = WAYS[name](cases, workers)

    turns: list[float] = []
    shares: list[float] = []

    def work() -> dict[str, Any]:
        shapes, kinds = set(), set()
        for _ in range(WAITING if workers else 0):
            next(made)
        began = time.perf_counter()
        for _ in range(items):
            image, label = next(made)
            shares.append(int((label == 1).sum()) / label.numel())
            shapes.add(tuple(label.shape) if image.shape == label.shape else "unequal")
            kinds.add(str(image.dtype))
        turns.append(time.perf_counter() - began)
        share = sum(shares) / len(shares)
        return {"shapes": [*shapes], "dtypes": [*kinds], "foreground": share, "turns": turns}

    return work


def time_items(cases: Cases, workers: int, items: int, repeats: int) -> dict[str, Any]:
    """Seconds an item of every way; all must make the same kind of item."""
    ways = [
        measure.Way(name, prepare_items, (name, cases, workers, items), name == "attunet3d")
        for name in WAYS
    ]
    results = [
        replace(result, seconds=result.result.pop("turns")[1:])  # the first is a rehearsal
        for result in measure.compare(ways, repeats)
    ]
    expected = ([(2, 1, *[cases[2]] * 3)], ["torch.float32"])
    for result in results:
        found = result.result["shapes"], result.result["dtypes"]
        if found != expected:
            raise SystemExit(f"{result.name}: items are {found}, not {expected}")
        apart = result.result["foreground"] / results[0].result["foreground"]
        if items * repeats >= ENOUGH and not 1 / MOST_APART < apart < MOST_APART:
            raise SystemExit(f"{result.name}: {apart:.2f} times the foreground of ours")
    print(f"\n{items} items a turn, {workers or 'no'} workers\n\n{measure.table(results)}\n")
    lines = [
        {**row, "items_a_second": round(items / row["median_s"], 2), **result.result}
        for row, result in zip(measure.rows(results), results, strict=True)
    ]
    for line in lines:
        print(
            f"{line['way']}: {line['items_a_second']} items/s, foreground {line['foreground']:.4f}"
        )
    return {"items": items, "workers": workers, "ways": lines}


def prepare_memory(name: str, cases: Cases, items: int) -> Callable[[], Any]:
    """Resident memory of one process: with the packages, then with the cases, then at work."""
    import torch

    for package in ("attunet3d.training.batches", "monai.data", "monai.transforms"):
        import_module(package)
    torch.set_num_threads(1)

    def work() -> dict[str, float]:
        measure.reset_peak()
        before = measure.peak_mb()
        made = WAYS[name](cases, 0)
        next(made)
        measure.reset_peak()
        held = measure.peak_mb() - before
        for _ in range(items):
            next(made)
        return {"held_mb": round(held, 1), "peak_mb": round(measure.peak_mb() - before, 1)}

    return work


def memory(folder: Path, counts: tuple[int, ...], edge: int) -> list[dict[str, Any]]:
    """MB that the process holds over what its imports take, by way and number of cases."""
    lines = []
    for name, count in itertools.product(("attunet3d", "MONAI CacheDataset"), counts):
        way = measure.Way(name, prepare_memory, (name, (folder, count, edge), 20))
        result = measure.compare([way], 0)[0].result
        lines.append({"way": name, "cases": count, **result})
    print(measure.markdown(lines))
    return lines


def main(arguments: list[str] | None = None) -> None:
    small_run = "small cases and patches, two turns"
    settings = measure.parser(__doc__, repeats=5, small=small_run).parse_args(arguments)
    small = settings.small
    shape, edge = ((72, 64, 56), 32) if small else ((320, 240, 208), 96)
    shape_of_many, counts = ((48, 48, 48), (2, 6)) if small else ((192, 160, 160), (4, 40))
    items, repeats = (3, 2) if small else (ITEMS, settings.repeats)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        for place, count, size in ((few, 4, shape), (many, counts[-1], shape_of_many)):
            place.mkdir()
            write_cases(place, count, size)
        cases = (few, 4, edge)
        prepared_batches(cases, 0)
        content = {
            "cases": {"voxels": shape, "count": 4, "patch": edge},
            "one_thread": time_items(cases, 0, items, repeats),
            "two_workers": time_items(cases, 2, items, repeats),
            "memory": memory(many, counts, edge),
        }
    print(measure.save("training_items", content, settings.out))


if __name__ == "__main__":
    main()
