"""Batches of training patches, each a pure function of (cases, settings, step).

No state passes from one step to the next: item `slot` of step `step` draws all it needs from a
generator seeded by (seed, step, slot). So a run resumed at any step sees what it would have seen,
whatever the number of threads. Every case is drawn equally often: item n is element n % N of the
(n // N)-th permutation.
"""

import sys
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attunet3d.core import Config, DataError, Size
from attunet3d.training import distributed
from attunet3d.training.augmentation import Augmentation
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.components import Components
from attunet3d.training.placement import to_device
from attunet3d.training.torch_state import one_core_threads

AHEAD = 3  # batches prepared before they are asked for; more where there are more threads
THREADS = {"cpu": 1, "cuda": 4}  # that prepare; on a CPU the network wants the cores


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees."""

    image: torch.Tensor
    """(B, 1, X, Y, Z) float32."""
    label: torch.Tensor
    """(B, 1, X, Y, Z) uint8 label indices (and the ignored value)."""
    case_ids: tuple[str, ...]
    annotated: tuple[tuple[int, ...] | None, ...] = ()
    """The classes that were annotated in each patch; None: all of them."""


class PatchBatches:
    """Random patches of prepared cases.

    Args:
        cases: The training cases.
        config: With resolved patch size, batch size and spacing.
        components: Transforms or a sampler of one's own.

    Raises:
        DataError: There is no case, or a size is not resolved.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        components: Components = Components(),  # noqa: B008 (frozen)
    ) -> None:
        training, spacing = config.training, config.preprocessing.spacing_mm
        if not cases:
            raise DataError("no training case", cure="give the fold at least one case with a label")
        if training.patch_size is None or training.batch_size is None or spacing is None:
            raise DataError(
                "training.patch_size, training.batch_size and preprocessing.spacing_mm must be set",
                cure="make a plan first, or set them",
            )
        self.cases, self.training = tuple(cases), training
        self.seed = training.seed % 2**63  # NumPy takes no negative one
        self.patch_size: Size = training.patch_size
        self.batch_size: int = training.batch_size
        self.augmentation = Augmentation(
            config.augmentation, training.patch_size, spacing, components.transforms
        )
        self.sampler = components.sampler or self._draw_centre
        self._order = lru_cache(4)(self._shuffled)

    def batch(
        self, step: int, device: torch.device | str = "cpu", slots: range | None = None
    ) -> Batch:
        """The batch of `step`, the same at every call, or the items `slots` of it.

        Raises:
            FileError: A case's files cannot be read.
        """
        device = torch.device(device)
        slots = range(self.batch_size) if slots is None else slots
        cases = [self.case_at(step, slot) for slot in slots]
        items = zip(cases, slots, strict=True)
        patches = [self._patch(case, step, slot, device) for case, slot in items]
        images, labels = zip(*patches, strict=True)
        return Batch(
            torch.stack(images),
            torch.stack(labels),
            tuple(case.id for case in cases),
            tuple(case.annotated for case in cases),
        )

    def case_at(self, step: int, slot: int) -> CachedCase:
        """The case of one item; `slot` counts through a batch."""
        round_number, place = divmod(step * self.batch_size + slot, len(self.cases))
        return self.cases[self._order(round_number)[place]]

    def _shuffled(self, round_number: int) -> list[int]:
        generator = np.random.default_rng([self.seed, 0, round_number])
        order: list[int] = generator.permutation(len(self.cases)).tolist()
        return order

    def _patch(
        self, case: CachedCase, step: int, slot: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of one item, cut from the mapped case and augmented on `device`."""
        generator = np.random.default_rng([self.seed, 1, step, slot])
        drawn = self.augmentation.draw_placement(generator)
        try:
            centre = np.asarray(self.sampler(case, generator))
            start = centre - np.array(self.patch_size) // 2
            start = start - (np.array(drawn.source_size) - self.patch_size) // 2
            image = _cut(case.image(), start, drawn.source_size, case.air)  # (1, I, J, K) float16
            label = _cut(case.label(), start, drawn.source_size, 0)  # (1, I, J, K) uint8
        except Exception as error:
            error.add_note(f"case {case.id}, step {step}")
            raise
        on_device = to_device(image, device), to_device(label, device)
        return self.augmentation(*on_device, drawn, generator)

    def _draw_centre(self, case: CachedCase, generator: np.random.Generator) -> Sequence[int]:
        """A voxel of a class, or the centre of a patch anywhere inside.

        Where voxels are ignored, such as around scribbles, the other patches are centred on a
        voxel that is not.
        """
        classes = case.classes
        if classes and generator.random() < self.training.foreground_fraction:
            index = classes[generator.integers(len(classes))]
            row = generator.integers(case.starts[index], case.starts[index + 1])
            voxel: list[int] = case.foreground()[row].tolist()
            return voxel
        if case.starts[1]:  # background is listed: voxels are ignored
            anywhere: list[int] = case.foreground()[generator.integers(case.starts[-1])].tolist()
            return anywhere
        patch = np.array(self.patch_size)
        spare = np.array(case.shape) - patch  # negative: the case is smaller, and comes centred
        start = generator.integers(np.maximum(spare, 0) + 1)
        start[spare < 0] = (spare // 2)[spare < 0]
        centre: list[int] = (start + patch // 2).tolist()
        return centre

    def iterate(
        self, start: int = 0, device: torch.device | str = "cpu", stop: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield this process's share of the batches of `start`, `start` + 1, … (to `stop`).

        `training.workers` threads prepare them ahead: copies and torch, which take the time there,
        run side by side. Close the iterator, or leave it, and they end.

        Raises:
            FileError: A case's files cannot be read.
        """
        device = torch.device(device)
        threads = self.training.workers or THREADS[device.type]
        steps = iter(range(start, sys.maxsize if stop is None else stop))
        slots = distributed.share(self.batch_size)
        pool = one_core_threads(threads, "batches")
        try:
            ahead = islice(steps, max(AHEAD, threads))
            waiting = deque(pool.submit(self.batch, step, device, slots) for step in ahead)
            while waiting:
                batch = waiting.popleft().result()
                for step in islice(steps, 1):
                    waiting.append(pool.submit(self.batch, step, device, slots))
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
