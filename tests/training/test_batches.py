"""Which patches a step sees: a pure function of cases, settings and step, whoever prepares it."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attunet3d.core import Array, DataError, FileError, LabelMap, Size
from attunet3d.core.config import Config
from attunet3d.core.model_config import PreprocessingConfig
from attunet3d.core.training_config import AugmentationConfig, TrainingConfig
from attunet3d.training.batches import Batch, PatchBatches
from attunet3d.training.cached_case import ARRAYS, CachedCase, foreground_voxels, load_case
from tests.conftest import present

PATCH = (16, 12, 8)
AIR = -2.5
STILL = AugmentationConfig(
    flip_axes=(),
    affine_probability=0,
    noise_probability=0,
    blur_probability=0,
    brightness_probability=0,
    contrast_probability=0,
    gamma_probability=0,
    low_resolution_probability=0,
)
LIVELY = AugmentationConfig(affine_probability=0.7, elastic_probability=0.3, noise_probability=0.5)


def store(folder: Path, image: Array, label: LabelMap) -> CachedCase:
    """Put a case on disk as `cache` does; each class has two listed voxels at most."""
    folder.mkdir()
    points, starts = [np.zeros((0, 3), int)], [0, 0]
    for index in range(1, 3):
        points.append(np.argwhere(label == index)[:2000])
        starts.append(starts[-1] + len(points[-1]))
    arrays: tuple[Array, ...] = (
        image.astype(np.float16),
        label.astype(np.uint8),
        np.concatenate(points).astype(np.int32),
    )
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(folder / name, array)
    sizes = {name: (folder / name).stat().st_size for name in ARRAYS}
    meta = {"shape": image.shape, "air": AIR, "starts": starts, "bytes": sizes}
    (folder / "meta.json").write_text(json.dumps(meta))
    case = load_case(folder.name, folder)
    assert case is not None
    return case


def make_case(
    folder: Path, shape: Size = (40, 36, 30), classes: Sequence[int] = (1, 2)
) -> CachedCase:
    """Values tell where a voxel lies; class 1 is a hundred times as large as class 2."""
    label = np.zeros(shape, np.uint8)
    if 1 in classes:
        label[4:30, 4:30, 4:20] = 1
    if 2 in classes:
        label[33:37, 30:34, 22:26] = 2
    image = np.indices(shape)[0] % 7 + np.indices(shape)[1] % 5 + np.indices(shape)[2] / 64
    return store(folder, image, label)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    root = tmp_path_factory.mktemp("cache")
    shapes = {"a": (40, 36, 30), "b": (48, 36, 32), "small": (11, 36, 5), "c": (40, 40, 30)}
    classes = {"a": (1, 2), "b": (1,), "small": (), "c": (1, 2)}
    return [make_case(root / name, shape, classes[name]) for name, shape in shapes.items()]


def config(augmentation: AugmentationConfig = STILL, **training: Any) -> Config:
    values: dict[str, Any] = {"patch_size": PATCH, "batch_size": 2, "seed": 5} | training
    return Config(
        preprocessing=PreprocessingConfig(spacing_mm=(1.0, 1.5, 3.0)),
        augmentation=augmentation,
        training=TrainingConfig(**values),
    )


def equal(a: Batch, b: Batch) -> bool:
    same = torch.equal(a.image, b.image) and torch.equal(a.label, b.label)
    return same and a.case_ids == b.case_ids


def test_a_batch_has_the_shapes_and_types_promised(cases: list[CachedCase]) -> None:
    batch = PatchBatches(cases, config(LIVELY, batch_size=3)).batch(0)
    assert batch.image.shape == batch.label.shape == (3, 1, *PATCH)
    assert (batch.image.dtype, batch.label.dtype) == (torch.float32, torch.uint8)
    assert type(batch.image) is type(batch.label) is torch.Tensor
    assert len(batch.case_ids) == 3
    assert set(batch.label.flatten().tolist()) <= {0, 1, 2}


def test_a_step_is_a_pure_function(cases: list[CachedCase]) -> None:
    one, other = (PatchBatches(cases, config(LIVELY)) for _ in range(2))
    later = [one.batch(step) for step in range(9)]
    for step in (8, 0, 4):  # in any order
        assert equal(later[step], other.batch(step))
    assert not torch.equal(later[0].image, later[4].image)
    reseeded = PatchBatches(cases, config(LIVELY, seed=6))
    assert not torch.equal(later[0].image, reseeded.batch(0).image)
    largest = config(seed=2**32 - 1)
    assert equal(PatchBatches(cases, largest).batch(0), PatchBatches(cases, largest).batch(0))


def test_every_case_comes_as_often_in_new_orders(cases: list[CachedCase]) -> None:
    batches = PatchBatches(cases, config(batch_size=3))
    ids = [batches.case_at(step, slot).id for step in range(20) for slot in range(3)]
    assert set(Counter(ids).values()) == {15}
    rounds = [tuple(ids[start : start + 4]) for start in range(0, 60, 4)]
    assert all(sorted(round_) == ["a", "b", "c", "small"] for round_ in rounds)
    assert len(set(rounds)) > 5


def test_foreground_patches_are_centred_on_classes_drawn_alike(cases: list[CachedCase]) -> None:
    batches = PatchBatches([cases[0]], config(foreground_fraction=1.0))
    centres = [int(label[0, 8, 6, 4]) for step in range(200) for label in batches.batch(step).label]
    count = Counter(centres)
    assert set(count) == {1, 2}
    assert abs(count[1] - 200) < 40  # 4 standard deviations, though class 1 is 169 times larger


def test_classes_that_a_case_lacks_are_not_drawn(cases: list[CachedCase]) -> None:
    batches = PatchBatches([cases[1]], config(foreground_fraction=1.0))
    assert all(
        int(label[0, 8, 6, 4]) == 1 for step in range(10) for label in batches.batch(step).label
    )


def test_the_share_of_foreground_patches_is_as_asked(cases: list[CachedCase]) -> None:
    def centred(fraction: float) -> float:
        batches = PatchBatches([cases[0]], config(foreground_fraction=fraction))
        labels = torch.cat([batches.batch(step).label for step in range(200)])
        return int((labels[:, 0, 8, 6, 4] == 2).sum()) / 400

    assert centred(0.0) < 0.02  # class 2 fills 0.15 % of the case, and touches few centres
    assert centred(0.5) == pytest.approx(0.25, abs=0.09)


def test_foreground_survives_turning_and_mirroring(cases: list[CachedCase]) -> None:
    turning = AugmentationConfig(affine_probability=1.0, scale=(1.0, 1.4))
    batches = PatchBatches([cases[0]], config(turning, foreground_fraction=1.0))
    assert all(bool((label > 0).any()) for step in range(20) for label in batches.batch(step).label)


def test_patches_hold_what_the_case_holds_there_and_uniform_ones_lie_inside(
    cases: list[CachedCase],
) -> None:
    image, label = cases[0].image().astype(np.float32), cases[0].label()
    windows = np.lib.stride_tricks.sliding_window_view(image, PATCH)
    batches = PatchBatches([cases[0]], config(foreground_fraction=0.0, batch_size=1))
    starts = set()
    for step in range(12):
        batch = batches.batch(step)
        hits = np.argwhere(windows[..., 0, 0, 0] == batch.image[0, 0, 0, 0, 0].item())
        found = [h for h in hits if np.array_equal(windows[tuple(h)], batch.image[0, 0].numpy())]
        assert found
        masks = [
            label[tuple(slice(s, s + n) for s, n in zip(h, PATCH, strict=True))] for h in found
        ]
        assert any(np.array_equal(mask, batch.label[0, 0].numpy()) for mask in masks)
        starts.add(tuple(found[0]))
    assert len(starts) > 8


def test_beyond_the_border_lies_air_and_background(cases: list[CachedCase]) -> None:
    small = next(case for case in cases if case.id == "small")  # 11, 36, 5 in 16, 12, 8
    batch = PatchBatches([small], config(batch_size=1)).batch(3)
    inside = batch.image[0, 0, 3:14, :, 2:7]
    values = small.image().astype(np.float32)
    rows = [r for r in range(25) if np.array_equal(values[:, r : r + 12], inside.numpy())]
    assert rows
    outside = torch.ones(PATCH, dtype=torch.bool)
    outside[3:14, :, 2:7] = False
    assert bool((batch.image[0, 0][outside] == AIR).all())
    assert not batch.label.any()


def test_a_turned_patch_at_the_border_sees_air_beyond_it(cases: list[CachedCase]) -> None:
    turning = AugmentationConfig(**{**vars(STILL), "affine_probability": 1.0, "scale": (0.7, 0.7)})
    small = next(case for case in cases if case.id == "small")
    batch = PatchBatches([small], config(turning, batch_size=1)).batch(0)
    assert float(batch.image.min()) == pytest.approx(AIR)
    assert float(((batch.image - AIR).abs() < 1e-5).float().mean()) > 0.3


@pytest.mark.parametrize("start", [0, 3])
def test_iterating_gives_the_batches_of_the_steps(cases: list[CachedCase], start: int) -> None:
    batches = PatchBatches(cases, config(LIVELY))
    came = list(batches.iterate(start, stop=start + 5))
    assert len(came) == 5
    assert all(equal(batch, batches.batch(start + i)) for i, batch in enumerate(came))
    assert list(batches.iterate(4, stop=4)) == []


def test_many_threads_give_what_one_gives_and_an_error_names_its_case(
    cases: list[CachedCase], tmp_path: Path
) -> None:
    broken = make_case(tmp_path / "broken")
    batches = PatchBatches([*cases, broken], config(LIVELY, batch_size=1, workers=4))
    here = PatchBatches([*cases, broken], config(LIVELY, batch_size=1))
    stream = batches.iterate()
    for step in range(6):
        assert equal(next(stream), here.batch(step))
    shutil.rmtree(broken.folder)
    with pytest.raises(FileError, match=r"^case broken: .*\.npy cannot be read .*start again"):
        list(stream)
    assert_nothing_runs()


def test_an_error_in_the_thread_names_its_case(tmp_path: Path, cases: list[CachedCase]) -> None:
    broken = make_case(tmp_path / "broken")
    (broken.folder / "label.npy").write_bytes(b"no array")
    batches = PatchBatches([cases[0], broken], config(batch_size=1))
    with pytest.raises(FileError, match=r"^case broken: .*label.npy") as caught:
        list(batches.iterate(stop=2))
    assert "case broken, step" in caught.value.__notes__[0]
    assert_nothing_runs()


def assert_nothing_runs() -> None:
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def in_a_new_thread(work: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_closing_early_ends_the_thread_and_leaves_torch_as_it_was(cases: list[CachedCase]) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    stream = PatchBatches(cases, config(LIVELY)).iterate()
    next(stream)
    assert in_a_new_thread(torch.get_num_threads) == torch.get_num_threads() == threads
    stream.close()
    assert_nothing_runs()
    assert in_a_new_thread(torch.get_num_threads) == torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_is_prepared_ahead_than_told(
    cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = PatchBatches(cases, config())
    make, seen = batches.batch, list[int]()

    def counted(step: int, *more: Any) -> Batch:
        seen.append(step)
        return make(step, *more)

    monkeypatch.setattr(batches, "batch", counted)
    stream = batches.iterate()
    next(stream)
    until = time.monotonic() + 60
    while len(seen) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    assert seen == [0, 1, 2, 3]
    stream.close()


def test_more_threads_prepare_more_ahead_and_in_order(cases: list[CachedCase]) -> None:
    batches = PatchBatches(cases, config(LIVELY, workers=6))
    came = list(batches.iterate(stop=9))
    assert all(equal(batch, batches.batch(step)) for step, batch in enumerate(came))
    assert len(came) == 9


def test_a_machine_without_threads_is_an_error_and_no_wait(
    cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("batches"):
            started.append(thread)
            if len(started) > 2:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(PatchBatches(cases, config(workers=4)).iterate())
    assert_nothing_runs()
    assert in_a_new_thread(torch.get_num_threads) == threads


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import tests.training.test_batches as here
if __name__ == "__main__":
    case = here.load_case("a", here.Path({folder!r}))
    stream = here.PatchBatches([case], here.config(here.LIVELY, workers={workers})).iterate()
    next(stream)
    print("ready", flush=True)
    if {wait}:
        for batch in stream:
            time.sleep(0.01)
"""


