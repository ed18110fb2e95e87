"""A model and the scans that it is given: the next is read and the last written meanwhile.

What is done stays done: a call that was stopped, even by SIGKILL, is finished by the same call. A
scan that cannot be segmented is named with its reason, and the others are done.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from attunet3d.cohort import outcome, results, scans
from attunet3d.cohort.call import CohortCall, Events
from attunet3d.cohort.case_writer import CaseMaps, Judgement, write_case
from attunet3d.cohort.doubt import DoubtRule
from attunet3d.cohort.results import CaseFiles
from attunet3d.core import DataError, FileError, case_names, usable_cores
from attunet3d.imaging import Volume, is_temporary, straightened
from attunet3d.inference import Predictor

MOST_AHEAD = 4  # scans read ahead where there are cores for it; each takes its size in memory

Item = tuple[str, list[Path]]
"""A case id, and the scans that have it."""
_log = logging.getLogger(__name__)


class Todo(NamedTuple):
    """A scan that is to be segmented, and where its results go."""

    files: CaseFiles
    scan: Path


class _Loaded(NamedTuple):
    volume: Volume
    checksum: str
    seconds: float


class ScanLoop:
    """Segments scans as they come, wherever they come from.

    Args:
        predictor: The model.
        call: What is to be done with them.
        events: Hears what becomes of each.
        cores: That this loop may use; None: all.
    """

    def __init__(
        self, predictor: Predictor, call: CohortCall, events: Events, cores: int | None = None
    ) -> None:
        self.predictor, self.call, self.events = predictor, call, events
        self.options = call.options
        self._doubt_rule = DoubtRule.of(predictor.notes)
        # With few cores the network needs them; beside a GPU they are there for reading.
        self.ahead = max(1, min(MOST_AHEAD, (cores or usable_cores()) // 4))

    @cached_property
    def inputs(self) -> set[tuple[int, int]]:
        """Identities of all scans; asked for only where a result's name is taken."""
        return {scans.identity(path) for _, path in self.call.cases if path.exists()}

    def run(self, items: Iterable[Item]) -> None:
        """Segment scans; they are asked for a few ahead, and all are settled at the end."""
        ahead = self.ahead
        with ThreadPoolExecutor(ahead) as readers, ThreadPoolExecutor(ahead) as writers:
            writing: deque[tuple[str, Future[None]]] = deque()
            for one, loading in self._read_ahead(readers, self.todo(items)):
                write = self._segment(one, loading)
                if write is None:
                    continue
                if len(writing) >= ahead:
                    self._settle(*writing.popleft())
                writing.append((one.files.case_id, writers.submit(write)))
                del write  # the writer frees what it holds when it is done
            while writing:
                self._settle(*writing.popleft())

    def todo(self, items: Iterable[Item]) -> Iterator[Todo]:
        """The scans that are to be done; the others are told of on the way."""
        for case_id, paths in items:
            try:
                one = self._todo(case_id, paths)
                if self.options.overwrite or not self._is_done(one):
                    yield one
                    continue
            except Exception as error:
                self.fail(case_id, error)
            else:
                self.events.skipped(case_id)

    def _todo(self, case_id: str, paths: list[Path]) -> Todo:
        files = results.case_files(self.call.out_dir, case_id)
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(
                f"{names} have the same case id {case_id!r}",
                value=case_id,
                cure="rename all but one",
            )
        scan = paths[0]
        ours = [*self._wanted(files), files.sidecar]
        ours += [files.dicom_seg] * self.options.dicom_seg
        for path in ours:
            if path.exists() and scans.identity(path) in self.inputs:
                what = "its own result" if path.samefile(scan) else f"the result of {case_id!r}"
                raise DataError(
                    f"is a scan and would be overwritten by {what}",
                    path=path,
                    cure="choose another output folder",
                )
        return Todo(files, scan)

    def _wanted(self, files: CaseFiles) -> list[Path]:
        """The files that a case must have beside its sidecar, which holds their checksums."""
        options = self.options
        wanted = [files.mask, *(files.maps(kind) for kind in options.kinds)]
        if options.mask_files:
            wanted += files.label_masks(self.predictor.labels).values()
        if options.preview and not options.orthogonal:
            wanted.append(files.preview)
        return wanted

    def _is_done(self, one: Todo) -> bool:
        if not one.files.sidecar.exists():
            return False
        origin = {
            "model": self.predictor.checksum,
            "settings": self.predictor.settings,
            **{"series": None, "orthogonal": None, **self.options.choices},
            "scan_checksum": scans.checksum(one.scan),
        }
        return results.is_done(one.files, self._wanted(one.files), origin)

    def _read_ahead(
        self, readers: ThreadPoolExecutor, todo: Iterator[Todo]
    ) -> Iterator[tuple[Todo, Future[_Loaded]]]:
        waiting: deque[tuple[Todo, Future[_Loaded]]] = deque()
        for one in todo:
            waiting.append((one, readers.submit(self._load, one.scan)))
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _load(self, path: Path) -> _Loaded:
        """Read a scan, and make sure that its checksum is that of what was read."""
        begin, version = time.perf_counter(), scans.version(path)
        volume = self.predictor.read(path, self.options.series)
        checksum = scans.checksum(path)
        if scans.version(path) != version:
            raise FileError("changed while it was read", path=path, cure="run the call again")
        return _Loaded(volume, checksum, time.perf_counter() - begin)

    def _segment(self, one: Todo, loading: Future[_Loaded]) -> "partial[None] | None":
        """The call that writes the case, or None for a scan that failed."""
        case_id, maps = one.files.case_id, None
        try:
            loaded = loading.result()
            maps = CaseMaps(one.files, loaded.volume)
            segmentation, record = self.predictor.segment_into(
                loaded.volume, self.options.kinds, maps.open, partial(self.events.reached, case_id)
            )
            if self.options.orthogonal:
                segmentation = straightened(segmentation)
            if not self.options.overwrite:
                masks = self.options.mask_files
                results.spare_others_work(one.files, segmentation, mask_files=masks)
        except BaseException as error:
            if maps is not None:
                maps.abandon()
            if not isinstance(error, Exception):
                raise
            self.fail(case_id, error)
            return None
        for text in [*record.warnings, *record.fallbacks]:
            _log.warning("%s", text, extra={"case": case_id})
        record = replace(record, seconds={"reading": round(loaded.seconds, 4), **record.seconds})
        facts = {
            **self.options.choices,
            "scan": None
            if is_temporary(one.scan)
            else case_names.path_from(self.call.out_dir, one.scan),
            "scan_checksum": loaded.checksum,
            "role_in_training": self.call.split.role(case_id),
        }
        judgement = Judgement(
            loaded.volume,
            self._doubt_rule,
            self.predictor.notes.get("label_ranges", {}),
            mask_files=self.options.mask_files,
            preview=self.options.preview,
        )
        return partial(write_case, one.files, segmentation, record, maps, facts, judgement)

    def _settle(self, case_id: str, task: "Future[None]") -> None:
        try:
            task.result()
        except Exception as error:
            self.fail(case_id, error)
            return
        self.events.done(case_id)

    def fail(self, case_id: str, error: Exception) -> None:
        """Tell that a case failed."""
        self.events.failed(case_id, outcome.failure_reason(error, maps=bool(self.options.kinds)))
