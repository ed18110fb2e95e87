"""A call whose scans, model or results lie in an object store (`s3://…`).

What its URLs name is fetched into a temporary folder before the first scan is segmented; the rest
of the code sees paths. Each case's results are sent as soon as it is done, the sidecar last, so
that a case counts as done only when all of it is there.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d.cohort import outcome, results, statistics_table
from attunet3d.cohort.call import Events, Relay, split_of
from attunet3d.cohort.object_store import AT_ONCE, ObjectStore, is_url
from attunet3d.cohort.run import Engine
from attunet3d.core import SettingsError, UserError, case_names, whole_file
from attunet3d.datasets import Manifest, held_out
from attunet3d.imaging import voxel_files

MODEL_ENDINGS = (".json", ".safetensors")  # what inference reads of a run folder
TABLES = (statistics_table.NAME, "report.html", "failures.json")


@dataclass(frozen=True)
class Staged:
    """A call whose URLs were replaced by paths."""

    flags: Mapping[str, Any]
    """Of the command, with paths."""
    send: Callable[[Engine], Engine]
    """The engine that also sends the results; the same one where OUT_DIR is a path."""


@contextlib.contextmanager
def staged(flags: Mapping[str, Any], workspace: Path) -> Iterator[Staged]:
    """Fetch what the URLs among a command's flags name; afterwards send the tables of OUT_DIR.

    Args:
        flags: Of `infer`, with texts or paths.
        workspace: A temporary folder; see `imaging.workspace`.

    Raises:
        SettingsError: OUT_DIR is a URL, and only a shard is to be done.
        FileError: The model, the list of scans or earlier results cannot be fetched.
        WriteError: The tables cannot be sent.
        DependencyError: The package for such URLs is not installed.
    """
    store = ObjectStore(workspace / "store")
    try:
        yield from _staged(flags, store)
    except UserError as error:
        text = store.named(str(error))
        if text == str(error):
            raise
        told = error.reworded(text)
        told.path = error.path and store.named(str(error.path))
        told.cure = error.cure and store.named(error.cure)
        if isinstance(error.value, str | Path):
            told.value = store.named(str(error.value))
        raise told from error


def _staged(flags: Mapping[str, Any], store: ObjectStore) -> Iterator[Staged]:
    here = dict(flags)
    here["model"] = [_fetch_model(store, model) for model in flags["model"]]
    here["locator"] = flags["locator"] and _fetch_model(store, flags["locator"])
    here["root"] = flags["root"] and store.path(flags["root"])
    here["input"], here["out_dir"] = store.path(flags["input"]), store.path(flags["out_dir"])
    sends = is_url(flags["out_dir"])
    if sends and flags["shard"] is not None:
        raise SettingsError(
            "--shard: shards cannot share an OUT_DIR in an object store, which has no locks",
            value=flags["shard"],
            cure=f"give each its own, such as {flags['out_dir']}/part1",
        )
    if is_url(flags["input"]):
        _fetch_scans(store, here)
    if sends:
        whole_file.make_folder(here["out_dir"])
        store.sweep(flags["out_dir"])
        store.fetch(store.listed(flags["out_dir"], missing_ok=True))
    yield Staged(here, lambda engine: _sending(engine, store, here["out_dir"], sends))
    if sends:
        _send_tables(store, here["out_dir"])


def _fetch_model(store: ObjectStore, model: str) -> str:
    """Copy a model here, with what lies beside it; the path of it."""
    if is_url(model):
        files = store.listed(model)
        if files == [model.rstrip("/")]:
            plan = f"{model.rpartition('/')[0]}/plan.json"
            files += store.listed(plan, missing_ok=True)
        store.fetch(name for name in files if name.endswith(MODEL_ENDINGS))
    return str(store.path(model))


def _fetch_scans(store: ObjectStore, flags: Mapping[str, Any]) -> None:
    """Copy the scans here: all of INPUT, or those of a manifest that are asked for."""
    source, url = flags["input"], store.url(flags["input"])
    if source.suffix.lower() == ".json":
        store.fetch([url])
        split = split_of(flags)
        manifest = Manifest.load(source, flags["root"])
        cases = held_out(manifest, split, fold=flags["fold"], everything=flags["all"])
        scans = [case.image for case in cases if store.folder in case.image.parents]
        urls = [name for scan in scans for name in store.listed(store.url(scan), missing_ok=True)]
    else:
        urls = store.listed(url)
    store.fetch(urls, patient=True)
    beside = [_voxel_files(store.path(url)) for url in urls]
    lacking = [path for paths in beside if not any(map(Path.exists, paths)) for path in paths]
    listed = (store.listed(store.url(path), missing_ok=True) for path in lacking)
    store.fetch((name for names in listed for name in names), patient=True)


def _voxel_files(scan: Path) -> list[Path]:
    """The files that a header may name for its voxels."""
    try:
        return voxel_files(scan)
    except (UserError, OSError):  # which reading the scan tells
        return []


def _send_case(store: ObjectStore, files: results.CaseFiles) -> None:
    """Send what belongs to a case, the sidecar last."""
    content = results.read_sidecar(files.sidecar)
    parts = [case_names.inside(files.folder, name) for name in content["files"]]
    parts += filter(Path.exists, [files.dicom_seg])
    parts = [path for path in [*parts, files.sidecar] if not store.has(path)]
    if parts:
        files.begun.touch()
        for path in [files.begun, *parts]:
            store.send(path)
    store.remove(files.begun)


def _send_tables(store: ObjectStore, folder: Path) -> None:
    """Send the files of a folder of results that belong to no case."""
    for path in (folder / name for name in TABLES):
        if path.exists():
            store.send(path)
        else:
            store.remove(path)


class _Sending(Relay):
    """Sends the results of each case before it tells that the case is done."""

    def __init__(self, store: ObjectStore, out_dir: Path, events: Events, pool: ThreadPoolExecutor):
        super().__init__(events)
        self._store, self._out_dir, self._pool = store, out_dir, pool
        self._lock = threading.Lock()

    def reached(self, case_id: str, share: float) -> None:
        with self._lock:
            super().reached(case_id, share)

    def failed(self, case_id: str, reason: str) -> None:
        with self._lock:
            super().failed(case_id, self._store.named(reason))

    def done(self, case_id: str) -> None:
        self._pool.submit(self._send, case_id, super().done)

    def skipped(self, case_id: str) -> None:
        self._pool.submit(self._send, case_id, super().skipped)

    def _send(self, case_id: str, tell: Callable[[str], None]) -> None:
        files = results.case_files(self._out_dir, case_id)
        try:
            _send_case(self._store, files)
        except Exception as error:
            files.sidecar.unlink(missing_ok=True)  # not done, so in no table
            self.failed(case_id, outcome.failure_reason(error))
            return
        with self._lock:
            tell(case_id)


def _why_lost(store: ObjectStore, paths: list[Path]) -> str | None:
    """Why a part of a case's scans could not be fetched; None: all of them were."""
    parts = {part for scan in paths for part in (scan, *_voxel_files(scan))}
    found = (why for path, why in store.failed.items() if parts & {path, *path.parents})
    return next(found, None)


def _sending(engine: Engine, store: ObjectStore, out_dir: Path, sends: bool) -> Engine:
    """The engine without scans that were not fetched, and with results sent."""

    def run(found: Mapping[str, list[Path]], events: Events) -> None:
        """Fail the scans that were not fetched, and segment the others."""
        there = {}
        for case_id, paths in found.items():
            lost = _why_lost(store, paths) if store.failed else None
            if lost is not None:
                events.failed(case_id, lost)
            else:
                there[case_id] = paths
        if not sends:
            engine(there, events)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            engine(there, _Sending(store, out_dir, events, pool))

    return run