def start_script(case: CachedCase, workers: int, wait: bool) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[2])
    code = SCRIPT.format(tests=tests, folder=str(case.folder), workers=workers, wait=wait)
    path = case.folder.parent / f"script{workers}{wait}.py"
    path.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_program_that_leaves_its_iterator_open_ends(cases: list[CachedCase]) -> None:
    process = start_script(cases[0], workers=0, wait=False)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "ready\n", "")


def test_an_interrupted_program_ends(cases: list[CachedCase]) -> None:
    process = start_script(cases[0], workers=2, wait=True)
    assert present(process.stdout).readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, errors = process.communicate(timeout=120)  # a second, but for a busy machine
    assert process.returncode != 0
    assert errors.count("Traceback") == 1  # the program's own; the threads say nothing
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_many_cases_keep_no_file_open(cases: list[CachedCase]) -> None:
    batches = PatchBatches(cases * 100, config(batch_size=4))
    batches.batch(0)
    before = len(os.listdir("/proc/self/fd"))
    for step in range(1, 40):
        batches.batch(step)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_cannot_be_trained_on_is_refused(cases: list[CachedCase]) -> None:
    with pytest.raises(DataError, match="no training case"):
        PatchBatches([], config())
    for incomplete in (config(patch_size=None), config(batch_size=None)):
        with pytest.raises(DataError, match="make a plan"):
            PatchBatches(cases, incomplete)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_batches_arrive_there(cases: list[CachedCase]) -> None:
    batches = PatchBatches(cases, config(LIVELY))
    for step, batch in enumerate(batches.iterate(0, "cuda", 4)):
        again = batches.batch(step, "cuda")
        assert batch.image.is_cuda
        assert equal(batch, again)


