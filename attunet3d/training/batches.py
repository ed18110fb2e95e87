"""Batches of training patches, each a pure function of (cases, settings, step).

No state passes from one step to the next: item `slot` of step `step` draws all it needs from a
generator seeded by (seed, step, slot). So a run resumed at any step sees what it would have seen,
whatever the number of threads, and every case comes as often: item number n is case n mod N of
shuffle n div N.
"""

import sys
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attunet3d.core import Config, DataError, Size
from attunet3d.training.augmentation import Augmentation
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.placement import sent
from attunet3d.training.threads import one_core_threads

AHEAD = 3  # batches prepared before they are asked for; more where there are more threads
THREADS = {"cpu": 1, "cuda": 4}  # that prepare; on a CPU the network wants the cores


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


class PatchBatches:
    """Random patches of prepared cases.

    Args:
        cases: The training cases.
        config: With resolved patch size, batch size and spacing.

    Raises:
        DataError: There is no case, or a size is not resolved.
    """

    def __init__(self, cases: Sequence[CachedCase], config: Config) -> None:
        training, spacing = config.training, config.preprocessing.spacing_mm
        if not cases:
            raise DataError("no training case; give the fold at least one case with a label")
        if training.patch_size is None or training.batch_size is None or spacing is None:
            raise DataError(
                "training.patch_size, training.batch_size and preprocessing.spacing_mm must be "
                "set; make a plan first, or set them"
            )
        self.cases, self.training = tuple(cases), training
        self.seed = training.seed % 2**63  # NumPy takes no negative one
        self.patch_size: Size = training.patch_size
        self.batch_size: int = training.batch_size
        self.augmentation = Augmentation(config.augmentation, training.patch_size, spacing)

    def batch(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """The batch of `step`, the same at every call.

        Raises:
            FileError: A case's files cannot be read.
        """
        patches = [self._patch(step, slot, torch.device(device)) for slot in range(self.batch_size)]
        return Batch(
            torch.stack([patch["image"] for patch in patches]),
            torch.stack([patch["label"] for patch in patches]),
            tuple(self.case_at(step, slot).id for slot in range(self.batch_size)),
        )

    def case_at(self, step: int, slot: int) -> CachedCase:
        """The case of one item; `slot` counts through a batch."""
        number = step * self.batch_size + slot
        round_number, place = divmod(number, len(self.cases))
        generator = np.random.default_rng([self.seed, 0, round_number])
        return self.cases[int(generator.permutation(len(self.cases))[place])]

    def _patch(self, step: int, slot: int, device: torch.device) -> dict[str, Any]:
        """`image` and `label` of one item, cut from the mapped case and augmented on `device`."""
        case = self.case_at(step, slot)
        generator = np.random.default_rng([self.seed, 1, step, slot])
        seed = int(generator.integers(2**63))
        size = self.augmentation.source_size(seed)
        try:
            start = self._start(case, generator) - (np.array(size) - self.patch_size) // 2
            image = _cut(case.image(), start, size, case.air)  # (1, I, J, K) float16
            label = _cut(case.label(), start, size, 0)  # (1, I, J, K) uint8
        except Exception as error:
            error.add_note(f"case {case.id}, step {step}")
            raise
        region = {"image": sent(image, device), "label": sent(label, device)}
        return self.augmentation(region, seed)

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

    def iterate(
        self, start: int = 0, device: torch.device | str = "cpu", stop: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of `start`, `start` + 1, … (to `stop`), prepared ahead on `device`.

        `training.workers` threads prepare them: what takes time there, copies and torch, runs side
        by side. Close the iterator, or leave it, and they end.

        Raises:
            FileError: A case's files cannot be read.
        """
        device = torch.device(device)
        threads = self.training.workers or THREADS[device.type]
        steps = iter(range(start, sys.maxsize if stop is None else stop))
        pool = one_core_threads(threads, "batches")
        try:
            ahead = islice(steps, max(AHEAD, threads))
            waiting = deque(pool.submit(self.batch, step, device) for step in ahead)
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(self.batch, step, device) for step in islice(steps, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def _cut(
    array: npt.NDArray[Any], start: npt.NDArray[Any], size: Size, fill: float
) -> npt.NDArray[Any]:
    """The box at `start` of `size` voxels, (1, I, J, K), `fill` where it leaves the array."""
    low = np.clip(start, 0, array.shape)
    high = np.clip(start + size, 0, array.shape)
    piece = array[tuple(map(slice, low, high))]
    if piece.shape == tuple(size):
        return np.array(piece, order="C")[None]
    box = np.full(size, fill, array.dtype)
    box[tuple(map(slice, low - start, high - start))] = piece
    return box[None]
