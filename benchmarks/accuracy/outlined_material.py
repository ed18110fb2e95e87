"""Materials made of files: outlines of real organs filled with tissue, and real patients' scans.

Pancreas: a folder of label maps in which every value but 0 is the pancreas with its tumour.
Outlines: a folder of label maps `NAME.nii.gz` with the values of `ORGANS`, and of
`NAME_labels.nii.gz` with those of a file `labels.txt` beside them (lines of value and name).
Patients: a folder of scans `NAME.nii.gz`, each with `NAME_machine_labels.nii.gz`. Those labels were
made by a network: what is scored is agreement with them, never truth.
"""

import shutil
from pathlib import Path

import numpy as np

from attunet3d.core import DataError
from attunet3d.imaging import Grid, Segmentation, Volume, read_label, write_nifti
from attunet3d.phantoms import (
    Outlines,
    fill_outlines,
    pancreas_directions,
    read_outlines,
    turned,
)

ORGANS = {
    1: "spleen",
    2: "pancreas",
    3: "left kidney",
    4: "gallbladder",
    5: "oesophagus",
    6: "liver",
    7: "stomach",
    8: "duodenum",
}
SYNONYMS = {"kidney_left": "left kidney", "esophagus": "oesophagus"}
SPACING_MM = (3.0, 3.0, 3.0)
FEWEST = 3  # patients: one trains, one validates, one tests
FILLINGS = 2  # of each patient to train on: other tissue, the same outlines
CONTRAST = ("cptac_C3N-00249", "cptac_C3L-00189", "tcga_09-2043", "tcga_AY-4070A", "tcga_BC-A10X")
PATIENT = ("", "_machine_labels")  # endings of a patient's scan and label map
Parts = tuple[list[str], list[str], list[str]]  # ids to train on, to choose on, to test on


def require_files(name: str, data: Path) -> None:
    """Require what a material is made of, before anything is written.

    Raises:
        DataError: `data` is not a folder, or files are missing.
    """
    cure = "name the folder that holds them by --data"
    if not data.is_dir():
        raise DataError("must be a folder of label maps and scans", path=data, cure=cure)
    if name == "patients":
        wanted = [f"{case}{suffix}.nii.gz" for case in CONTRAST for suffix in PATIENT]
        if missing := [file for file in wanted if not (data / file).is_file()]:
            rule = f"lacks {missing[0]}, one of {len(missing)} missing files"
            raise DataError(rule, path=data, value=missing, cure=cure)
        return
    found = [path.name for path in data.glob("*.nii.gz")]
    if len(found) < FEWEST:
        rule = f"holds {len(found)} label maps (*.nii.gz), must hold {FEWEST} or more"
        raise DataError(rule, path=data, value=len(found), cure=cure)
    labelled = any(file.endswith("_labels.nii.gz") for file in found)
    if name == "anatomy" and labelled and not (data / "labels.txt").is_file():
        raise DataError("lacks labels.txt, the names of its values", path=data, cure=cure)


def write_anatomy(folder: Path, data: Path) -> list[Parts]:
    """Fill every patient's outlines; each third patient tests, seen by other scanners."""
    parts: Parts = ([], [], [])
    for number, path in enumerate(sorted(data.glob("*.nii.gz"))):
        outlines = _read(path)
        part = 2 if number % 3 == 1 else 1 if number % 9 == 0 else 0
        for filling in range(FILLINGS if part == 0 else 1):
            name = f"{path.name.removesuffix('.nii.gz')}_{filling}"
            cohort = "hard_elsewhere" if part == 2 else "hard"
            seed = 100 * number + filling
            scan, label = fill_outlines(
                outlines, seed, cohort=cohort, spacing_mm=SPACING_MM, name=name
            )
            _save(folder, name, scan, label, ORGANS)
            parts[part].append(name)
    return [parts]


def _read(path: Path) -> Outlines:
    """The outlines of one patient with the values of `ORGANS`."""
    if not path.name.endswith("_labels.nii.gz"):
        return read_outlines(path, ORGANS)
    lines = (path.parent / "labels.txt").read_text(encoding="utf-8").splitlines()
    theirs = {int(value): SYNONYMS.get(name, name) for value, name in map(str.split, lines)}
    names = {value: name for value, name in theirs.items() if name in ORGANS.values()}
    outlines = read_outlines(path, names)
    lookup = np.zeros(256, np.uint8)
    for value, name in ORGANS.items():
        lookup[[theirs for theirs, other in names.items() if other == name]] = value
    return Outlines(lookup[outlines.array], outlines.grid, ORGANS)


def _save(folder: Path, name: str, scan: Volume, label: Volume, names: dict[int, str]) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_nifti(folder / "imagesTr" / f"{name}.nii.gz", scan.array, None, scan.grid)
    labels = {0: "background", **names}
    Segmentation(label.array, label.grid, labels).save(folder / "labelsTr" / f"{name}.nii.gz")


def write_pancreas(folder: Path, data: Path) -> list[Parts]:
    """Fill every patient's pancreas; each third patient tests, seen by other scanners."""
    names = {1: "pancreas"}
    patients = {path: _pancreas(path) for path in sorted(data.glob("*.nii.gz"))}
    points = [outlines.grid.to_world(np.argwhere(outlines.array)) for outlines in patients.values()]
    signs = pancreas_directions(points)
    parts: Parts = ([], [], [])
    for number, (path, outlines) in enumerate(patients.items()):
        part = 2 if number % 3 == 1 else 1 if number % 9 == 0 else 0
        name = path.name.removesuffix(".nii.gz")
        scan, label = fill_outlines(
            turned(outlines, signs),
            number,
            cohort="hard_elsewhere" if part == 2 else "hard",
            spacing_mm=SPACING_MM,
            name=name,
        )
        _save(folder, name, scan, label, names)
        parts[part].append(name)
    return [parts]


def _pancreas(path: Path) -> Outlines:
    """A patient's pancreas; the spacing is believed, the directions are the array's."""
    label = read_label(path)
    grid = Grid(label.grid.shape, np.diag([*label.grid.spacing_mm, 1.0]))
    return Outlines((label.array > 0).astype(np.uint8), grid, {1: "pancreas"})


def write_patients(folder: Path, data: Path) -> list[Parts]:
    """Copy the patients with contrast; each in turn tests, the four others train."""
    for part, suffix in zip(("imagesTr", "labelsTr"), PATIENT, strict=True):
        (folder / part).mkdir(parents=True)
        for name in CONTRAST:
            shutil.copy(data / f"{name}{suffix}.nii.gz", folder / part / f"{name}.nii.gz")
    return [([n for n in CONTRAST if n != test], [], [test]) for test in CONTRAST]
