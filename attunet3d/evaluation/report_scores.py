"""What a report shows of a folder that `evaluate` wrote: each case's scores, label by label."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attunet3d.cohort import case_files, results
from attunet3d.core import DataError, UserError, read_json, text
from attunet3d.datasets import Case, Manifest, read_case_label
from attunet3d.evaluation.report import Report
from attunet3d.evaluation.report_case import Reader, ReportCase, number
from attunet3d.evaluation.report_predictions import predicted_case
from attunet3d.imaging import find_scans, read_label

MOST_DETAILED_LABELS = 4  # above this only Dice is shown of each label
CSV_BYTES = 200_000_000
METRICS = {  # column of scores.csv: heading, format
    "dice": ("Dice", "{:.3f}"),
    "nsd_2mm": ("NSD 2 mm", "{:.3f}"),
    "hd95_mm": ("HD95 mm", "{:.1f}"),
    "volume_difference_ml": ("Δ ml", "{:+.1f}"),
}


def of_scores(folder: Path) -> Report:
    """Read what `evaluate` wrote, the worst mean Dice first.

    Raises:
        DataError: The files are not those of `evaluate`, or no case was scored.
    """
    summary, rows = read_json(folder / "summary.json"), _rows(folder / "scores.csv")
    try:
        labels = {int(value): str(part["name"]) for value, part in summary["labels"].items()}
        predictions = folder / str(summary["predictions"])
        patients, failed = dict(summary["patients"]), list(summary["failed"])
        references = _references(folder, summary)
    except (AttributeError, KeyError, TypeError, ValueError):
        cure = "run `attunet3d evaluate` again"
        raise DataError("summary.json is not one of `evaluate`", path=folder, cure=cure) from None
    label_maps = dict(find_scans(predictions))
    detailed = METRICS if len(labels) <= MOST_DETAILED_LABELS else {"dice": METRICS["dice"]}
    columns = {"mean Dice": "{:.3f}"} if len(labels) > 1 else {}
    for name in labels.values():
        columns |= {f"{name} {heading}": form for heading, form in detailed.values()}
    cases = [
        replace(
            _case(case_id, predictions, label_maps, references),
            values=_values(by_label, labels, detailed),
            patient=patients.get(case_id),
        )
        for case_id, by_label in rows.items()
    ]
    remark = summary.get("training_remark")
    count = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
    parts = [f"{count} scored", f"{len(failed)} failed" if failed else "", remark or ""]
    picture = folder / "calibration.png"
    return Report(
        title=f"Scores of {predictions.resolve().name}",
        subtitle="; ".join(filter(None, parts)) + ".",
        order="Worst mean Dice first.",
        labels={0: "background", **labels},
        columns=columns,
        cases=sorted(cases, key=lambda case: (case.values["mean Dice"] or 0.0, case.name)),
        picture=picture if picture.is_file() else None,
    )


def _rows(path: Path) -> dict[str, dict[int, dict[str, str]]]:
    """The rows of `scores.csv` by case and label value."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    try:
        for row in csv.DictReader(text.read_text(path, CSV_BYTES).splitlines()):
            found.setdefault(row["case"], {})[int(row["label"])] = row
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        cure = "run `attunet3d evaluate` again"
        raise DataError("is not a table of scores", path=path, cure=cure) from None
    if not found:
        raise DataError("holds no scored case", path=path, cure="see failures.json beside it")
    return found


def _values(
    by_label: Mapping[int, Mapping[str, str]],
    labels: Mapping[int, str],
    metrics: Mapping[str, tuple[str, str]],
) -> dict[str, float | None]:
    """The cells of a case's row."""
    dice = [number(row.get("dice")) for row in by_label.values()]
    known = [value for value in dice if value is not None]
    mean = sum(known) / len(known) if known else None
    return {"mean Dice": mean} | {
        f"{name} {heading}": number(by_label.get(value, {}).get(metric))
        for value, name in labels.items()
        for metric, (heading, _) in metrics.items()
    }


@dataclass(frozen=True)
class _References:
    """Where the references of an evaluation lie."""

    files: Mapping[str, Path] = field(default_factory=dict)
    cases: Mapping[str, Case] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)

    def reader(self, case_id: str) -> Reader | None:
        """Reads the reference of a case; None where there is none any more."""
        if case_id in self.cases:
            return lambda scan: read_case_label(self.cases[case_id], scan, self.labels)
        return (lambda scan: read_label(self.files[case_id])) if case_id in self.files else None


def _references(folder: Path, summary: Mapping[str, Any]) -> _References:
    path, root = folder / str(summary["reference"]), summary.get("root")
    if path.suffix.lower() != ".json":
        return _References(files=dict(find_scans(path)))
    manifest = Manifest.load(path, None if root is None else folder / str(root))
    lists = (*manifest.training, *manifest.validation, *manifest.test)
    cases = {case.id: case for case in lists if case.label is not None}
    return _References(cases=cases, labels=manifest.labels)


def _case(
    case_id: str, predictions: Path, files: Mapping[str, Path], references: _References
) -> ReportCase:
    """The case without its scores; scan and warnings are those of the prediction's sidecar."""
    try:
        content = results.read_sidecar(case_files(predictions, case_id).sidecar)
        found = predicted_case(predictions, case_id, content)
    except UserError:  # no sidecar, or a name that no sidecar can have
        found = ReportCase(name=case_id)
    known = references.cases.get(case_id)
    layers: dict[str, Reader] = {"prediction": lambda _: read_label(files[case_id])}
    if (reference := references.reader(case_id)) is not None:
        layers["reference"] = reference
    scan = known.image if known is not None and found.scan is None else found.scan
    return replace(found, scan=scan, layers=layers, look=())
