"""Scores of the test cases on the scanner's grid, organ by organ."""

from pathlib import Path

from attunet3d.datasets import Manifest
from attunet3d.evaluation import metrics
from attunet3d.imaging import read_label


def score_cases(
    manifest: Path, predictions: Path, labels: dict[int, str]
) -> dict[str, dict[str, dict[str, float | bool]]]:
    """Case → organ → scores.

    Raises:
        FileNotFoundError: A case was not segmented.
    """
    scores: dict[str, dict[str, dict[str, float | bool]]] = {}
    for case in Manifest.load(manifest).test:
        assert case.label is not None
        reference = read_label(case.label)
        prediction = read_label(predictions / f"{case.id}.nii.gz")
        values = [value for value in labels if value]
        found = metrics.score_labels(prediction.array, reference.array, reference.grid, values)
        scores[case.id] = {
            labels[value]: {
                "dice": round(score.dice, 4),
                "nsd_1mm": round(score.nsd_1mm, 4),
                "nsd_2mm": round(score.nsd_2mm, 4),
                "hd95_mm": round(score.hd95_mm, 2),
                "recall": round(score.recall, 4),
                "false_positive_ml": round(score.volume_ml_prediction * (1 - score.precision), 3),
                "present": not score.empty_reference,
            }
            for value, score in found.items()
        }
    return scores
