"""Batches of training patches, each a pure function of (cases, settings, step).

No state passes from one step to the next: item `slot` of step `step` draws all it needs from a
generator seeded by (seed, step, slot). So a run resumed at any step sees what it would have seen,
whatever the number of workers, and every case comes as often: item number n is case n mod N of
shuffle n div N.
"""

import atexit
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from attunet3d.augmentation import Augmentation, build_augmentation
from attunet3d.cached_case import CachedCase
from attunet3d.config import Config
from attunet3d.errors import UserError
from attunet3d.typed_values import Size

AHEAD = 3  # batches prepared before they are asked for


class DatasetError(UserError):
    """There is nothing to train on, or a patch's size or spacing is not known."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees.

    Args:
        image: (B, 1, X, Y, Z) float32.
        label: (B, 1, X, Y, Z) uint8 class indices (and the ignored value).
        case_ids: The case of each patch.
    """

    image: torch.Tensor
    label: torch.Tensor
    case_ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """What one patch is made from: a box cut from a case, and the seed of what follows.

    Args:
        image: (1, I, J, K) float16.
        label: (1, I, J, K) uint8.
        seed: Of the augmentation.
        case_id: The case.
    """

    image: torch.Tensor
    label: torch.Tensor
    seed: int
    case_id: str

    def pin_memory(self) -> "Region":
        """The same in page-locked memory, from which a GPU copies in the background."""
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())


