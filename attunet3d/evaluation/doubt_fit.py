"""The rule of doubt, and what training saw, from predictions of cases not seen in training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attunet3d.cohort import FEWEST_ROWS, CaseFiles, case_files, fit_doubt, outside_ranges, results
from attunet3d.core import UserError, progress
from attunet3d.datasets import Case, Manifest, read_case_label, read_image
from attunet3d.evaluation.metrics import dice
from attunet3d.imaging import (
    LabelMeasures,
    Segmentation,
    measure_labels,
    measure_ranges,
    read_label,
)

Measures = Mapping[str, LabelMeasures]


def doubt_notes(predictions: Path, manifest: Manifest, cases: Iterable[Case]) -> dict[str, Any]:
    """What an ensemble's file says so that `infer` can tell the doubt of each label.

    Args:
        predictions: Output folder of `infer` for these cases, each by a model that has not seen it.
        manifest: Names the labels.
        cases: Labelled ones; those without a prediction are left out.

    Returns:
        "label_ranges" of the references and, where there are enough labels to fit it on, the
        "doubt" rule.
    """
    references: dict[str, Measures] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    found = [case for case in cases if case.label and _files(predictions, case).mask.is_file()]
    with progress(len(found), "doubt") as bar:
        for case in found:
            references[case.id], rows[case.id] = _measured(predictions, manifest, case)
            bar.update()
    for case_id, entries in rows.items():
        # A model has seen the other cases, not this one.
        others = measure_ranges([m for name, m in references.items() if name != case_id])
        for entry in entries:
            entry["outside_training"] = outside_ranges(entry["measures"], others.get(entry["name"]))
    notes: dict[str, Any] = {"label_ranges": measure_ranges(list(references.values()))}
    told = [entry for entries in rows.values() for entry in entries if entry["measures"].voxels]
    if len(told) >= FEWEST_ROWS:
        notes["doubt"] = fit_doubt(told).to_dict()
    return notes


def _measured(
    predictions: Path, manifest: Manifest, case: Case
) -> tuple[Measures, list[dict[str, Any]]]:
    """Measures of a case's reference, and of each predicted label its doubt and true Dice."""
    scan, files = read_image(case), _files(predictions, case)
    reference = read_case_label(case, scan)
    predicted = read_label(files.mask).array
    labels = dict(manifest.labels)
    truth = measure_labels(Segmentation(reference.array, scan.grid, labels), scan)
    ours = measure_labels(Segmentation(predicted, scan.grid, labels), scan)
    try:
        doubt = results.read_sidecar(files.sidecar).get("doubt", {})
    except UserError:
        doubt = {}
    rows = [
        {
            **doubt[name],
            "name": name,
            "measures": label,
            "dice": dice(predicted == label.value, reference.array == label.value),
        }
        for name, label in ours.items()
        if name in doubt
    ]
    return truth, rows


def _files(predictions: Path, case: Case) -> CaseFiles:
    return case_files(predictions, case.id)
