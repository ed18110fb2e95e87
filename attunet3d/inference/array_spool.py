"""Arrays that are needed again later: in memory while they are few, else in a temporary file."""

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
