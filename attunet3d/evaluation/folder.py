"""Label maps against references on the scanner's grid: the reported Dice, and the other scores.

    OUT_DIR/scores.csv      a row for each case and label
    OUT_DIR/summary.json    statistics of each label, counts of the empty and the missing
    OUT_DIR/boxplot.png     Dice, HD95 and surface Dice of every case
    OUT_DIR/failures.json   cases that could not be scored, when there are some

Nothing is resampled: a case fails, and is listed by name, if its prediction is missing or does not
lie on its reference's grid.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from attunet3d.cohort import failure_reason, results, write_failures
from attunet3d.core import (
    DataError,
    Progress,
    Regions,
    case_names,
    locked_folder,
    progress,
    side_by_side,
    versions,
    whole_file,
)
from attunet3d.datasets import (
    Case,
    Manifest,
    Role,
    Split,
    annotated_values,
    held_out,
    label_needs_scan,
    read_case_label,
    read_image,
)
from attunet3d.evaluation import charts, figures, metrics
from attunet3d.evaluation.metrics import LabelScore
from attunet3d.evaluation.scores import Summary, completed
from attunet3d.imaging import Grid, Volume, find_scans, label_mask, read_label

GRID_TOLERANCE_MM = 1e-3
PLOTTED = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "surface_dice": "surface Dice"}


@dataclass(frozen=True)
class _Pair:
    case_id: str
    predictions: tuple[Path, ...]  # one, unless it is missing or not unique
    references: tuple[Path, ...]
    case: Case | None = None  # if the references come from a manifest
    manifest: Manifest | None = None
    regions: Regions = field(default_factory=dict)  # of the manifest, else of the predictions


def evaluate(
    predictions: Path,
    reference: Path,
    out_dir: Path,
    *,
    root: Path | None = None,
    fold: int | None = None,
    everything: bool = False,
    tolerance_mm: float = metrics.TOLERANCE_MM,
) -> Summary:
    """Score every case of `reference` and write scores, summary and box plot.

    Args:
        predictions: Folder of label maps, CASE.nii.gz.
        reference: Folder of label maps of the same names, or a manifest: its labelled test cases
            or, when there are none, those that the model was validated on, see `held_out`.
        out_dir: Created if missing; must be neither of the two folders.
        root: The folder to which a manifest's paths are relative; None: as the manifest says.
        fold: Score the validation cases of this fold of the manifest instead.
        everything: Score all labelled cases of the manifest instead.
        tolerance_mm: The tolerance of surface Dice.

    Returns:
        The scores and the failures. The labels and their regions are the manifest's, or those that
        the predictions' sidecars name, or all values that occur.

    Raises:
        UserError: A folder has no label map, names disagree, or nothing can be written.
    """
    metrics.check_tolerance(tolerance_mm)
    named, regions, split = _checked_sidecars(predictions, reference, out_dir)
    references, cases, manifest = _references(reference, root, fold, everything, split)
    names = {value: name for value, name in manifest.labels.items() if value} if manifest else {}
    _check_names(names, named)
    regions = regions if manifest is None else manifest.regions_by_value
    found = _by_id(find_scans(predictions))
    pairs = [
        _Pair(name, found.get(name, ()), paths, cases.get(name), manifest, regions)
        for name, paths in references.items()
    ]
    with locked_folder(out_dir, "evaluate"):
        with progress(len(pairs), "evaluate") as bar:
            scores, failures = _score_all(pairs, tolerance_mm, bar)
        seen = {value for case in scores.values() for value in case}
        labels = names or named or {value: f"label {value}" for value in sorted(seen)}
        annotated = {name: annotated_values(case, labels) for name, case in cases.items()}
        summary = Summary(
            labels=labels,
            scores=completed(scores, labels, annotated),
            failures=failures,
            tolerance_mm=tolerance_mm,
            without_reference=tuple(sorted(set(found) - set(references))),
            other_values=tuple(sorted(seen - set(labels))),
            seen_in_training=split.seen(references),
            patients={name: case.patient for name, case in cases.items()},
            training_remark=split.remark(references) if cases or split.seen(references) else None,
        )
        places = {"predictions": predictions, "reference": reference, "root": root}
        _write(summary, places, out_dir)
    return summary


def _checked_sidecars(
    predictions: Path, reference: Path, out_dir: Path
) -> tuple[dict[int, str], Regions, Split]:
    """`_sidecars`, after checking that the folders are not given for one another."""
    if out_dir.resolve() in (predictions.resolve(), reference.resolve()):
        rule = "contains the label maps that are to be evaluated"
        raise DataError(rule, path=out_dir, cure="choose another folder")
    if not predictions.is_dir():
        raise DataError("must be a folder of label maps", path=predictions, cure="check the path")
    named, regions, split = _sidecars(predictions)
    if not named and reference.is_dir() and _sidecars(reference)[0]:
        raise DataError(
            "contains the CASE.json files that infer writes, and PREDICTIONS does not",
            path=reference,
            cure="give PREDICTIONS first, then REFERENCE; or take the CASE.json files away",
        )
    return named, regions, split


def _references(
    path: Path, root: Path | None, fold: int | None, everything: bool, split: Split
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Case], Manifest | None]:
    """References by case; for a manifest also its cases and the manifest itself."""
    if path.suffix.lower() != ".json":
        if fold is not None or root is not None or everything:
            raise DataError(
                "is not a manifest", path=path, cure="--fold, --all and --root go with one"
            )
        return _by_id(find_scans(path)), {}, None
    manifest = Manifest.load(path, root)
    cases = held_out(manifest, split, fold=fold, everything=everything, labelled=True)
    labelled = _by_id([(case.id, case.label) for case in cases if case.label])
    return labelled, {case.id: case for case in cases}, manifest


def _by_id(files: Sequence[tuple[str, Path]]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for case_id, path in files:
        found[case_id] = (*found.get(case_id, ()), path)
    return dict(sorted(found.items()))


def _sidecars(predictions: Path) -> tuple[dict[int, str], Regions, Split]:
    """From the sidecars, label names but the background's, regions and roles in training."""
    names: dict[int, str] = {}
    regions: dict[int, tuple[int, ...]] = {}
    roles: dict[str, Role] = {}
    for case_id, content in results.read_sidecars(predictions).items():
        here = {value: name for value, name in results.label_names(content).items() if value}
        _check_names(names, here)
        parts: dict[int, tuple[int, ...]] = {value: (value,) for value in here}
        parts |= results.label_regions(content)
        for value in sorted(set(parts) & set(regions)):
            if parts[value] != regions[value]:
                rule = f"label {value} is made up of {parts[value]} and of {regions[value]}"
                raise DataError(rule, value=value, cure="evaluate each model's results by itself")
        names, regions = names | here, regions | parts
        for role in get_args(Role):
            if content.get("role_in_training") == role:
                roles[case_id] = role
    overlap = any(parts != (value,) for value, parts in regions.items())
    return dict(sorted(names.items())), regions if overlap else {}, Split(roles=roles)