def test_every_patch_of_a_scribbled_case_is_centred_on_what_was_drawn(tmp_path: Path) -> None:
    """One line of the organ and one of background are drawn; all else is ignored."""
    label = np.full((40, 36, 30), 9, np.uint8)
    label[20, 18, 5:25] = 1
    label[5, 5:30, 3] = 0
    (tmp_path / "s").mkdir()
    points, starts = foreground_voxels(label, 2, 9)
    arrays: tuple[Array, ...] = np.zeros(label.shape, np.float16), label, points
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(tmp_path / "s" / name, array)
    case = CachedCase("s", tmp_path / "s", label.shape, AIR, tuple(starts))
    batches = PatchBatches([case], config(foreground_fraction=0.5))
    drawn = [batches.batch(step) for step in range(20)]
    middle = [int(patch[0][tuple(n // 2 for n in PATCH)]) for b in drawn for patch in b.label]
    assert set(middle) == {0, 1}
    assert middle.count(1) > 15  # half by class, and by the voxels' share of the rest


def test_classes_that_were_not_annotated_are_not_drawn(cases: list[CachedCase]) -> None:
    partly = dataclasses.replace(cases[0], annotated=(2,), sampled=(2,))
    assert partly.classes == (2,)
    assert PatchBatches([partly], config()).batch(0).annotated == ((2,), (2,))
