"""Many scans, one after the other: the next is read and the last written while the network runs.

What is done stays done: a call that was stopped, even by SIGKILL, is finished by the same call. A
scan that cannot be segmented is named with its reason, and the others are done.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from attunet3d.core import (
    DataError,
    FileError,
    Progress,
    UserError,
    case_names,
    locked_folder,
    progress,
)
from attunet3d.datasets import Split
from attunet3d.imaging import Volume, straightened
from attunet3d.inference import results, scans
from attunet3d.inference.case_writer import CaseMaps, Judgement, write_case
from attunet3d.inference.cohort_options import CohortOptions
from attunet3d.inference.predictor import Predictor
from attunet3d.inference.results import CaseFiles, Outcome
from attunet3d.inference.scans import Scan
from attunet3d.inference.statistics_table import StatisticsTable

MOST_AHEAD = 4  # scans read ahead where there are cores for it; each takes its size in memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A scan that is to be done."""

    files: CaseFiles
    scan: Path
    origin: dict[str, Any]  # what the sidecar must say for the case to count as done


@dataclass(frozen=True)
class _Loaded:
    volume: Volume
    checksum: str
    seconds: float


def segment_cohort(
    predictor: Predictor,
    cases: Sequence[Scan],
    out_dir: Path,
    options: CohortOptions | None = None,
    split: Split | None = None,
) -> Outcome:
    """Segment scans into `out_dir`; see `results` for what lies there afterwards.

    Args:
        predictor: The model.
        cases: Case ids and paths; an id that comes twice fails.
        out_dir: Made when missing; no other process may write to it meanwhile.
        options: What else to write.
        split: What the model has seen, for the sidecars and a warning.

    Returns:
        What was done now, what was done already, and what failed and why.

    Raises:
        ModelError: Attention maps are asked for, and the model has no gates.
        WriteError: `out_dir` cannot be made, or another process writes to it.
    """
    options, split = options or CohortOptions(), split or Split()
    if options.attention:
        predictor.require_attention()
    case_ids = [case_id for case_id, _ in cases]
    if split.seen(case_ids):
        _log.warning("%s", split.remark(case_ids))
    with locked_folder(out_dir, "infer"):
        results.sweep(out_dir)
        with progress(len(cases), "infer", "scan") as bar:
            outcome = Cohort(predictor, cases, Path(out_dir), options, split, bar).run()
        with _told("failures.json"):
            results.write_failures(out_dir, outcome.failures)
    return outcome


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Log that a file of the folder cannot be written: a full disk fails no case that is done."""
    try:
        yield
    except (UserError, OSError) as error:
        _log.error("%s", results.reason(error), extra={"case": name})


class Cohort:
    """One call of `segment_cohort`."""

    def __init__(
        self,
        predictor: Predictor,
        cases: Sequence[Scan],
        out_dir: Path,
        options: CohortOptions,
        split: Split,
        bar: Progress,
    ) -> None:
        self.predictor = predictor
        self.cases = cases
        self.out_dir = out_dir
        self.options = options
        self.split = split
        self.bar = bar
        self.outcome = Outcome()
        self.table = StatisticsTable(out_dir)
        # With few cores the network needs them; beside a GPU they are there for reading.
        self.ahead = max(1, min(MOST_AHEAD, (os.cpu_count() or 1) // 4))

    @cached_property
    def inputs(self) -> set[tuple[int, int]]:
        """Identities of all scans; asked for only where a result's name is taken."""
        return {scans.identity(path) for _, path in self.cases if path.exists()}

    def run(self) -> Outcome:
        """Segment the scans."""
        ahead = self.ahead
        with ThreadPoolExecutor(ahead) as readers, ThreadPoolExecutor(ahead) as writers:
            writing: deque[tuple[str, Future[None]]] = deque()
            for job, loading in self._read_ahead(readers, self.jobs()):
                with self.bar.item() as share_done:
                    write = self._segment(job, loading, share_done)
                if write is None:
                    continue
                if len(writing) >= ahead:
                    self._settle(*writing.popleft())
                writing.append((job.files.case_id, writers.submit(write)))
                del write  # the writer frees what it holds when it is done
            while writing:
                self._settle(*writing.popleft())
        with _told("statistics.csv"):
            self.table.write()
        return self.outcome

    def jobs(self) -> Iterator[Job]:
        """The scans that are to be done; the others are counted on the way."""
        for case_id, paths in scans.by_id(self.cases).items():
            try:
                job = self._job(case_id, paths)
                if self.options.overwrite or not self._is_done(job):
                    yield job
                    continue
            except Exception as error:
                self.fail(case_id, error)
            else:
                self.outcome.skipped.append(case_id)
            self.bar.update()

    def _job(self, case_id: str, paths: list[Path]) -> Job:
        files = results.case_files(self.out_dir, case_id)
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(
                f"{names} have the same case id {case_id!r}",
                value=case_id,
                cure="rename all but one",
            )
        scan = paths[0]
        for path in files.all:
            if path.exists() and scans.identity(path) in self.inputs:
                what = "its own result" if path.samefile(scan) else f"the result of {case_id!r}"
                raise DataError(
                    f"is a scan and would be overwritten by {what}",
                    path=path,
                    cure="choose another output folder",
                )
        origin = {"model": self.predictor.checksum, "settings": self.predictor.settings}
        return Job(files, scan, origin)

    def _is_done(self, job: Job) -> bool:
        files = job.files
        if not files.sidecar.exists():
            return False
        options = self.options
        wanted = [files.mask, *(files.maps(kind) for kind in options.kinds)]
        if options.mask_files:
            names = self.predictor.labels
            wanted += [files.label_mask(name) for value, name in names.items() if value]
        if options.preview and not options.orthogonal:
            wanted.append(files.preview)
        choices = {"series": None, "orthogonal": None, **self.options.choices}
        origin = {**job.origin, **choices, "scan_checksum": scans.checksum(job.scan)}
        return results.is_done(files, wanted, origin)

    def _read_ahead(
        self, readers: ThreadPoolExecutor, jobs: Iterator[Job]
    ) -> Iterator[tuple[Job, Future[_Loaded]]]:
        waiting: deque[tuple[Job, Future[_Loaded]]] = deque()
        for job in jobs:
            waiting.append((job, readers.submit(self._load, job.scan)))
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

    def _segment(
        self, job: Job, loading: Future[_Loaded], share_done: Any
    ) -> "partial[None] | None":
        """The call that writes the case, or None for a scan that failed."""
        maps = None
        try:
            loaded = loading.result()
            maps = CaseMaps(job.files, loaded.volume)
            segmentation, record = self.predictor.segment_into(
                loaded.volume, self.options.kinds, maps.open, share_done
            )
            if self.options.orthogonal:
                segmentation = straightened(segmentation)
            if not self.options.overwrite:
                results.spare_others_work(job.files, segmentation)
        except BaseException as error:
            if maps is not None:
                maps.abandon()
            if not isinstance(error, Exception):
                raise
            self.fail(job.files.case_id, error)
            return None
        for text in [*record.warnings, *record.fallbacks]:
            _log.warning("%s", text, extra={"case": job.files.case_id})
        record = replace(record, seconds={"reading": round(loaded.seconds, 4), **record.seconds})
        facts = {
            **self.options.choices,
            "scan": case_names.path_from(self.out_dir, job.scan),
            "scan_checksum": loaded.checksum,
            "role_in_training": self.split.role(job.files.case_id),
        }
        judgement = Judgement(
            loaded.volume,
            self.predictor.doubt_rule,
            self.predictor.label_ranges,
            mask_files=self.options.mask_files,
            preview=self.options.preview,
        )
        return partial(write_case, job.files, segmentation, record, maps, facts, judgement)

    def _settle(self, case_id: str, task: "Future[None]") -> None:
        try:
            task.result()
        except Exception as error:
            self.fail(case_id, error)
            return
        self.outcome.done.append(case_id)
        with _told("statistics.csv"):
            self.table.add(results.case_files(self.out_dir, case_id).sidecar)

    def fail(self, case_id: str, error: Exception) -> None:
        """Note and log that a case failed."""
        reason = results.reason(error, maps=bool(self.options.kinds))
        self.outcome.failures[case_id] = reason
        _log.error("%s", reason, extra={"case": case_id})
