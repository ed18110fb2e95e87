"""How time and memory grow with the work: voxels, classes, training cases, scans in a folder.

Usage: python -m benchmarks.speed.scaling [--small] [--only QUESTION …] [--repeats N] [--out FOLDER]

* voxels: a scan of 100³ to 500×512×1000 voxels of 1 mm from file to file: read, 1.5 mm grid, a
  trivial network in windows of 96³ at overlap 0.5, decision, written and read back.
* classes: the same from 2 to 118 classes on a scan of 192³.
* cases: training items (two 32³ patches) from a cache of 4 to 400 small phantoms; in each turn
  every size reads every one of its cases at least once.
* scans: `attunet3d infer` over a folder of 2 to 16 small phantoms; seconds less those of the same
  call when all is done already (start, model, checks of what is there).

Every point is a process of its own. Peak memory counts above what the process held before the
work; of `infer` it is the whole process's. The exponent is the slope of the least-squares line
through the logarithms: 1 is linear, 0 flat. Small sizes pay what every call costs, so the slope
between the two largest is told too. Draws results/scaling.png.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.speed.growth import FLAT, LINEAR, Point, Question, draw, judge, table

Size = tuple[int, int, int]
WINDOW = (96, 96, 96)
SHAPES: tuple[Size, ...] = (
    (100, 100, 100),
    (160, 160, 160),
    (250, 256, 250),
    (320, 320, 400),
    (500, 512, 500),
    (500, 512, 1000),
)
CLASSES = (2, 4, 8, 16, 32, 64, 118)
CASES = (4, 12, 40, 120, 400)
SCANS = (2, 4, 8, 16)


# ---------------------------------------------------------------------------- voxels and classes


def write_scan(path: Path, shape: Size) -> None:
    """A phantom of 100³ voxels of 1 mm, repeated and cut to `shape`."""
    from attunet3d.imaging import Grid, write_nifti
    from attunet3d.phantoms import make_phantom

    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -148.5
    block = make_phantom(3, grid=Grid((100, 100, 100), affine))[0].array
    index = np.ix_(*(np.arange(size) % 100 for size in shape))
    write_nifti(path, np.asfortranarray(block[index]), None, Grid(shape, np.eye(4)))


def prepare_scan(path: Path, classes: int) -> Callable[[], Any]:
    """The way of one scan from file to file, around a network that costs next to nothing."""
    import torch

    from attunet3d.core import PreprocessingConfig
    from attunet3d.imaging import Segmentation, read_volume, to_network_grid
    from attunet3d.inference import decide, sliding_window_slabs

    values = torch.linspace(-1.5, 1.5, classes).view(1, -1, 1, 1, 1)
    config = PreprocessingConfig(
        spacing_mm=(1.5, 1.5, 1.5), hu_window=(-160.0, 240.0), mean_hu=40.0, std_hu=100.0
    )
    labels = {value: f"label {value}" for value in range(classes)}

    def network(x: torch.Tensor) -> torch.Tensor:
        return (x * (2 * values)).sub_(values**2)

    @torch.inference_mode()
    def work() -> list[int]:
        volume = read_volume(path)
        image = to_network_grid(volume, config)
        slabs = sliding_window_slabs(image.tensor, network, window=WINDOW)
        array = decide(slabs, image.grid, volume.grid, list(labels))
        out = path.with_name(f"labels_{classes}.nii.gz")
        Segmentation(array, volume.grid, labels, volume.geometry).save(out)
        out.unlink()
        return list(array.shape)

    return work


def _scan_point(size: float, path: Path, classes: int, repeats: int) -> Point:
    way = measure.Way(f"{size:g}", prepare_scan, (path, classes), command_line=True)
    outcome = measure.compare([way], repeats)[0]
    print(f"  {size:g}: {outcome.median:.2f} s, {outcome.peak_mb:.0f} MB", file=sys.stderr)
    return Point(size, outcome.median, outcome.peak_mb)


def by_voxels(folder: Path, small: bool, repeats: int) -> list[Point]:
    points = []
    for shape in [(40, 40, 40), (60, 60, 60), (80, 80, 80)] if small else SHAPES:
        path = folder / "scan.nii.gz"
        write_scan(path, shape)
        turns = min(repeats, 1) if np.prod(shape) > 5e7 else repeats
        points.append(_scan_point(float(np.prod(shape)), path, 2, turns))
    return points


def by_classes(folder: Path, small: bool, repeats: int) -> list[Point]:
    path = folder / "scan.nii.gz"
    write_scan(path, (48, 48, 48) if small else (192, 192, 192))
    return [_scan_point(n, path, n, repeats) for n in ((2, 4, 8) if small else CLASSES)]


# ---------------------------------------------------------------------------- training cases


def write_phantoms(folder: Path, count: int) -> None:
    """`count` patients on 64×48×40 voxels of 5 mm: CASE.nii and CASE_label.nii."""
    from attunet3d.imaging import Grid, write_nifti
    from attunet3d.phantoms import make_phantom

    shape = (64, 48, 40)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = -2.5 * (np.array(shape) - 1)
    for number in range(count):
        for volume, ending in zip(
            make_phantom(number, grid=Grid(shape, affine)), (".nii", "_label.nii"), strict=True
        ):
            write_nifti(folder / f"case{number:03}{ending}", volume.array, None, volume.grid)


def prepare_items(folder: Path, count: int, items: int) -> Callable[[], Any]:
    """Take `items` items in turn from the first `count` cases; the cache stands already."""
    import torch

    batches = _patch_batches(folder, count)
    torch.set_num_threads(1)
    steps = itertools.count()

    def work() -> list[int]:
        made = [batches.batch(next(steps)).label.numel() for _ in range(items)]
        return made[:1]

    return work


def _patch_batches(folder: Path, count: int) -> Any:
    from attunet3d.core import Config, PreprocessingConfig, TrainingConfig
    from attunet3d.datasets import Case
    from attunet3d.training import PatchBatches, build_cache

    names = [f"case{number:03}" for number in range(count)]
    cases = [
        Case(id=name, image=folder / f"{name}.nii", label=folder / f"{name}_label.nii")
        for name in names
    ]
    config = Config(
        preprocessing=PreprocessingConfig(
            spacing_mm=(5.0, 5.0, 5.0), hu_window=(-160.0, 240.0), mean_hu=40.0, std_hu=100.0
        ),
        training=TrainingConfig(patch_size=(32, 32, 32), batch_size=2),
    )
    labels = {0: "background", 1: "pancreas"}
    return PatchBatches(build_cache(cases, labels, config, folder / "cache"), config)


def by_cases(folder: Path, small: bool, repeats: int) -> list[Point]:
    counts = (2, 4, 8) if small else CASES
    items = counts[-1] // 2
    write_phantoms(folder, counts[-1])
    _patch_batches(folder, counts[-1])
    ways = [
        measure.Way(f"{count} cases", prepare_items, (folder, count, items), command_line=True)
        for count in counts
    ]
    outcomes = measure.compare(ways, repeats)
    return [
        Point(count, outcome.median / items, outcome.peak_mb)
        for count, outcome in zip(counts, outcomes, strict=True)
    ]


# ---------------------------------------------------------------------------- scans in a folder


def write_model(path: Path) -> None:
    """A small network of random weights, saved as `train` saves one."""
    import torch

    from attunet3d.core import Config
    from attunet3d.models import build_network, save_model

    settings = (
        "network.channels=[4, 8, 16]",
        "network.strides=[[2, 2, 2], [2, 2, 2]]",
        "preprocessing.spacing_mm=[3, 3, 3]",
        "preprocessing.hu_window=[-160, 240]",
        "preprocessing.mean_hu=40",
        "preprocessing.std_hu=100",
        "training.patch_size=[48, 48, 48]",
    )
    torch.manual_seed(0)
    config = Config().with_overrides(settings)
    network = build_network(config.network, 1, 2)
    save_model(path, network.state_dict(), config, {0: "background", 1: "pancreas"}, {})


def infer(model: Path, scans: Path, out: Path, count: int) -> tuple[float, float]:
    """Seconds and peak MB of one call, after which `count` label maps must lie there."""
    call = [sys.executable, "-m", "attunet3d", "infer", model, scans, out, "--device", "cpu"]
    taken = measure.launched(call)
    made = len(list(out.glob("*.nii.gz")))
    if made != count:
        raise SystemExit(f"infer: {made} of {count} label maps")
    return taken


def by_scans(folder: Path, small: bool, repeats: int) -> list[Point]:
    from attunet3d.phantoms import write_phantoms as write_data_set

    counts = (1, 2) if small else SCANS
    model = folder / "model.safetensors"
    write_model(model)
    written = sorted((write_data_set(folder / "data", 4) / "imagesTr").iterdir())
    points = []
    for count in counts:
        scans = folder / f"scans{count}"
        scans.mkdir()
        for number in range(count):
            (scans / f"scan{number:02}.nii.gz").symlink_to(written[number % 4])
        turns = []
        for turn in range(max(repeats, 1)):
            out = folder / f"out{count}_{turn}"
            seconds, peak = infer(model, scans, out, count)
            turns.append((seconds - infer(model, scans, out, count)[0], peak))
        points.append(Point(count, float(np.median([t[0] for t in turns])), max(turns)[1]))
    return points


# ---------------------------------------------------------------------------- what they give

QUESTIONS = {
    "voxels": Question("voxels", LINEAR, LINEAR, by_voxels),
    "classes": Question("classes", LINEAR, None, by_classes),
    "cases": Question("training cases", FLAT, FLAT, by_cases),
    "scans": Question("scans in the folder", LINEAR, FLAT, by_scans),
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, repeats=3, small="few small sizes, one turn")
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    settings = parser.parse_args(arguments)
    results = {}
    for name in settings.only:
        question = QUESTIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            repeats = 1 if settings.small else settings.repeats
            points = question.measure(Path(folder), settings.small, repeats)
        results[name] = judge(question, points)
        print(table(name, results[name]) + "\n", flush=True)
    draw(results, settings.out / "scaling.png")
    print(measure.save("scaling", results, settings.out))


if __name__ == "__main__":
    main()
