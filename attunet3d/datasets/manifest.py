"""Manifests: the scans and labels of a data set, and the fold of each case.

A superset of MONAI's data list and of the `dataset.json` of the Medical Segmentation Decathlon:

    {"name": …, "labels": {"0": "background", "1": "pancreas"}, "modality": "CT",
     "licence": …, "source": …, "root": "..",
     "training":   [{"id", "image", "label", "fold", "group", "label_flip", "sha256"}, …],
     "validation": […], "test": […]}

Paths are relative to the root: the file's own folder unless `root` (in the file, relative to it) or
the caller says otherwise. `group` is the patient, whose cases are all in one fold. `label_flip`
corrects a label whose header does not fit its scan: mirrored along the voxel axes given (letters of
"ijk", or none), its voxels correspond one to one to the scan's. Other keys of a file are ignored.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from attunet3d.core import DataError, UserError, case_names, read_json, whole_file
from attunet3d.datasets import folds
from attunet3d.datasets.annotation import check_annotated
from attunet3d.datasets.case import (
    Case,
    Place,
    case_values,
    parse_cases,
    parse_modality,
)
from attunet3d.datasets.case_uniqueness import check_unique
from attunet3d.datasets.label_names import IGNORE, LabelNames, label_values, parse_labels

__all__ = ["Case", "DataError", "Manifest", "parse"]
_LISTS = ("training", "validation", "test")
MAKE = "make a manifest with attunet3d manifest DATA_DIR --out MANIFEST.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The cases of a data set and the meaning of its labels."""

    name: str
    labels: dict[int, str]
    root: Path
    ignore: int | None = None
    """The label value of unlabelled voxels; it is not among `labels`."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Label values of each region, by its name; see `LabelNames`."""
    modality: str = "CT"
    licence: str = ""
    source: str = ""
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    template: bool = False
    """Image and label are patterns that `attunet3d manifest --template` turns into paths."""

    def __post_init__(self) -> None:
        check_unique({part: getattr(self, part) for part in _LISTS})
        check_annotated((*self.training, *self.validation, *self.test), self.labels)

    @classmethod
    def load(cls, path: Path, root: Path | None = None) -> "Manifest":
        """Read and check a manifest; files that it names need not exist.

        Args:
            path: The JSON file.
            root: Folder that paths are relative to, instead of the file's. Links in it may lead out
                of it, since the caller named it.

        Raises:
            DataError: The file is missing or not a manifest, or breaks a rule; the case is named.
        """
        path = Path(path)
        values = _read(path)
        place = None if root is None else partial(case_names.inside, Path(root), follow_links=True)
        try:
            folder = _root(path, values) if root is None else Path(root)
            return parse(values, folder, path.stem, place)
        except UserError as error:
            raise error.within(path) from None

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads, with paths relative to the root and the root to the file.

        Raises:
            WriteError: The file cannot be written.
        """
        values = self.to_dict()
        whole_file.make_folder(Path(path).parent)
        root = os.path.relpath(self.root.resolve(), Path(path).resolve().parent)
        values["root"] = Path(root).as_posix()
        whole_file.write_text(Path(path), json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Plain values as `load` reads them, without the root."""
        root = self.root.resolve()
        values: dict[str, Any] = {"name": self.name}
        values |= label_values(LabelNames(self.labels, self.ignore, self.regions))
        values |= {key: getattr(self, key) for key in ("modality", "licence", "source")}
        values |= {"template": True} if self.template else {}
        for part in _LISTS:
            values[part] = [case_values(case, root) for case in getattr(self, part)]
        return values

    @property
    def regions_by_value(self) -> dict[int, tuple[int, ...]]:
        """Label values of each region, by the value with which it is written, in their order."""
        written = {name: value for value, name in self.labels.items()}
        return {written[name]: values for name, values in self.regions.items()}

    @property
    def value_names(self) -> dict[int, str]:
        """The meaning of every value that a label map may have."""
        names = {value: name for name, values in self.regions.items() for value in values}
        return names | self.labels | ({} if self.ignore is None else {self.ignore: IGNORE})

    def training_settings(self) -> list[str]:
        """Settings of training that the labels require, in the form of `--set`."""
        settings = [] if self.ignore is None else [f"training.ignore_index={self.ignore}"]
        if self.regions:
            settings += [f"training.regions={list(map(list, self.regions.values()))}"]
            settings += [f"inference.regions_class_order={list(self.regions_by_value)}"]
        return settings

    def __str__(self) -> str:
        """The number of cases, and the sizes of the folds."""
        folds = Counter(case.fold for case in self.training if case.fold is not None)
        sizes = "+".join(str(folds[number]) for number in sorted(folds))
        fold_of = f" in {len(folds)} folds ({sizes})" if folds else ""
        rest = [f"{len(cases)} {part}" for part in _LISTS[1:] if (cases := getattr(self, part))]
        return ", ".join([f"{len(self.training)} training cases{fold_of}", *rest])

    def fold(self, number: int | None = None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Training and validation cases.

        Args:
            number: The fold to validate on; all other training cases are trained on. None: the
                `training` and `validation` lists; without the latter the lowest fold, and without
                folds always the same fifth of the patients. With a single patient there is none.

        Raises:
            DataError: There is no such fold, nothing to train on, or this is a template.
        """
        self.refuse_template()
        known = sorted({case.fold for case in self.training if case.fold is not None})
        if number is None and self.validation:
            return self._whole(self.training), self.validation
        if number is None and not known:
            return self._hold_out()
        number = known[0] if number is None else number
        if number not in known:
            raise DataError(
                f"--fold {number}: manifest {self.name!r} has"
                f" {'folds ' + ', '.join(map(str, known)) if known else 'no folds'}",
                value=number,
                cure="choose one of them" if known else "leave --fold out",
            )
        rest = tuple(case for case in self.training if case.fold != number)
        return self._whole(rest), tuple(case for case in self.training if case.fold == number)

    def changed(self, change: Callable[[Case], Case | None]) -> "Manifest":
        """The same manifest with every case changed, or removed where `change` returns None."""
        lists: dict[str, Any] = {
            part: tuple(new for case in getattr(self, part) if (new := change(case)) is not None)
            for part in _LISTS
        }
        return replace(self, **lists)

    def with_folds(self, fold_of: Mapping[str, int]) -> "Manifest":
        """The same manifest with training cases in the folds given by id, others in none."""
        cases = (replace(case, fold=fold_of.get(case.id)) for case in self.training)
        return replace(self, training=tuple(cases))

    def with_new_folds(self, count: int | None = None, seed: int = 0) -> "Manifest":
        """The same manifest with its training cases assigned to folds by patient.

        Args:
            count: Number of folds; None: five, or the number of patients if that is less.
            seed: Seeds the shuffle.

        Raises:
            DataError: There are fewer patients than folds.
        """
        groups = {case.id: case.patient for case in self.training}
        return self.with_folds(folds.assign(groups, count, seed))

    def require_files(self) -> "Manifest":
        """Return this manifest if at least one of its scans exists.

        Raises:
            DataError: None exists, since the manifest or the data set was moved.
        """
        cases = [case for part in _LISTS for case in getattr(self, part)]
        if not self.template and cases and not any(case.image.exists() for case in cases):
            raise DataError(
                f"manifest {self.name!r}: none of its {len(cases)} scans exists, such as"
                f" {cases[0].image}",
                path=self.root,
                cure="if it or the data set was moved, name the data set's folder with --root",
            )
        return self

    def refuse_template(self) -> None:
        """Raise a DataError for a template, whose files are patterns."""
        if self.template:
            raise DataError(
                f"manifest {self.name!r}: is a template",
                cure="complete it first with attunet3d manifest DATA_DIR --template FILE"
                " --out MANIFEST.json",
            )

    def _whole(self, cases: tuple[Case, ...]) -> tuple[Case, ...]:
        if not cases:
            raise DataError(
                f"manifest {self.name!r}: leaves no case to train on",
                cure="list training cases, or choose another fold",
            )
        return cases

    def _hold_out(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        fold_of = folds.assign({case.id: case.patient for case in self._whole(self.training)})
        training = tuple(case for case in self.training if fold_of.get(case.id) != 0)
        return training, tuple(case for case in self.training if fold_of.get(case.id) == 0)


def parse(values: object, root: Path, name: str = "", place: Place | None = None) -> Manifest:
    """Build a manifest from the plain values of a manifest, a data list or an MSD `dataset.json`.

    Args:
        values: As JSON gives them.
        root: What the paths are relative to.
        name: The manifest's name if the values give none.
        place: Turns a path of the lists into an absolute one below `root`; None: it is relative to
            `root`, and links may not lead out.

    Raises:
        DataError: A rule is broken; the case is named.
    """
    if not isinstance(values, Mapping):
        raise DataError("must be an object with labels and lists of cases", cure=MAKE)
    if "channel_names" in values or "file_ending" in values:
        raise DataError(
            "is the dataset.json of nnU-Net", cure="list its cases with attunet3d manifest DATA_DIR"
        )
    place = place or partial(case_names.inside, root)
    names = parse_labels(values.get("labels"), values.get("regions_class_order"))
    lists: dict[str, Any] = {key: tuple(parse_cases(values, key, place)) for key in _LISTS}
    return Manifest(
        name=_text(values, "name") or name,
        **vars(names),
        root=root.resolve(),
        modality=parse_modality(values.get("modality", "CT")),
        licence=_text(values, "licence") or _text(values, "license"),
        source=_text(values, "source") or _text(values, "reference"),
        template=values.get("template") is True,
        **lists,
    )


def _read(path: Path) -> object:
    """Read the JSON of a manifest; a missing file and a configuration have their own messages."""
    if not path.exists():
        raise DataError("no such manifest", path=path, cure=f"check the path, or {MAKE}")
    swapped = "give MANIFEST first, then CONFIG"
    if path.suffix.lower() in (".yaml", ".yml"):
        rule = "is not a manifest, which must be JSON"
        raise DataError(rule, path=path, cure=f"{swapped}; {MAKE}")
    values = read_json(path)
    if isinstance(values, Mapping) and isinstance(values.get("training"), Mapping):
        raise DataError("is a configuration, not a manifest", path=path, cure=swapped)
    return values


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key) or ""
    if not isinstance(value, str | int | float):
        raise DataError(f"{key} {value!r:.80}: must be text", value=value, cure="correct it")
    return str(value)


def _root(path: Path, values: object) -> Path:
    given = values.get("root", ".") if isinstance(values, Mapping) else "."
    if not isinstance(given, str) or not given.isprintable():
        raise DataError(
            f"root {str(given)[:80]!r}: must be the path of a folder",
            value=given,
            cure="correct it, or give --root",
        )
    return path.resolve().parent / given
