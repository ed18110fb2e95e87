"""Writes the results of one case: maps and label map first, then the sidecar that says they stand.

Maps are written while the network runs, a few planes at a time; they get their names at the end.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from attunet3d.core import WriteError, whole_file
from attunet3d.imaging import MapWriter, Segmentation, Volume
from attunet3d.inference import results
from attunet3d.inference.record import Record
from attunet3d.inference.results import CaseFiles


class CaseMaps:
    """The map files of a case while they are made.

    Args:
        files: Where; the folder exists.
        scan: The scan, for its grid.
    """

    def __init__(self, files: CaseFiles, scan: Volume) -> None:
        self._files, self._scan = files, scan
        self._writers: dict[str, MapWriter] = {}

    def open(self, kind: str, count: int) -> MapWriter:
        """Begin the maps of a kind, "probabilities" or "attention", anew."""
        if kind in self._writers:
            _abandon(self._writers.pop(kind))
        path = whole_file.make_folder(self._files.maps(kind).parent) / self._files.maps(kind).name
        self._writers[kind] = MapWriter(path, self._scan, count)
        return self._writers[kind]

    def finish(self) -> list[Path]:
        """Give the files their names; return them."""
        for writer in self._writers.values():
            writer.__exit__(None, None, None)
        return [self._files.maps(kind) for kind in self._writers]

    def abandon(self) -> None:
        """Leave nothing behind."""
        for writer in self._writers.values():
            _abandon(writer)


def _abandon(writer: MapWriter) -> None:
    writer.__exit__(KeyboardInterrupt, None, None)


def write_case(
    files: CaseFiles,
    segmentation: Segmentation,
    record: Record,
    maps: CaseMaps | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a case, the sidecar last.

    Args:
        files: Where; the folder exists.
        segmentation: The label map.
        record: What was done; the time of writing is added.
        maps: Maps that were handed on while they were computed.
        facts: What else the sidecar shall hold.

    Raises:
        UserError: A file cannot be written; the sidecar is then not written either.
    """
    begin = time.perf_counter()
    _mark_begun(files)
    written: Sequence[Path] = [] if maps is None else maps.finish()
    segmentation.save(files.mask)
    seconds = {**record.seconds, "writing": round(time.perf_counter() - begin, 4)}
    content = {**asdict(replace(record, seconds=seconds)), **(facts or {})}
    results.write_sidecar(files, segmentation, [files.mask, *written], content)
    files.begun.unlink(missing_ok=True)


def _mark_begun(files: CaseFiles) -> None:
    try:
        files.begun.touch()
    except OSError as error:
        raise WriteError(
            f"cannot be written ({error.strerror})",
            path=files.mask,
            cure="free space or choose another output folder",
        ) from error
