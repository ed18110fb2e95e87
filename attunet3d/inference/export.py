"""Predictions to files, and saved probabilities to label maps of another rule.

A class competes for a voxel when its probability reaches the threshold set for it, or, where none
is set, when it is above background's, p_0 = 1 - sum of the others. The most probable of those that
compete wins; where none does, the voxel is background. Without thresholds this is the arg max.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from attunet3d.core import (
    DataError,
    Float32s,
    WriteError,
    label_values,
    locked_folder,
    progress,
    whole_file,
)
from attunet3d.imaging import Segmentation, Volume, keep_largest_, read_label, write_map
from attunet3d.inference import results
from attunet3d.inference.predictor import Prediction
from attunet3d.inference.results import CaseFiles, Outcome


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How probabilities become labels."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Least probability of a label, by its name; "*" for every label not named."""
    keep_largest: tuple[int | str, ...] = ()
    """Labels, by value or name, of which only the largest connected component is kept."""

    def __post_init__(self) -> None:
        for name, value in self.thresholds.items():
            if not 0 < value <= 1:
                raise DataError(f"--threshold {name}={value}: must be above 0 and at most 1")

    @classmethod
    def parse(cls, thresholds: Sequence[str], keep_largest: Sequence[str] = ()) -> "Rule":
        """Read thresholds as the command line has them: `NAME=VALUE`, or `VALUE` for all.

        Example:
            >>> Rule.parse(["0.3", "liver=0.6"]).thresholds
            {'*': 0.3, 'liver': 0.6}
        """
        parsed = {}
        for text in thresholds:
            name, _, number = text.rpartition("=")
            try:
                parsed[name or "*"] = float(number)
            except ValueError:
                raise DataError(f"--threshold {text}: write NAME=0.3, or 0.3 for all") from None
        largest = (int(label) if label.isdecimal() else label for label in keep_largest)
        return cls(thresholds=parsed, keep_largest=tuple(largest))

    def for_labels(self, labels: Mapping[int, str]) -> list[float | None]:
        """The threshold of each foreground label in order.

        Raises:
            DataError: A threshold names no label.
        """
        names = [name for value, name in sorted(labels.items()) if value]
        unknown = sorted(set(self.thresholds) - {*names, "*"})
        if unknown:
            raise DataError(f"--threshold {unknown[0]}: no such label; there are {names}")
        return [self.thresholds.get(name, self.thresholds.get("*")) for name in names]


def write_prediction(
    files: CaseFiles, prediction: Prediction, volume: Volume, record: Mapping[str, Any]
) -> None:
    """Write a case: maps and label map first, then the sidecar that says that they stand.

    Args:
        files: Where; the folder exists.
        prediction: What to write; maps that it does not hold are not written.
        volume: The scan, for its grid.
        record: For the sidecar; its `seconds` get the time of writing.

    Raises:
        UserError: A file cannot be written; the sidecar is then not written either.
    """
    begin = time.perf_counter()
    _begin(files)
    written = [files.mask]
    maps = (files.probabilities, prediction.probabilities), (files.attention, prediction.attention)
    for path, array in maps:
        if array is not None:
            whole_file.make_folder(path.parent)
            write_map(path, array, volume)
            written.append(path)
    prediction.segmentation.save(files.mask)
    seconds = {**record["seconds"], "writing": round(time.perf_counter() - begin, 4)}
    results.write_sidecar(files, prediction.segmentation, written, {**record, "seconds": seconds})
    files.begun.unlink(missing_ok=True)


def _begin(files: CaseFiles) -> None:
    try:
        files.begun.touch()
    except OSError as error:
        raise WriteError(
            f"{files.mask}: cannot be written ({error.strerror}); free space or choose another"
            " output folder"
        ) from error


def export_labels(folders: Sequence[Path], out_dir: Path, rule: Rule) -> Outcome:
    """Make label maps from the probabilities that `infer --save-probabilities` wrote.

    Args:
        folders: Output folders of `infer`; the probabilities of several are averaged.
        out_dir: Where label maps and sidecars go; must be none of `folders`.
        rule: How probabilities become labels.

    Raises:
        DataError: A folder holds no results, or is `out_dir`.
    """
    cases = _cases(folders)
    if any(out_dir.resolve() == folder.resolve() for folder in folders):
        raise DataError(f"{out_dir}: holds the predictions; choose another output folder")
    outcome = Outcome()
    with locked_folder(out_dir, "export"), progress(len(cases), "export") as bar:
        results.sweep(out_dir)
        for case_id in cases:
            try:
                target = results.case_files(out_dir, case_id)
                sources = [results.case_files(folder, case_id) for folder in folders]
                with bar.item() as done:
                    _export_case(sources, target, rule, done)
                outcome.done.append(case_id)
            except Exception as error:
                outcome.failures[case_id] = results.reason(error)
        results.write_failures(out_dir, outcome.failures)
    return outcome


