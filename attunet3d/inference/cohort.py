"""Many scans, one after the other: the next is read and the last written while the network runs.

What is done stays done: a call that was stopped, even by SIGKILL, is finished by the same call. A
scan that cannot be segmented is named with its reason, and the others are done.
"""

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attunet3d.core import (
    DataError,
    Progress,
    UserError,
    case_names,
    locked_folder,
    progress,
)
from attunet3d.datasets import Manifest, Split, held_out
from attunet3d.imaging import Volume, find_scans, parts_of
from attunet3d.inference import results
from attunet3d.inference.export import write_prediction
from attunet3d.inference.predictor import Prediction, Predictor
from attunet3d.inference.results import CaseFiles, Outcome

_log = logging.getLogger(__name__)
MOST_AHEAD = 4  # scans read ahead where there are cores for it; each takes its size in memory

Scan = tuple[str, Path]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What to write beside the label maps, and whether to redo what is done."""

    probabilities: bool = False
    attention: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Job:
    files: CaseFiles
    scan: Path
    origin: dict[str, Any]  # what the sidecar must say for the case to count as done


@dataclass(frozen=True)
class _Read:
    volume: Volume
    fingerprint: str
    seconds: float


def find_cases(
    path: Path,
    root: Path | None = None,
    fold: int | None = None,
    *,
    everything: bool = False,
    split: Split | None = None,
) -> list[Scan]:
    """List the scans that INPUT names: a file, a folder of them, a DICOM series or a manifest.

    Args:
        path: INPUT.
        root: Where the manifest's paths begin; None: where it says.
        fold: Of a manifest, its validation cases.
        everything: Of a manifest, all cases.
        split: What the model has seen; None: nothing is known. See `datasets.held_out`.

    Raises:
        UserError: There is no scan.
    """
    if path.suffix.lower() == ".json":
        manifest = Manifest.load(path, root)
        cases = held_out(manifest, split or Split(), fold=fold, everything=everything)
        return [(case.id, case.image) for case in cases]
    if fold is not None or root is not None or everything:
        raise DataError("is not a manifest; --fold, --all and --root go with one", path=path)
    return find_scans(path)


def segment_cohort(
    predictor: Predictor,
    scans: Sequence[Scan],
    out_dir: Path,
    wishes: Wishes | None = None,
    split: Split | None = None,
) -> Outcome:
    """Segment `scans` into `out_dir`; see `results` for what lies there afterwards.

    Args:
        predictor: The model.
        scans: Case ids and paths; an id that comes twice fails.
        out_dir: Made when missing.
        wishes: What else to write.
        split: What the model has seen, for the sidecars and a line on stderr.

    Returns:
        What was done now, what was done already, and what failed and why.

    Raises:
        UserError: `out_dir` cannot be made.
    """
    split = split or Split()
    case_ids = [case_id for case_id, _ in scans]
    if split.seen(case_ids):
        _log.warning("%s", split.remark(case_ids))
    with locked_folder(out_dir, "infer"):
        results.sweep(out_dir)
        with progress(len(scans), "infer", "scan") as bar:
            outcome = _Cohort(predictor, scans, out_dir, wishes or Wishes(), split, bar).run()
        try:
            results.write_failures(out_dir, outcome.failures)
        except (UserError, OSError) as error:  # a full disk: what failed was said above
            _log.error("%s", results.reason(error), extra={"case": "failures.json"})
    return outcome


class _Cohort:
    """One call of `segment_cohort`."""

    def __init__(
        self,
        predictor: Predictor,
        scans: Sequence[Scan],
        out_dir: Path,
        wishes: Wishes,
        split: Split,
        bar: Progress,
    ) -> None:
        self.predictor = predictor
        self.scans = scans
        self.out_dir = out_dir
        self.wishes = wishes
        self.split = split
        self.bar = bar
        self.outcome = Outcome()
        # With few cores the network needs them; beside a GPU they are there for reading.
        self.ahead = max(1, min(MOST_AHEAD, (os.cpu_count() or 1) // 4))

    @cached_property
    def inputs(self) -> set[tuple[int, int]]:
        """Identities of all scans; asked for only where a result's name is taken."""
        return {_identity(path) for _, path in self.scans if path.exists()}

    def run(self) -> Outcome:
        """Segment the scans."""
        ahead = self.ahead
        with ThreadPoolExecutor(ahead) as readers, ThreadPoolExecutor(ahead) as writers:
            writing: deque[tuple[str, Future[None]]] = deque()
            for job, reading in self._read_ahead(readers, self._jobs()):
                prediction = self._segment(job, reading)
                if prediction is None:
                    continue
                if len(writing) >= ahead:
                    self._settle(*writing.popleft())
                task = writers.submit(write_prediction, job.files, *prediction)
                writing.append((job.files.case_id, task))
                del prediction  # the writer frees it when it is done
            while writing:
                self._settle(*writing.popleft())
        return self.outcome

    def _jobs(self) -> Iterator[_Job]:
        """The scans that are to be done; the others are counted on the way."""
        for case_id, paths in _by_id(self.scans).items():
            try:
                job = self._job(case_id, paths)
                if self.wishes.overwrite or not self._is_done(job):
                    yield job
                    continue
            except Exception as error:
                self._fail(case_id, error)
            else:
                self.outcome.skipped.append(case_id)
                self.bar.update()

    def _job(self, case_id: str, paths: list[Path]) -> _Job:
        files = results.case_files(self.out_dir, case_id)
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"{names}: are all called {case_id!r}; rename all but one")
        scan = paths[0]
        for path in (files.mask, files.sidecar, files.probabilities, files.attention):
            if path.exists() and _identity(path) in self.inputs:
                what = "its own result" if path.samefile(scan) else f"the result of {case_id!r}"
                raise DataError(
                    f"{path}: is a scan and would be overwritten by {what};"
                    " choose another output folder"
                )
        origin = {"model": self.predictor.fingerprint, "settings": self.predictor.settings}
        return _Job(files, scan, origin)

    def _is_done(self, job: _Job) -> bool:
        files = job.files
        wanted = [files.mask]
        wanted += [files.probabilities] if self.wishes.probabilities else []
        wanted += [files.attention] if self.wishes.attention else []
        if not files.sidecar.exists():
            return False
        origin = {**job.origin, "scan_fingerprint": _fingerprint(job.scan)}
        return results.is_done(files, wanted, origin)

    def _read_ahead(
        self, readers: ThreadPoolExecutor, jobs: Iterator[_Job]
    ) -> Iterator[tuple[_Job, Future[_Read]]]:
        waiting: deque[tuple[_Job, Future[_Read]]] = deque()
        for job in jobs:
            waiting.append((job, readers.submit(self._read, job.scan)))
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _read(self, path: Path) -> _Read:
        begin = time.perf_counter()
        volume = self.predictor.read(path)
        fingerprint = _fingerprint(path)
        return _Read(volume, fingerprint, time.perf_counter() - begin)

    def _segment(
        self, job: _Job, reading: Future[_Read]
    ) -> tuple[Prediction, Volume, dict[str, Any]] | None:
        """What `write_prediction` takes, or None for a scan that failed."""
        try:
            read = reading.result()
            prediction = self.predictor.segment(
                read.volume,
                probabilities=self.wishes.probabilities,
                attention=self.wishes.attention,
            )
            if not self.wishes.overwrite:
                results.spare_others_work(job.files, prediction.segmentation)
        except Exception as error:
            self._fail(job.files.case_id, error)
            return None
        record = prediction.record
        for text in [*record["warnings"], *record["fallbacks"]]:
            _log.warning("%s", text, extra={"case": job.files.case_id})
        seconds = {"reading": round(read.seconds, 4), **record["seconds"]}
        origin = {**job.origin, "scan_fingerprint": read.fingerprint}
        role = {"role_in_training": self.split.role(job.files.case_id)}
        return prediction, read.volume, {**record, **origin, **role, "seconds": seconds}

    def _settle(self, case_id: str, task: "Future[None]") -> None:
        try:
            task.result()
        except Exception as error:
            self._fail(case_id, error)
        else:
            self.outcome.done.append(case_id)
            self.bar.update()

    def _fail(self, case_id: str, error: Exception) -> None:
        reason = results.reason(error)
        self.outcome.failures[case_id] = reason
        _log.error("%s", reason, extra={"case": case_id})
        self.bar.update()


def _by_id(scans: Iterable[Scan]) -> dict[str, list[Path]]:
    """Scans by case id; ids that some file systems take for one are one."""
    found: dict[str, tuple[str, list[Path]]] = {}
    for case_id, path in scans:
        found.setdefault(case_names.folded(case_id), (case_id, []))[1].append(path)
    return dict(found.values())


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file share."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _fingerprint(scan: Path) -> str:
    """SHA-256 of a file, of the two of a pair, or of all files of a series."""
    try:
        parts = sorted(path for path in scan.iterdir() if path.is_file()) if scan.is_dir() else None
        digest = hashlib.sha256()
        for part in parts_of(scan) if parts is None else parts:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        named = Path(error.filename or scan).name
        raise DataError(
            f"{scan}: cannot be read ({named}: {error.strerror}); check the file and its rights"
        ) from None
    return digest.hexdigest()
