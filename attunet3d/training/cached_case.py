"""A prepared training case on disk: four files, memory-mapped when they are needed.

    meta.json         shape, value of air, where each class starts in foreground.npy, file sizes
    image.npy         (X, Y, Z) float16, normalised
    label.npy         (X, Y, Z) uint8 class indices
    foreground.npy    (n, 3) int32, voxels sampled from each class, class by class

These are plain arrays without pickles. An array is mapped for each use and released after it, so
memory does not grow with the number of cases, and processes share the pages. `cache` makes these
folders.
"""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from attunet3d.core import Array, FileError, Size, read_json, whole_file

ARRAYS = {"image.npy": np.float16, "label.npy": np.uint8, "foreground.npy": np.int32}
META_BYTES = 1_000_000
BUILDING, DAMAGED = ".building-", ".damaged-"  # begin the names of folders that are not a case
FOREGROUND_VOXELS = 10_000  # kept of each class; as many centres per case are as good as all
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, TypeError, MemoryError, RecursionError),
    *(SyntaxError, TokenError, OverflowError),  # of NumPy's reader of headers
)
MALFORMED: tuple[type[Exception], ...] = (*UNREADABLE, LookupError, AttributeError)


@dataclass(frozen=True)
class CachedCase:
    """A prepared case. It holds no array and no open file, so many of them take little memory.

    Example:
        >>> CachedCase("a", Path("a"), (9, 9, 9), -1.0, (0, 0, 0, 5)).classes
        (2,)
    """

    id: str
    folder: Path
    shape: Size
    air: float
    """The image's value of air, which fills patches beyond the border."""
    starts: tuple[int, ...]
    """The voxels of class c are rows `starts[c]` to `starts[c + 1]` of `foreground()`; background
    has some only where voxels are ignored."""
    annotated: tuple[int, ...] | None = None
    """The classes of the network that were annotated; None: all of them."""
    sampled: tuple[int, ...] | None = None
    """The stored classes that those are made of."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Stored classes, background left out, of which the case has an annotated voxel."""
        known = range(1, len(self.starts) - 1) if self.sampled is None else self.sampled
        return tuple(index for index in known if self.starts[index + 1] > self.starts[index])

    def image(self) -> npt.NDArray[np.float16]:
        """(X, Y, Z), mapped; raises `FileError` when the file cannot be read."""
        array: npt.NDArray[np.float16] = self._map("image.npy")
        return array

    def label(self) -> npt.NDArray[np.uint8]:
        """(X, Y, Z) class indices, mapped; raises `FileError` when the file cannot be read."""
        array: npt.NDArray[np.uint8] = self._map("label.npy")
        return array

    def foreground(self) -> npt.NDArray[np.int32]:
        """(n, 3) voxel indices, class by class, mapped; raises `FileError` as the others do."""
        array: npt.NDArray[np.int32] = self._map("foreground.npy")
        return array

    def _map(self, name: str) -> Any:
        try:
            return _open(self.folder / name)
        except UNREADABLE as error:
            raise FileError(
                f"case {self.id}: {self.folder / name} cannot be read ({error})",
                value=self.id,
                cure="start again, which repairs the cache",
            ) from None


def load_case(case_id: str, folder: Path) -> CachedCase | None:
    """The case in `folder`; None where it is missing, incomplete, or of other types and sizes."""
    try:
        meta = read_json(folder / "meta.json", META_BYTES)
        x, y, z = (int(size) for size in meta["shape"])
        starts = tuple(int(start) for start in meta["starts"])
        shapes = ((x, y, z), (x, y, z), (starts[-1], 3))
        for (name, dtype), shape in zip(ARRAYS.items(), shapes, strict=True):
            array = _open(folder / name)
            size = (folder / name).stat().st_size
            if (array.shape, array.dtype, size) != (shape, dtype, meta["bytes"][name]):
                return None
        air = float(meta["air"])
    except MALFORMED:
        return None
    sound = math.isfinite(air) and starts[0] == 0 and list(starts) == sorted(starts)
    return CachedCase(case_id, folder, (x, y, z), air, starts) if sound else None