def choose(
    probabilities: Sequence[Float32s], values: Sequence[int], thresholds: Sequence[float | None]
) -> npt.NDArray[np.uint8]:
    """Label values from the foreground labels' probabilities, by this module's rule.

    Args:
        probabilities: One array of any shape for each foreground label.
        values: Their label values.
        thresholds: Their least probabilities; None: background's.

    Example:
        >>> p = np.array([0.2, 0.4, 0.6], np.float32)
        >>> choose([p], [7], [None]).tolist(), choose([p], [7], [0.3]).tolist()
        ([0, 0, 7], [0, 7, 7])
    """
    background = 1 - sum(probabilities)
    best = np.zeros_like(probabilities[0])
    chosen = np.zeros(best.shape, np.uint8)
    for values_here, value, threshold in zip(probabilities, values, thresholds, strict=True):
        competes = values_here > background if threshold is None else values_here >= threshold
        wins = competes & (values_here > best)
        best[wins] = values_here[wins]
        chosen[wins] = value
    return chosen


def _cases(folders: Sequence[Path]) -> list[str]:
    """Ids of the cases in any of the folders."""
    found = set()
    for folder in folders:
        here = {path.stem for path in folder.glob("*.json")} - {"failures"}
        if not here:
            raise DataError(f"{folder}: holds no results of infer; name its output folder")
        found |= {name for name in here if not name.startswith(".")}
    return sorted(found)


def _export_case(
    sources: Sequence[CaseFiles], target: CaseFiles, rule: Rule, done: Callable[[float], None]
) -> None:
    begin = time.perf_counter()
    contents = [results.read_sidecar(source.sidecar) for source in sources]
    for source, content in zip(sources, contents, strict=True):
        _check(source, content, contents[0]["labels"])
    labels = {int(value): name for value, name in contents[0]["labels"].items()}
    scan = read_label(sources[0].mask)
    maps = [_Map(source.probabilities, scan, len(labels) - 1) for source in sources]
    values, thresholds = sorted(labels)[1:], rule.for_labels(labels)
    array = np.zeros(scan.grid.shape, np.uint8, order="F")
    for plane in range(array.shape[2]):
        means = [
            np.mean([part.plane(plane, index) for part in maps], axis=0)
            for index in range(len(values))
        ]
        array[..., plane] = choose(means, values, thresholds)
        done((plane + 1) / array.shape[2])
    keep_largest_(array, label_values(rule.keep_largest, labels, "--keep-largest"))
    segmentation = Segmentation(array, scan.grid, labels, scan.geometry)
    results.spare_others_work(target, segmentation)
    segmentation.save(target.mask)
    record = {
        "model": [content["model"] for content in contents],
        "settings": {"thresholds": dict(rule.thresholds), "keep_largest": rule.keep_largest},
        "warnings": contents[0]["warnings"],
        "seconds": {"export": round(time.perf_counter() - begin, 4)},
    }
    results.write_sidecar(target, segmentation, [target.mask], record)


def _check(source: CaseFiles, content: Mapping[str, Any], labels: object) -> None:
    if not source.probabilities.is_file():
        raise DataError(
            f"{source.probabilities}: no such file; run infer with --save-probabilities"
        )
    if not results.intact(source, content, [source.mask, source.probabilities]):
        raise DataError(
            f"{source.probabilities}: is not the file that {source.sidecar.name} was written for;"
            " run infer again"
        )
    if content["labels"] != labels:
        raise DataError(f"{source.sidecar}: its labels differ from those of the first folder")


class _Map:
    """Saved probabilities (I, J, K, N) as stored, scaled plane by plane."""

    def __init__(self, path: Path, scan: Volume, classes: int) -> None:
        image = nibabel.load(path)
        shape = (*scan.grid.shape, classes)
        if image.shape != shape and image.shape != shape[: 3 if classes == 1 else 4]:
            raise DataError(f"{path}: has shape {image.shape}, must be {shape}; run infer again")
        self.stored = image.dataobj.get_unscaled().reshape(shape, order="F")
        self.slope, self.intercept = image.dataobj.slope, image.dataobj.inter

    def plane(self, plane: int, index: int) -> Float32s:
        """Probabilities (I, J) of a class in one plane."""
        values: Float32s = self.stored[:, :, plane, index].astype(np.float32)
        return values * np.float32(self.slope) + np.float32(self.intercept)
