"""Writes the results of one case: maps and label map first, then the sidecar that says they stand.

Maps are written while the network runs, a few planes at a time; they get their names at the end.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.cohort import results
from attunet3d.cohort.doubt import DoubtRule, Ranges, doubt_of
from attunet3d.cohort.preview import draw_preview
from attunet3d.cohort.results import CaseFiles
from attunet3d.core import whole_file
from attunet3d.imaging import (
    MapWriter,
    Segmentation,
    Volume,
    measure_labels,
    write_nifti_planes,
)
from attunet3d.inference import Record


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
            self._writers.pop(kind).abandon()
        path = whole_file.make_folder(self._files.maps(kind).parent) / self._files.maps(kind).name
        self._writers[kind] = MapWriter(path, self._scan, count)
        return self._writers[kind]

    def finish(self) -> list[Path]:
        """Give the files their names; return them."""
        for writer in self._writers.values():
            writer.finish()
        return [self._files.maps(kind) for kind in self._writers]

    def abandon(self) -> None:
        """Leave nothing behind."""
        for writer in self._writers.values():
            writer.abandon()


@dataclass(frozen=True, eq=False)
class Judgement:
    """What tells how far a label map can be believed, and what is written to look at it.

    Args:
        scan: On the grid of the label map, or another for a label map that was straightened.
        rule: Gives one word per label.
        ranges: Of volumes and HU in training.
        mask_files: Write a mask per label.
        preview: Draw three slices.
    """

    scan: Volume
    rule: DoubtRule
    ranges: Ranges
    mask_files: bool = False
    preview: bool = False


def write_case(
    files: CaseFiles,
    segmentation: Segmentation,
    record: Record,
    maps: CaseMaps | None = None,
    facts: Mapping[str, Any] | None = None,
    judgement: Judgement | None = None,
) -> None:
    """Write a case, the sidecar last.

    Args:
        files: Where; the folder exists.
        segmentation: The label map.
        record: What was done; the time of writing is added.
        maps: Maps that were handed on while they were computed.
        facts: What else the sidecar shall hold.
        judgement: Adds the doubt of each label.

    Raises:
        UserError: A file cannot be written; the sidecar is then not written either.
    """
    begin = time.perf_counter()
    with whole_file.writing(files.mask):
        files.begun.touch()
    written = [] if maps is None else maps.finish()
    segmentation.save(files.mask)
    content = {**asdict(record), **(facts or {})}
    measures = None
    if judgement is not None:
        on_grid = judgement.scan.grid.shape == segmentation.grid.shape
        measures = measure_labels(segmentation, judgement.scan if on_grid else None)
        expected, members = content.pop("expected_dice"), content.pop("member_dice")
        content["doubt"] = doubt_of(measures, expected, members, judgement.rule, judgement.ranges)
        if judgement.mask_files:
            written += write_label_masks(files, segmentation)
        if judgement.preview and on_grid:
            whole_file.make_folder(files.preview.parent)
            draw_preview(files.preview, judgement.scan, segmentation)
            written.append(files.preview)
    content["seconds"] = {**record.seconds, "writing": round(time.perf_counter() - begin, 4)}
    results.write_sidecar(files, segmentation, [files.mask, *written], content, measures)
    files.begun.unlink(missing_ok=True)


def write_label_masks(files: CaseFiles, segmentation: Segmentation) -> list[Path]:
    """Write a mask (0 and 1) per foreground label, as TotalSegmentator lays them out.

    Planes are written one by one: memory holds none of the masks.

    Returns:
        The files.

    Raises:
        WriteError: A label's name cannot be that of a file, or a file cannot be written.
    """
    paths = files.label_masks(segmentation.labels)
    whole_file.make_folder(files.folder / files.case_id)
    grid = segmentation.grid
    for value, path in paths.items():
        planes = (segmentation.mask_of(value, np.s_[..., k]) for k in range(grid.shape[2]))
        write_nifti_planes(path, planes, segmentation.geometry, grid)
    return list(paths.values())