def foreground_voxels(
    label: npt.NDArray[np.uint8], classes: int, ignored: int | None = None
) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Up to FOREGROUND_VOXELS voxels of each class, of background only where voxels are ignored.

    There, a patch anywhere may hold nothing to learn from; elsewhere, background is everywhere.

    Returns:
        (n, 3) voxel indices, class by class, always the same ones; and the `classes + 1` rows
        at which the classes start and end.

    Example:
        >>> foreground_voxels(np.array([[[0, 2, 2]]], np.uint8), 3)[0].tolist()
        [[0, 0, 1], [0, 0, 2]]
    """
    flat, starts = [np.zeros(0, np.int64)], [0]
    sparse = ignored is not None and bool((label == ignored).any())
    for index in range(classes):
        voxels = np.flatnonzero(label == index) if index or sparse else flat[0]
        if len(voxels) > FOREGROUND_VOXELS:
            generator = np.random.default_rng(index)
            voxels = np.sort(generator.choice(voxels, FOREGROUND_VOXELS, replace=False))
        flat.append(voxels)
        starts.append(starts[-1] + len(voxels))
    points = np.stack(np.unravel_index(np.concatenate(flat), label.shape), axis=1)
    return points.astype(np.int32), starts


@contextmanager
def new_folder(case_id: str, parent: Path, cure: str) -> Iterator[Path]:
    """An empty folder in `parent` for `store_case`, deleted after the block unless published.

    Raises:
        FileError: The block could not write, as on a full disk; its message ends with `cure`.
    """
    working = parent / f"{BUILDING}{uuid.uuid4().hex}"
    try:
        working.mkdir()
        yield working
    except OSError as error:
        reason = error.strerror or f"the disk is full: {error}"  # NumPy's has no number
        raise FileError(
            f"case {case_id}: cannot be stored in {parent} ({reason})", value=case_id, cure=cure
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def store_case(
    folder: Path,
    case_id: str,
    arrays: tuple[Array, Array, Array],
    air: float,
    starts: Sequence[int],
) -> None:
    """Write the four files of a case into a folder; they are on disk when this returns.

    Args:
        folder: Must exist.
        case_id: The case.
        arrays: Image (X, Y, Z) float16, label (X, Y, Z) uint8, foreground (n, 3) int32.
        air: See `CachedCase`.
        starts: See `CachedCase`.
    """
    for name, array in zip(ARRAYS, arrays, strict=True):
        with (folder / name).open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    sizes = {name: (folder / name).stat().st_size for name in ARRAYS}
    shape = list(arrays[0].shape)
    meta = {"case": case_id, "shape": shape, "air": air, "starts": list(starts), "bytes": sizes}
    whole_file.write_text(folder / "meta.json", json.dumps(meta) + "\n")


def publish_case(case_id: str, working: Path, target: Path) -> CachedCase:
    """Rename the complete folder; where another process was first, take its folder.

    Args:
        case_id: The case.
        working: Holds what `store_case` wrote, beside `target`.
        target: The folder's name from now on; one of that name that is damaged is deleted.

    Raises:
        FileError: That one cannot be moved away.
    """
    for _ in range(10):
        try:
            os.rename(working, target)  # fails where a folder with content has the name
        except OSError:
            if not target.exists():
                raise
        found = load_case(case_id, target)
        if found is not None:
            return found
        aside = target.with_name(f"{DAMAGED}{uuid.uuid4().hex}")
        with suppress(OSError):  # another builder may have moved it first
            os.rename(target, aside)
        shutil.rmtree(aside, ignore_errors=True)
    raise FileError(
        f"case {case_id}: {target} is damaged and cannot be moved away",
        value=case_id,
        cure="delete it",
    )


def _open(path: Path) -> Any:
    """Map a .npy file; an empty array, which cannot be mapped, is made.

    Like `np.load`, but the header is parsed once and no path resolved: a patch opens three files.
    """
    with path.open("rb") as file:
        major, minor = np.lib.format.read_magic(file)
        if (major, minor) != (1, 0):  # what `np.save` writes for plain arrays
            raise ValueError(f"version {major}.{minor} of the format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
