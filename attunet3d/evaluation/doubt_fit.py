"""The rule of doubt, and what training saw, from predictions of cases not seen in training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.cohort import (
    CaseFiles,
    DoubtRule,
    case_files,
    doubt_features,
    outside_ranges,
    results,
)
from attunet3d.core import Floats, Mask, UserError, progress
from attunet3d.datasets import Case, Manifest, annotated_labels, read_case_label, read_image
from attunet3d.evaluation.metrics import dice
from attunet3d.imaging import (
    LabelMeasures,
    Segmentation,
    measure_labels,
    measure_ranges,
    read_label,
)

BAD_DICE = 0.5  # below it a label map is of no use
WORST_SHARE = 0.25  # of the cases that a person should look at, at least
FEWEST_ROWS = 10  # to fit a rule on
RIDGE = 1e-3  # keeps weights of features that never vary at 0

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
            truth, rows[case.id] = _measured(predictions, manifest, case)
            references |= {} if truth is None else {case.id: truth}
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


def fit_doubt(rows: Sequence[Mapping[str, Any]]) -> DoubtRule:
    """Fit the rule on labels of which the true Dice coefficient is known.

    The weights are those of least squares. `wrong` is where labels below a Dice of 0.5 are told
    best from the others (largest sum of sensitivity and specificity). `look` leaves nothing below
    0.5, and no more than three quarters of all labels, above it.

    Args:
        rows: Entries as sidecars have them, of predictions out of fold, each with its "dice".

    Raises:
        ValueError: There are fewer than `FEWEST_ROWS`.

    Example:
        >>> entry = {"largest_piece": 1.0, "touches_border": False}
        >>> rows = [{**entry, "expected_dice": n / 20, "dice": n / 25} for n in range(1, 20)]
        >>> rule = fit_doubt(rows)
        >>> [rule.word({**row, "voxels": 1}) for row in (rows[0], rows[-1])]
        ['wrong?', 'ok']
    """
    if len(rows) < FEWEST_ROWS:
        raise ValueError(f"{len(rows)} labels: at least {FEWEST_ROWS} are needed to fit a rule")
    names = list(doubt_features(rows[0]))
    features: Floats = np.array([list(doubt_features(row).values()) for row in rows])
    dice: Floats = np.array([row["dice"] for row in rows], float)
    ridge = RIDGE * len(rows) * np.eye(len(names))
    weights = np.linalg.solve(features.T @ features + ridge, features.T @ dice).round(6)
    trust = features @ weights
    bad: Mask = dice < BAD_DICE
    wrong = _best_cut(trust, bad) if bad.any() and not bad.all() else BAD_DICE
    above = float(trust[bad].max()) + 1e-6 if bad.any() else wrong
    look = max(wrong, above, float(np.quantile(trust, WORST_SHARE)))
    fitted = dict(zip(names, weights.tolist(), strict=True))
    return DoubtRule(weights=fitted, wrong=float(wrong), look=float(look))


def _best_cut(trust: Floats, bad: Mask) -> float:
    """The limit below which most of the bad and few of the others lie."""
    limits = np.unique(trust)
    middles = np.concatenate([(limits[1:] + limits[:-1]) / 2, limits[-1:] + 1e-6])
    gains = [(trust[bad] < cut).mean() - (trust[~bad] < cut).mean() for cut in middles]
    return float(middles[int(np.argmax(gains))])


def _measured(
    predictions: Path, manifest: Manifest, case: Case
) -> tuple[Measures | None, list[dict[str, Any]]]:
    """Measures of a case's reference, and of each predicted label its doubt and true Dice.

    Labels that were not annotated in the case are left out. A reference with voxels to ignore has
    no measures, as the rest of an organ may lie there.
    """
    scan, files = read_image(case), _files(predictions, case)
    labels, regions = annotated_labels(case, manifest.labels), manifest.regions_by_value
    arrays = read_case_label(case, scan, manifest.labels).array, read_label(files.mask).array
    known = arrays[0] != (-1 if manifest.ignore is None else manifest.ignore)
    reference, predicted = (
        Segmentation(array, scan.grid, labels, regions=regions) for array in arrays
    )
    truth, ours = measure_labels(reference, scan), measure_labels(predicted, scan)
    try:
        doubt = results.read_sidecar(files.sidecar).get("doubt", {})
    except UserError:
        doubt = {}
    rows = [
        {
            **doubt[name],
            "name": name,
            "measures": label,
            "dice": dice(
                predicted.mask_of(label.value) & known, reference.mask_of(label.value) & known
            ),
        }
        for name, label in ours.items()
        if name in doubt
    ]
    return truth if known.all() else None, rows


def _files(predictions: Path, case: Case) -> CaseFiles:
    return case_files(predictions, case.id)