class PatchBatches:
    """Random patches of prepared cases.

    Args:
        cases: The training cases.
        config: With resolved patch size, batch size and spacing.

    Raises:
        DatasetError: There is no case, or a size is not resolved.
    """

    def __init__(self, cases: Sequence[CachedCase], config: Config) -> None:
        training, spacing = config.training, config.preprocessing.spacing_mm
        if not cases:
            raise DatasetError("no training case; give the fold at least one case with a label")
        if training.patch_size is None or training.batch_size is None or spacing is None:
            raise DatasetError(
                "training.patch_size, training.batch_size and preprocessing.spacing_mm must be "
                "set; make a plan first, or set them"
            )
        self.cases, self.training = tuple(cases), training
        self.seed = training.seed % 2**63  # NumPy takes no negative one
        self.patch_size: Size = training.patch_size
        self.batch_size: int = training.batch_size
        self.augmentation: Augmentation = build_augmentation(
            config.augmentation, training.patch_size, spacing
        )

    def batch(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """The batch of `step`, the same at every call.

        Raises:
            CacheError: A case's files cannot be read.
        """
        return self.finish(self.regions(step), device)

    def regions(self, step: int) -> list[Region]:
        """What the patches of `step` are made from, cut from the mapped cases."""
        return [self._region(step, slot) for slot in range(self.batch_size)]

    def finish(self, regions: Sequence[Region], device: torch.device | str) -> Batch:
        """Augment the regions on `device` and stack them."""
        patches = [self._patch(region, torch.device(device)) for region in regions]
        return Batch(
            torch.stack([patch["image"] for patch in patches]),
            torch.stack([patch["label"] for patch in patches]),
            tuple(region.case_id for region in regions),
        )

    def case_at(self, step: int, slot: int) -> CachedCase:
        """The case of one item; `slot` counts through a batch."""
        number = step * self.batch_size + slot
        round_number, place = divmod(number, len(self.cases))
        generator = np.random.default_rng([self.seed, 0, round_number])
        return self.cases[int(generator.permutation(len(self.cases))[place])]

    def _region(self, step: int, slot: int) -> Region:
        case = self.case_at(step, slot)
        generator = np.random.default_rng([self.seed, 1, step, slot])
        seed = int(generator.integers(2**63))
        size = self.augmentation.source_size(seed)
        try:
            start = self._start(case, generator) - (np.array(size) - self.patch_size) // 2
            image = _cut(case.image(), start, size, case.air)
            label = _cut(case.label(), start, size, 0)
        except Exception as error:
            error.add_note(f"case {case.id}, step {step}")
            raise
        return Region(image, label, seed, case.id)

    def _start(self, case: CachedCase, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """The first voxel of a patch: around a voxel of a class, or anywhere inside."""
        patch = np.array(self.patch_size)
        classes = case.classes
        if classes and generator.random() < self.training.foreground_fraction:
            index = classes[generator.integers(len(classes))]
            row = generator.integers(case.starts[index], case.starts[index + 1])
            start: npt.NDArray[np.int64] = case.foreground()[row] - patch // 2
            return start
        spare = np.array(case.shape) - patch  # negative: the case is smaller, and comes centred
        drawn: npt.NDArray[np.int64] = generator.integers(np.maximum(spare, 0) + 1)
        drawn[spare < 0] = (spare // 2)[spare < 0]
        return drawn

    def _patch(self, region: Region, device: torch.device) -> dict[str, Any]:
        image = region.image.to(device, non_blocking=True)
        label = region.label.to(device, non_blocking=True)
        return self.augmentation({"image": image, "label": label}, region.seed)

    def iterate(
        self, start: int = 0, device: torch.device | str = "cpu", stop: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of `start`, `start` + 1, … (to `stop`), prepared ahead on `device`.

        One thread prepares; with `training.workers` processes it only collects what they prepare
        (for a GPU: what they cut; the augmentation then runs there). Close the iterator, or leave
        it, and all of them end.

        Raises:
            CacheError: A case's files cannot be read.
        """
        device = torch.device(device)
        steps = range(start, sys.maxsize if stop is None else stop)
        ready = self._batches(steps, device)
        pool = _one_core_thread()
        try:
            waiting = deque(pool.submit(next, ready, None) for _ in range(AHEAD))
            for _ in steps:
                batch = waiting.popleft().result()
                waiting.append(pool.submit(next, ready, None))
                if batch is None:
                    return
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            ready.close()

    def _batches(self, steps: range, device: torch.device) -> Generator[Batch, None, None]:
        """The batches of `steps`, in order, by this thread or by worker processes."""
        workers, on_cpu = self.training.workers, device.type == "cpu"
        order = (step for step in steps)  # a sampler that can be ended
        loader: DataLoader[Any] = DataLoader(
            _Steps(self, finished=on_cpu),
            batch_size=None,
            sampler=order,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=not on_cpu,
            generator=torch.Generator(),  # or it would draw from torch's own, and shift a resume
        )
        others = multiprocessing.active_children()
        items = iter(loader)
        started = [child for child in multiprocessing.active_children() if child not in others]
        at_exit = partial(_end, started)
        atexit.register(at_exit)
        try:
            for item in items:
                if isinstance(item, UserError):
                    raise item
                yield item if on_cpu else self.finish(item, device)
        finally:  # take what is under way: a worker that ends while it sends aborts with a noise
            order.close()
            with suppress(RuntimeError, OSError, EOFError):  # a worker was killed
                deque(items, maxlen=0)
            atexit.unregister(at_exit)


def _one_core_thread() -> ThreadPoolExecutor:
    """A thread that computes on one core and leaves the others to the network."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "batches", torch.set_num_threads, (1,))
    pool.submit(int).result()  # it has its setting, which now also is the default of new threads:
    torch.set_num_threads(threads)  # restore that
    return pool


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C and SIGTERM, which a cluster sends to all, to the main process.

    It saves its state and then ends the workers; they also end when it is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end(workers: Sequence[BaseProcess]) -> None:
    """End workers that were never closed, before the program's exit waits for them for good."""
    for worker in workers:
        worker.kill()


class _Steps(Dataset[Any]):
    """Steps as a map for `DataLoader`: a user's error comes back as a value, whole and one line."""

    def __init__(self, batches: PatchBatches, *, finished: bool) -> None:
        self.prepare: Callable[[int], Any] = batches.batch if finished else batches.regions

    def __getitem__(self, step: int) -> Any:
        try:
            return self.prepare(step)
        except UserError as error:
            return error


def _unchanged(item: Any) -> Any:
    return item


def _cut(array: npt.NDArray[Any], start: npt.NDArray[Any], size: Size, fill: float) -> torch.Tensor:
    """The box at `start` of `size` voxels, (1, I, J, K), `fill` where it leaves the array."""
    low = np.clip(start, 0, array.shape)
    high = np.clip(start + size, 0, array.shape)
    piece = array[tuple(map(slice, low, high))]
    if piece.shape == tuple(size):
        return torch.from_numpy(np.array(piece, order="C"))[None]
    box = np.full(size, fill, array.dtype)
    box[tuple(map(slice, low - start, high - start))] = piece
    return torch.from_numpy(box)[None]
