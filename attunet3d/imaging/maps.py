"""Writes and reads several maps on one grid in a 4-D NIfTI file, a few planes at a time.

A 4-D file holds one map after the other, while a network gives a few planes of all maps at a time.
So a writer first stores boxes, compressed, in an unnamed temporary file beside the target and sorts
them at the end; a reader stores the planes in such a file in one pass. Memory holds a few planes.

Values in [0, 1] are stored as multiples of 1/65535 (uint16 and NIfTI's `scl_slope`).
"""

import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from attunet3d.core import MAX_VOXELS, Array, Box, DataError, Float32s, Size, whole_file
from attunet3d.imaging.byte_stream import ByteStream
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti import open_nifti
from attunet3d.imaging.nifti_writer import nifti_file, nifti_header
from attunet3d.imaging.volume import Volume

SLAB_VOXELS = 2**23  # of a map, sorted at a time: 16 MB
STEPS = 65535
PIECE = struct.Struct("<7I")  # start and stop along i, j, k; bytes that follow


class MapWriter:
    """Writes maps of values in [0, 1] on a scan's grid, box by box; use it in a `with` block.

    The file appears when the block ends without an error; voxels not written are 0.

    Args:
        path: `.nii.gz`; its folder must exist, with room for the file twice.
        like: The scan; its header's geometry is copied.
        count: Number of maps.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> scan = Volume(np.zeros((3, 4, 5), np.int16), Grid((3, 4, 5), np.eye(4)))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "maps.nii.gz")
        ...     with MapWriter(path, scan, count=2) as writer:
        ...         for k in range(5):
        ...             box = slice(0, 3), slice(0, 4), slice(k, k + 1)
        ...             writer.write(box, np.full((2, 3, 4, 1), k / 4, np.float32))
        ...     with MapReader(path, scan.grid, count=2) as reader:
        ...         reader.plane(2).shape, round(float(reader.plane(2)[1, 0, 0]), 4)
        ((2, 3, 4), 0.5)
    """

    def __init__(self, path: Path, like: Volume, count: int) -> None:
        self._path, self._like, self._count = Path(path), like, count
        with whole_file.writing(self._path):
            self._spool = _Spool(like.grid.shape, np.dtype(np.uint16), self._path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def write(self, box: Box, values: npt.NDArray[np.floating]) -> None:
        """Write all maps (count, i, j, k), clipped to [0, 1], in a box; boxes do not overlap."""
        assert len(values) == self._count, f"{len(values)} maps for {self._count}"
        with whole_file.writing(self._path):
            for index, map_values in enumerate(values):
                steps = np.rint(map_values.clip(0, 1) * STEPS).astype(np.uint16)
                if steps.any():
                    self._spool.add(index, box, steps)

    def finish(self) -> None:
        """Write the file."""
        scan = self._like
        shape = (*scan.grid.shape, self._count)
        header = nifti_header(shape, np.uint16, scan.geometry, scan.grid, 1 / STEPS)
        with closing(self._spool), nifti_file(self._path, header) as file:
            for index in range(self._count):
                for slab in self._spool.slabs(index):
                    file.write(slab.reshape(-1, order="F").data.cast("B"))

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._spool.close()


class MapReader:
    """Reads maps as `MapWriter` writes them, plane by plane; use it in a `with` block.

    Args:
        path: A 4-D NIfTI file, or a 3-D one for one map.
        grid: The grid that the maps must lie on.
        count: Number of maps that it must contain.
        folder: Folder of the unnamed temporary file, which is about as large as `path`; None: the
            system's folder for temporary files.

    Raises:
        DataError: The file is missing, damaged, or has other content.
        WriteError: The temporary file does not fit on the disk.
    """

    def __init__(self, path: Path, grid: Grid, count: int, folder: Path | None = None) -> None:
        with open_nifti(path, MAX_VOXELS, volumes=count) as (header, stream):
            if header.shape != grid.shape or not Grid(header.shape, header.affine_mm).matches(grid):
                raise DataError("does not lie on the label map's grid", cure="run infer again")
            self._count = count
            self._scale = np.float32(header.slope), np.float32(header.intercept)
            self._spool = _Spool(grid.shape, header.dtype, folder, thickness=1)
            try:
                self._fill(stream, header.dtype)
            except BaseException:
                self._spool.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def plane(self, k: int) -> Float32s:
        """Plane `k` of all maps, (count, I, J); any plane, at any time."""
        planes = np.stack([self._spool.slab(index, k)[..., 0] for index in range(self._count)])
        slope, intercept = self._scale
        return planes.astype(np.float32) * slope + intercept

    def _fill(self, stream: ByteStream, dtype: np.dtype[Any]) -> None:
        i, j, k = self._spool.shape
        plane = np.empty((i, j, 1), dtype, order="F")
        for index, number in product(range(self._count), range(k)):
            stream.fill(plane.reshape(-1, order="F").data.cast("B"))
            if plane.any():
                box = slice(0, i), slice(0, j), slice(number, number + 1)
                with whole_file.writing(self._spool.folder):
                    self._spool.add(index, box, plane)
        stream.finish()


class _Spool:
    """Stores boxes of maps in an unnamed file, each compressed, and reads them back by slabs.

    A slab is a few planes of one map; boxes are split at the borders of slabs.
    """

    def __init__(
        self, shape: Size, dtype: np.dtype[Any], folder: Path | None, thickness: int | None = None
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.folder = folder or Path(tempfile.gettempdir())
        self._thickness = thickness or max(1, SLAB_VOXELS // (shape[0] * shape[1]))
        self._places: dict[tuple[int, int], list[int]] = defaultdict(list)  # by map and slab
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self._end = 0

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def add(self, index: int, box: Box, values: Array) -> None:
        """Store the values (i, j, k) of a box of map `index`."""
        (i0, i1), (j0, j1), (k0, k1) = ((part.start, part.stop) for part in box)
        k = k0
        while k < k1:
            stop = min(k1, (k // self._thickness + 1) * self._thickness)
            part = values[..., k - k0 : stop - k0].tobytes(order="F")
            packed = isal_zlib.compress(part, 0)
            self._places[index, k // self._thickness].append(self._end)
            self._file.seek(self._end)
            self._file.write(PIECE.pack(i0, i1, j0, j1, k, stop, len(packed)) + packed)
            self._end += PIECE.size + len(packed)
            k = stop

    def slabs(self, index: int) -> Iterator[Array]:
        """The slabs of map `index`, bottom up."""
        for number in range(-(-self.shape[2] // self._thickness)):
            yield self.slab(index, number)

    def slab(self, index: int, number: int) -> Array:
        """Slab `number` of map `index` (I, J, planes), 0 where nothing was stored."""
        first = number * self._thickness
        count = min(self._thickness, self.shape[2] - first)
        slab = np.zeros((*self.shape[:2], count), self.dtype, order="F")
        for place in self._places.get((index, number), ()):
            self._file.seek(place)
            i0, i1, j0, j1, k0, k1, size = PIECE.unpack(self._file.read(PIECE.size))
            values = np.frombuffer(isal_zlib.decompress(self._file.read(size)), self.dtype)
            shape = i1 - i0, j1 - j0, k1 - k0
            slab[i0:i1, j0:j1, k0 - first : k1 - first] = values.reshape(shape, order="F")
        return slab
