"""Prepare training cases once: read, resample, store (see `cached_case` for what lies on disk).

Each case, prepared in one way, has a folder of its own, which is written under another name and
renamed when it is complete. Its name ends in a hash of all that its content depends on: the
settings, the two source files (path, size, time of change) and `CACHE_VERSION`. A change of any of
them gives another folder. The old one stays, as another run may be reading it; `report_unused`
says how much there is to delete.
"""

import dataclasses
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attunet3d.core import (
    GIGABYTE,
    Config,
    DataError,
    FileError,
    PreprocessingConfig,
    SettingsError,
    UserError,
    progress,
    side_by_side,
    whole_file,
)
from attunet3d.datasets import Case, label_needs_scan, read_case_label, read_image
from attunet3d.imaging import open_organ_masks, parts_of, preprocessing
from attunet3d.training.cached_case import (
    BUILDING,
    DAMAGED,
    FOREGROUND_VOXELS,
    CachedCase,
    foreground_voxels,
    load_case,
    new_folder,
    publish_case,
    store_case,
)
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.torch_state import one_core_threads

ABANDONED_SECONDS = 24 * 3600
CACHE_VERSION = 2  # to be raised with any change of what reading and preprocessing make
_NAME = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{24}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a case is prepared."""

    preprocessing: PreprocessingConfig
    values: tuple[int, ...]
    """Label value of each index."""
    ignored: int | None = None
    """Label value of the voxels that are left out of the loss; stored as it is."""
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Names by label value, for labels that hold organs by name."""

    def __post_init__(self) -> None:
        if self.ignored is not None and self.ignored < len(self.values):
            raise SettingsError(
                f"training.ignore_index {self.ignored}: is also the index of a class",
                value=self.ignored,
                cure="give voxels to be ignored a value above all classes, such as 255",
            )

    def folder_name(self, case: Case) -> str:
        """The name of the case's folder: its id, and a hash of this recipe and the files.

        Raises:
            FileError: The case has no label, or a file is not there.
            DataError: The voxels that a header names do not lie beside it.
        """
        if case.label is None:
            cure = "training needs one; leave the case out, or add its label"
            raise FileError(f"case {case.id}: has no label", value=case.id, cure=cure)
        files = [_identity(case.id, path) for path in (case.image, case.label)]
        by_name = label_needs_scan(case)  # a label map holds values, whatever their names
        recipe = dataclasses.asdict(self if by_name else dataclasses.replace(self, labels={}))
        annotated = case.annotated if by_name else None
        facts = [recipe, FOREGROUND_VOXELS, files, case.label_flip, annotated, CACHE_VERSION]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        return re.sub(r"[^A-Za-z0-9_-]", "_", case.id)[:60] + "-" + key


def build_cache(
    cases: Sequence[Case], labels: dict[int, str], config: Config, folder: Path
) -> list[CachedCase]:
    """Prepare the cases that are not there yet, and return all of them in their order.

    Several processes, also on several machines with a common file system, may do this at once.

    Args:
        cases: Each with a label.
        labels: Names by label value, see `LabelClasses`.
        config: With a resolved `preprocessing`.
        folder: The cache's folder; it is made when it is missing.

    Raises:
        FileError: Some cases cannot be prepared; one message names the first five of them.
        WriteError: The folder cannot be made.
    """
    _refuse_organs_as_regions(cases, config)
    values = LabelClasses.of(labels, config).values
    recipe = Recipe(config.preprocessing, values, config.training.ignore_index, labels)
    folder = whole_file.make_folder(Path(folder)).resolve()
    _sweep(folder)
    results = [_find(case, recipe, folder) for case in cases]
    missing = [index for index, result in enumerate(results) if result is None]
    jobs = [cases[index] for index in missing]
    with progress(len(jobs), "preparing") as bar:
        for index, result in _attempts(jobs, recipe, folder):
            results[missing[index]] = result
            bar.update()
    failures = [result for result in results if isinstance(result, UserError)]
    if failures:
        more = f" (and {len(failures) - 5} more)" if len(failures) > 5 else ""
        raise FileError("; ".join(map(str, failures[:5])) + more)
    return [result for result in results if isinstance(result, CachedCase)]


