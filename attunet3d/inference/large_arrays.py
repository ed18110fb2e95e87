"""Large arrays: zeroed ones straight from the kernel, and ones that may lie in a temporary file.

Where malloc keeps what is freed (`command_line.keep_freed_memory`), small blocks that live on
split the hole that a large array leaves. The next large array no longer fits, and memory grows from
scan to scan. What is held for a whole scan is therefore kept out of malloc.
"""

import math
import mmap
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from attunet3d.core import WriteError

MOST_BYTES = 2**28  # kept in memory


class ArraySpool:
    """Keeps arrays in order, in the system's folder of temporary files (`TMPDIR`).

    Example:
        >>> spool = ArraySpool()
        >>> spool.add(np.arange(3))
        >>> [array.tolist() for array in spool]
        [[0, 1, 2]]
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(MOST_BYTES)  # noqa: SIM115
        self._count = 0
        self.close = weakref.finalize(self, self._file.close)  # also where nobody calls it
        """Free the space."""

    def add(self, array: npt.NDArray[Any]) -> None:
        """Store a copy of an array.

        Raises:
            WriteError: The disk is full.
        """
        try:
            np.save(self._file, array, allow_pickle=False)
        except OSError as error:
            raise WriteError(
                f"the temporary file cannot be written ({error.strerror or error})",
                cure="free space, or name another folder in the environment variable TMPDIR",
            ) from error
        self._count += 1

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        self._file.seek(0)
        for _ in range(self._count):
            yield np.load(self._file, allow_pickle=False)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros in C order; pages that are never written take no memory.

    Example:
        >>> zeros((2, 3), np.uint8).tolist()
        [[0, 0, 0], [0, 0, 0]]
    """
    block = mmap.mmap(-1, max(1, math.prod(shape) * np.dtype(dtype).itemsize))
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: a tenth of the page faults' time
        block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, dtype, math.prod(shape)).reshape(shape)