def _check_names(names: Mapping[int, str], others: Mapping[int, str]) -> None:
    for value in sorted(set(names) & set(others)):
        if names[value].casefold() != others[value].casefold():
            raise DataError(
                f"label {value} is called {names[value]!r} and {others[value]!r}: one value must"
                " mean one organ",
                value=value,
                cure="give it one name (manifest --label VALUE=NAME), or renumber one",
            )


def _score_all(
    pairs: Sequence[_Pair], tolerance_mm: float, bar: Progress
) -> tuple[dict[str, dict[int, LabelScore]], dict[str, str]]:
    """Scores by case and label of all values that occur, and the reasons of the failures."""
    scores, failures = {}, {}

    def score(pair: _Pair) -> dict[int, LabelScore]:
        with bar.item() as done:
            return _score_pair(pair, tolerance_mm, done)

    workers = side_by_side(len(pairs))
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(score, pair) for pair in pairs]
        try:
            for pair, task in zip(pairs, tasks, strict=True):
                try:
                    scores[pair.case_id] = task.result()
                except Exception as error:  # the other cases go on
                    failures[pair.case_id] = failure_reason(error)
        except BaseException:  # Ctrl-C: tasks that have not begun are dropped
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scores, failures


def _score_pair(
    pair: _Pair, tolerance_mm: float, done: Callable[[float], object]
) -> dict[int, LabelScore]:
    if not pair.predictions:
        raise DataError("its prediction is missing", cure="segment it or check the file names")
    for paths in (pair.predictions, pair.references):
        if len(paths) > 1:
            names = ", ".join(str(path) for path in paths)
            raise DataError(
                f"{names} are label maps of one name", value=paths, cure="remove all but one"
            )
    prediction, reference = read_label(pair.predictions[0]), _read_reference(pair)
    there = reference.grid
    _check_grids(pair.predictions[0], prediction.grid, there)
    found, expected = prediction.array, reference.array
    manifest = pair.manifest
    if manifest is not None and manifest.ignore is not None:
        known = expected != manifest.ignore
        found, expected = np.where(known, found, 0), np.where(known, expected, 0)
    if not pair.regions:
        return metrics.score_labels(found, expected, there, tolerance_mm=tolerance_mm, done=done)
    scores = {}
    for value in pair.regions:
        ours, theirs = (label_mask(array, value, pair.regions) for array in (found, expected))
        scores[value] = metrics.score(ours, theirs, there, tolerance_mm)
    return scores


def _check_grids(path: Path, here: Grid, there: Grid) -> None:
    if here.shape != there.shape:
        raise DataError(
            f"has {here.shape} voxels, its reference {there.shape}",
            path=path,
            value=here.shape,
            cure="predict on the scan that the reference was drawn on",
        )
    if not here.matches(there, GRID_TOLERANCE_MM):
        raise DataError(
            f"lies up to {here.distance_mm(there):.4g} mm from its reference"
            f" (at most {GRID_TOLERANCE_MM} mm)",
            path=path,
            cure="check which of the two headers is wrong",
        )


def _read_reference(pair: _Pair) -> Volume:
    case, manifest = pair.case, pair.manifest
    if case is None or manifest is None or not label_needs_scan(case):
        return read_label(pair.references[0])
    return read_case_label(case, read_image(case), manifest.labels)


def _write(summary: Summary, places: Mapping[str, Path | None], out_dir: Path) -> None:
    whole_file.write_text(out_dir / "scores.csv", summary.to_csv())
    named = {what: path and case_names.path_from(out_dir, path) for what, path in places.items()}
    content = {**summary.as_dict(), **named, "versions": versions()}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    whole_file.write_text(out_dir / "summary.json", text + "\n")
    write_failures(out_dir, summary.failures)
    path = out_dir / "boxplot.png"
    if not summary.scores or not summary.labels:
        path.unlink(missing_ok=True)  # from an earlier call
        return
    plotted = {
        heading: {name: summary.values(value, metric) for value, name in summary.labels.items()}
        for metric, heading in PLOTTED.items()
    }
    figures.save(charts.box_plot(plotted, f"{len(summary.scores)} cases"), path)
