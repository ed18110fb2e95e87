"""Scans with answers to judge on: hard phantoms, true anatomy, patients; split once for everybody.

A material is a folder of scans and labels with one manifest for each split: its `training` and
`validation` cases train and choose, its `test` cases are scored and used for nothing else.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d.core import SettingsError
from attunet3d.phantoms import LABELS, write_phantoms
from benchmarks.accuracy.outlined_material import (
    ORGANS,
    require_files,
    write_anatomy,
    write_pancreas,
    write_patients,
)

PHANTOMS = {
    "hard": (24, 4, 16, 5000),
    "hard_fresh": (24, 4, 32, 6000),
    "hard_few": (6, 4, 16, 5000),
    "easy": (24, 4, 16, 5000),
}
"""How many train, validate and test, and the first patient of the test set."""
MATERIALS = (*PHANTOMS, "anatomy", "pancreas", "patients")


@dataclass(frozen=True)
class Material:
    """A prepared material."""

    name: str
    folder: Path
    labels: dict[int, str]

    @property
    def trained_as(self) -> str:
        """The material with the same cases to train on; its models serve this one too."""
        return self.name.removesuffix("_fresh")

    @property
    def manifests(self) -> list[Path]:
        """One a split."""
        return sorted(self.folder.glob("split_[0-9].json"))  # a plan may lie beside each


def prepare(name: str, folder: Path, data: Path | None = None) -> Material:
    """Write a material into `folder`, once; later calls use what is there.

    Raises:
        SettingsError: There is no such material, or `data` is missing for it.
        DataError: `data` does not hold what the material is made of.
    """
    if name not in MATERIALS:
        raise SettingsError(f"there is no material {name!r}", cure=f"choose of {MATERIALS}")
    if not (folder / "labels.json").exists():
        if name not in PHANTOMS and data is None:
            raise SettingsError(f"material {name!r} is made of files", cure="add --data DIR")
        if data is not None and name not in PHANTOMS:
            require_files(name, data)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            labels = _write(name, folder, data)
        except BaseException:  # nothing half-made stays
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / "labels.json").write_text(json.dumps(labels))
    labels = json.loads((folder / "labels.json").read_text())
    return Material(name, folder, {int(value): label for value, label in labels.items()})


def _write(name: str, folder: Path, data: Path | None) -> dict[int, str]:
    if name in PHANTOMS:
        labels, splits = LABELS, [_write_phantoms(folder, name)]
    else:
        assert data is not None
        makers = {"anatomy": write_anatomy, "pancreas": write_pancreas, "patients": write_patients}
        splits = makers[name](folder, data)
        labels = {0: "background", **({1: "pancreas"} if name == "pancreas" else ORGANS)}
    for number, parts in enumerate(splits):
        write_split(folder, number, labels, parts)
    return labels


def _write_phantoms(folder: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    training, validation, test, first = PHANTOMS[name]
    cohort = name.partition("_")[0]
    elsewhere = "hard_elsewhere" if cohort == "hard" else "easy"
    write_phantoms(folder, training + validation, 0, cohort=cohort)
    write_phantoms(folder, test, first, cohort=elsewhere)
    names = [f"phantom_{seed:04}" for seed in range(training + validation)]
    tested = [f"phantom_{seed:04}" for seed in range(first, first + test)]
    return names[:training], names[training:], tested


def write_split(
    folder: Path, number: int, labels: dict[int, str], parts: Sequence[Sequence[str]]
) -> None:
    """Write the manifest of one split: ids to train on, to choose on, to test on.

    Without cases to choose on, all training cases count as one patient, so that none is held out.
    """
    values: dict[str, Any] = {"name": folder.name, "modality": "CT"}
    values["labels"] = {str(value): name for value, name in labels.items()}
    for part, ids in zip(("training", "validation", "test"), parts, strict=True):
        values[part] = [
            {"id": i, "image": f"imagesTr/{i}.nii.gz", "label": f"labelsTr/{i}.nii.gz"} for i in ids
        ]
    if not values["validation"]:
        values["training"] = [case | {"group": "all"} for case in values["training"]]
    (folder / f"split_{number}.json").write_text(json.dumps(values, indent=1))
