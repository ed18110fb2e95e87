"""Saved probabilities to label maps by another rule.

A class competes for a voxel when its probability reaches the threshold set for it or, where none is
set, when it exceeds the background's. The most probable of those that compete wins; where none
does, the voxel is background. The background's probability is p_0 = 1 - sum of the others after a
softmax, and 1/2 where each class has a sigmoid of its own. Without thresholds the result is the
label map of `infer`, unless the settings of that have post-processing (`keep_largest`,
`smallest_ml`) or `decision: dice`: neither is repeated here.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attunet3d.cohort import results
from attunet3d.cohort.outcome import Outcome, write_failures
from attunet3d.cohort.results import CaseFiles
from attunet3d.core import (
    DataError,
    Float32s,
    SettingsError,
    case_names,
    label_values,
    locked_folder,
    progress,
)
from attunet3d.imaging import MapReader, Segmentation, keep_largest_, read_label
from attunet3d.inference import background

PROBABILITIES = "probabilities"


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
                text = f"{value:g}" if name == "*" else f"{name}={value:g}"
                rule = f"--threshold {text}: must be above 0 and at most 1"
                raise SettingsError(rule, value=value, cure="write a probability, such as 0.3")

    @classmethod
    def parse(cls, thresholds: Sequence[str], keep_largest: Sequence[str] = ()) -> "Rule":
        """Read thresholds as the command line has them: `NAME=VALUE`, or `VALUE` for all.

        Raises:
            SettingsError: One is not a number above 0 and at most 1.

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
                raise SettingsError(
                    f"--threshold {text}: is not a number",
                    value=text,
                    cure="write NAME=0.3, or 0.3 for all",
                ) from None
        largest = (int(label) if label.isdecimal() else label for label in keep_largest)
        return cls(thresholds=parsed, keep_largest=tuple(largest))

    def for_labels(self, labels: Mapping[int, str]) -> list[float | None]:
        """The threshold of each foreground label in order.

        Raises:
            SettingsError: A threshold names no label.
        """
        names = [name for value, name in sorted(labels.items()) if value]
        unknown = sorted(set(self.thresholds) - {*names, "*"})
        if unknown:
            raise SettingsError(
                f"--threshold {unknown[0]}: there is no such label",
                value=unknown[0],
                cure=f"the labels are {', '.join(names)}",
            )
        return [self.thresholds.get(name, self.thresholds.get("*")) for name in names]

    def largest(self, labels: Mapping[int, str]) -> tuple[int, ...]:
        """The values of the labels of which only the largest component is kept.

        Raises:
            SettingsError: There is no such label.
        """
        return label_values(self.keep_largest, labels, "--keep-largest")


def export_labels(
    folders: Sequence[Path], out_dir: Path, rule: Rule, *, overwrite: bool = False
) -> Outcome:
    """Make label maps from the probabilities that `infer --save-probabilities` wrote.

    Args:
        folders: Output folders of `infer`; the probabilities of several are averaged.
        out_dir: Made when missing; must not be one of `folders`.
        rule: How probabilities become labels.
        overwrite: Replace label maps that were made by another rule or from other probabilities.

    Returns:
        What was done now and before, and what failed and why.

    Raises:
        UserError: A folder holds no results, the rule names a label that no case has, or
            `out_dir` cannot be used.
    """
    found = [_cases(folder) for folder in folders]
    if any(out_dir.resolve() == folder.resolve() for folder in folders):
        raise DataError("holds the predictions", path=out_dir, cure="choose another output folder")
    first = results.case_files(folders[0], found[0][0])
    labels = results.label_names(results.read_sidecar(first.sidecar))
    rule.for_labels(labels)
    rule.largest(labels)
    cases = sorted(set().union(*found))
    outcome = Outcome()
    with locked_folder(out_dir, "export"), progress(len(cases), "export") as bar:
        results.sweep(out_dir)
        for case_id in cases:
            with bar.item() as share_done, outcome.trying(case_id):
                files = [results.case_files(folder, case_id) for folder in (*folders, out_dir)]
                case = _CaseExport(files[:-1], files[-1], rule)
                fresh = overwrite or not case.is_done()
                if fresh:
                    case.export(share_done, spare=not overwrite)
                (outcome.done if fresh else outcome.skipped).append(case_id)
        write_failures(out_dir, outcome.failures)
    return outcome