def _refuse_organs_as_regions(cases: Sequence[Case], config: Config) -> None:
    """Organs by name become one label map, in which no voxel is in two regions."""
    for case in cases if config.training.regions else ():
        if case.label is not None and open_organ_masks(case.label) is not None:
            raise DataError(
                f"case {case.id}: overlapping regions cannot be learned from masks by name",
                path=case.label,
                cure="give a label map, or labels without regions",
            )


def report_unused(folder: Path, used: Iterable[CachedCase]) -> None:
    """Log how many prepared cases in `folder` are not among those `used`, and their size."""
    names = {case.folder.name for case in used}
    others = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    others = [path for path in others if path.name not in names]
    if others:
        size = sum(file.stat().st_size for path in others for file in path.iterdir())
        _log.info(
            "%s: %d prepared cases (%.1f GB) are of other settings or files; delete those whose"
            " name is not in use by another run",
            folder,
            len(others),
            size / GIGABYTE,
        )


def prepare(case: Case, recipe: Recipe, folder: Path) -> CachedCase:
    """Read, resample and store one case in `folder`, whatever is there already.

    Raises:
        FileError: A file cannot be read, image and label do not fit, or the disk is full.
    """
    target = folder / recipe.folder_name(case)
    cure = "make room on the disk, or name another folder by --cache"
    try:
        with new_folder(case.id, folder, cure) as working:
            _write(working, case, recipe)
            return publish_case(case.id, working, target)
    except FileError:
        raise
    except UserError as error:
        raise error.within(f"case {case.id}") from None


def _identity(case_id: str, path: Path) -> list[Any]:
    """Path, and size and time of change of each file that the scan consists of."""
    try:
        states = [(file.name, file.stat()) for file in parts_of(path)]
    except OSError as error:
        raise FileError(
            f"case {case_id}: {path} cannot be read ({error.strerror})", value=case_id
        ) from None
    except DataError as error:
        raise error.within(f"case {case_id}") from None
    return [str(path), [[name, state.st_size, state.st_mtime_ns] for name, state in states]]


def _find(case: Case, recipe: Recipe, folder: Path) -> CachedCase | UserError | None:
    """The case as it is stored; None where it is to be prepared."""
    try:
        return load_case(case.id, folder / recipe.folder_name(case))
    except UserError as error:
        return error


def _attempt(case: Case, recipe: Recipe, folder: Path) -> CachedCase | UserError:
    try:
        return prepare(case, recipe, folder)
    except UserError as error:
        return error


def _attempts(
    cases: list[Case], recipe: Recipe, folder: Path
) -> Iterator[tuple[int, CachedCase | UserError]]:
    """Index and outcome of each case as soon as it is done; several are prepared at a time."""
    workers = side_by_side(len(cases))
    pool = one_core_threads(workers, "cases")
    try:
        jobs = {pool.submit(_attempt, case, recipe, folder): i for i, case in enumerate(cases)}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write(working: Path, case: Case, recipe: Recipe) -> None:
    """Make the four files in `working`; they are on disk when this returns."""
    assert case.label is not None
    scan = read_image(case)
    mask = read_case_label(case, scan, recipe.labels)
    if not mask.grid.matches(scan.grid):
        raise DataError(
            "does not lie on the image's grid",
            path=case.label,
            cure="check the pair by attunet3d manifest",
        )
    network = preprocessing.to_network_grid(scan, recipe.preprocessing)
    classes = preprocessing.label_to_network_grid(
        mask, network.grid, recipe.values, ignore_value=recipe.ignored
    )
    label = np.ascontiguousarray(classes.numpy())
    points, starts = foreground_voxels(label, len(recipe.values), recipe.ignored)
    air = _air(network.tensor, recipe.preprocessing)
    image = network.tensor[0].to(torch.float16).contiguous().numpy()
    store_case(working, case.id, (image, label, points), air, starts)


def _air(image: torch.Tensor, config: PreprocessingConfig) -> float:
    """The lowest value of the HU window after normalisation, or else the scan's lowest."""
    if config.normalisation == "volume" or config.hu_window is None:
        return float(image.min())
    return float(preprocessing.normalise_(torch.tensor([config.hu_window[0]]), config))


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed left behind long ago."""
    for left in [*folder.glob(BUILDING + "*"), *folder.glob(DAMAGED + "*")]:
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