def choose_labels(
    probabilities: Float32s,
    values: Sequence[int],
    thresholds: Sequence[float | None],
    activation: str = "softmax",
    order: Sequence[int] = (),
) -> npt.NDArray[np.uint8]:
    """Label values from the foreground labels' probabilities, by this module's rule.

    Args:
        probabilities: (labels, …).
        values: Their label values.
        thresholds: Their least probabilities; None: above the background's.
        activation: "softmax", or "sigmoid" where each label has one of its own.
        order: Values of overlapping regions; each is written over the ones before.

    Example:
        >>> p = np.array([[0.2, 0.4, 0.6]], np.float32)
        >>> choose_labels(p, [7], [None]).tolist(), choose_labels(p, [7], [0.3]).tolist()
        ([0, 0, 7], [0, 7, 7])
    """
    rest = 1 - probabilities.sum(0) if activation == "softmax" else 0.5
    best = np.zeros_like(probabilities[0])
    chosen = np.zeros(best.shape, np.uint8)
    for value in order or values:
        index = values.index(value)
        here, threshold = probabilities[index], thresholds[index]
        competes = here > rest if threshold is None else here >= threshold
        wins = competes if order else competes & (here > best)
        best[wins] = here[wins]
        chosen[wins] = value
    return chosen


def _cases(folder: Path) -> list[str]:
    """Ids of the cases in a folder, one at least."""
    found = [case_id for case_id, _ in results.each_sidecar(folder)]
    if not found:
        cure = "name an output folder of `infer`"
        raise DataError("holds no results of `infer`", path=folder, cure=cure)
    return found


class _CaseExport:
    """One case: where its probabilities lie, where its label map goes, and by which rule."""

    def __init__(self, sources: Sequence[CaseFiles], target: CaseFiles, rule: Rule) -> None:
        self.sources, self.target, self.rule = sources, target, rule
        self.contents = [results.read_sidecar(source.sidecar) for source in sources]
        for source, content in zip(sources, self.contents, strict=True):
            _check(source, content, self.contents[0])
        self.labels = results.label_names(self.contents[0])
        self.regions = results.label_regions(self.contents[0])
        self.origin = {
            "model": [content["model"] for content in self.contents],
            "settings": {
                "thresholds": dict(rule.thresholds),
                "keep_largest": list(rule.keep_largest),
            },
            "probabilities": [
                content["files"][f"{PROBABILITIES}/{target.case_id}.nii.gz"]
                for content in self.contents
            ],
        }

    def is_done(self) -> bool:
        """Whether the label map stands, made by this rule from these probabilities.

        Raises:
            WriteError: It was made otherwise.
        """
        return results.is_done(self.target, [self.target.mask], self.origin)

    def export(self, share_done: Callable[[float], None], *, spare: bool) -> None:
        """Write the label map and its sidecar."""
        begin = time.perf_counter()
        scan = read_label(self.sources[0].mask)
        labels = background(scan.grid)
        values, thresholds = sorted(self.labels)[1:], self.rule.for_labels(self.labels)
        activation = self.contents[0].get("activation", "softmax")
        order = self.contents[0].get("settings", {}).get("regions_class_order", [])
        with ExitStack() as stack:
            readers = [
                stack.enter_context(
                    MapReader(files.maps(PROBABILITIES), scan.grid, len(values), self.target.folder)
                )
                for files in self.sources
            ]
            for k in range(labels.shape[2]):
                plane = _mean(readers, k)
                labels[..., k] = choose_labels(plane, values, thresholds, activation, order)
                share_done((k + 1) / labels.shape[2])
        keep_largest_(labels, self.rule.largest(self.labels), self.regions)
        segmentation = Segmentation(labels, scan.grid, self.labels, scan.geometry, self.regions)
        if spare:
            results.spare_others_work(self.target, segmentation)
        segmentation.save(self.target.mask)
        seconds = {"export": round(time.perf_counter() - begin, 4)}
        facts = {"warnings": self.contents[0].get("warnings", []), "seconds": seconds}
        facts |= self._scan()
        results.write_sidecar(
            self.target, segmentation, [self.target.mask], {**self.origin, **facts}
        )

    def _scan(self) -> dict[str, Any]:
        """Where the scan lies that the first folder's case was made from, as far as it is known."""
        known = {name: self.contents[0].get(name) for name in ("scan", "series", "scan_checksum")}
        if isinstance(known["scan"], str):
            scan = self.sources[0].folder / known["scan"]
            known["scan"] = case_names.path_from(self.target.folder, scan)
        return {name: value for name, value in known.items() if value is not None}


def _mean(readers: Sequence[MapReader], k: int) -> Float32s:
    """The mean of a plane of all labels over the folders, (labels, I, J)."""
    total = readers[0].plane(k)
    for reader in readers[1:]:
        total += reader.plane(k)
    return total / np.float32(len(readers))


def _check(source: CaseFiles, content: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    path = source.maps(PROBABILITIES)
    if not path.is_file():
        raise DataError("no such file", path=path, cure="run infer with --save-probabilities")
    if not results.intact(source, content, [source.mask, path]):
        raise DataError(
            f"is not the file that {source.sidecar.name} was written for",
            path=path,
            cure="run infer again",
        )
    for name in ("labels", "regions", "activation"):
        if content.get(name) != first.get(name):
            rule = f"its {name} differ from the first folder's"
            cure = f"name folders of models that have the same {name}"
            raise DataError(rule, path=source.sidecar, value=content.get(name), cure=cure)
