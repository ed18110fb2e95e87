"""One case of a manifest, and its entry in JSON."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attunet3d.core import DataError, UserError, case_names

MOST_CASES = 100_000  # in one list
CORRECT = "correct the entry"

# fmt: off
_OTHER_MODALITIES = {
    "mr", "mri", "mrt", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "flair",
    "adc", "dwi", "swi", "pd", "pet", "suv", "spect", "us", "ultrasound",
}
# fmt: on

Place = Callable[[str], Path]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan and, if there is one, its label; paths are absolute and below the root."""

    id: str
    image: Path
    label: Path | None = None
    fold: int | None = None
    group: str | None = None
    label_flip: str | None = None
    """Voxel axes of the scan along which the label is mirrored when read; None: not mirrored."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Checksums of the files "image" and "label", if known."""
    annotated: tuple[str, ...] | None = None
    """Names of the labels that were annotated in this case; None: all of them."""

    @property
    def patient(self) -> str:
        """The group, or the case's own id if it has no group."""
        return self.group if self.group is not None else self.id


def parse_modality(values: object) -> str:
    """The name of the only channel, from "CT" or `{"0": "CT"}`.

    Raises:
        DataError: There are several channels, or the name is that of another modality than CT.

    Example:
        >>> parse_modality({"0": "contrast-enhanced CT"})
        'contrast-enhanced CT'
        >>> parse_modality({"0": "T2"})
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.DataError: modality 'T2': only CT is supported, as values are read ...
    """
    names = list(values.values()) if isinstance(values, Mapping) else [values]
    if len(names) != 1 or not isinstance(names[0], str):
        raise DataError(
            f"modality {values!r:.80}: must be one channel, CT; several channels are not supported",
            value=values,
            cure="leave this data set out",
        )
    words = set(re.findall("[a-z0-9]+", names[0].lower()))
    if words & _OTHER_MODALITIES and "ct" not in words:
        raise DataError(
            f"modality {names[0]!r:.80}: only CT is supported, as values are read as Hounsfield"
            " units",
            value=names[0],
            cure="leave this data set out",
        )
    return names[0]


def parse_cases(values: Mapping[str, Any], part: str, place: Place) -> Iterator[Case]:
    """The cases of the list `part` of a manifest, a data list or an MSD `dataset.json`.

    Args:
        values: The whole file.
        part: "training", "validation" or "test"; MONAI writes "testing".
        place: Turns a path of the list into an absolute one.

    Raises:
        DataError: An entry breaks a rule; the case is named.
    """
    entries = values.get(part, values.get("testing", []) if part == "test" else [])
    if not isinstance(entries, list) or len(entries) > MOST_CASES:
        raise DataError(
            f"{part}: must be a list of cases, {MOST_CASES} at most", cure="correct the list"
        )
    for number, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping):
            raise DataError(
                f"{part}, entry {number}: must give id and image", value=entry, cure=CORRECT
            )
        where = f"case {entry['id']!r:.80}" if "id" in entry else f"{part}, entry {number}"
        try:
            if not _is_junk(entry.get("image")):
                yield _case(entry, place)
        except UserError as error:
            raise error.within(where) from None


def case_values(case: Case, root: Path) -> dict[str, Any]:
    """The entry from which `parse_cases` makes this case, paths relative to `root`."""
    values: dict[str, Any] = {"id": case.id, "image": case.image.relative_to(root).as_posix()}
    if case.label is not None:
        values["label"] = case.label.relative_to(root).as_posix()
    for key in ("fold", "group", "label_flip"):
        if getattr(case, key) is not None:
            values[key] = getattr(case, key)
    values |= {} if case.annotated is None else {"annotated": list(case.annotated)}
    return values | ({"sha256": dict(case.sha256)} if case.sha256 else {})


def _case(entry: Mapping[str, Any], place: Place) -> Case:
    image, label = (_one_path(entry.get(key)) for key in ("image", "label"))
    if image is None:
        raise DataError("has no image", cure="name a file")
    _check_values(entry)
    group, annotated = entry.get("group"), entry.get("annotated")
    given = entry.get("id")
    return Case(
        id=case_names.check_id(_derived_id(image, label) if given is None else given),
        image=place(image),
        label=None if label is None else place(label),
        fold=entry.get("fold"),
        group=None if group is None else str(group),
        label_flip=entry.get("label_flip"),
        sha256=dict(entry.get("sha256") or {}),
        annotated=None if annotated is None else tuple(annotated),
    )


def _check_values(entry: Mapping[str, Any]) -> None:
    fold, group, named = entry.get("fold"), entry.get("group"), entry.get("annotated")
    sums = entry.get("sha256") or {}
    rules = {
        "fold": (
            fold is None or (type(fold) is int and 0 <= fold < 1000),
            "a whole number of 0 or more",
        ),
        "group": (
            isinstance(group, int | None) or case_names.is_name(group),
            "the patient's name or number",
        ),
        "label_flip": (
            entry.get("label_flip") in (None, "", "i", "j", "k", "ij", "ik", "jk", "ijk"),
            "letters of 'ijk', in that order",
        ),
        "sha256": (
            isinstance(sums, Mapping) and all(isinstance(value, str) for value in sums.values()),
            'checksums by file, as {"image": "9f86…"}',
        ),
        "annotated": (
            named is None
            or (isinstance(named, list) and named and all(map(case_names.is_name, named))),
            'label names, as ["pancreas"]',
        ),
    }
    for key, (holds, rule) in rules.items():
        if not holds:
            value = entry[key]
            raise DataError(f"{key} {value!r:.80}: must be {rule}", value=value, cure=CORRECT)


def _one_path(value: object) -> str | None:
    if isinstance(value, list):
        if len(value) != 1:
            raise DataError(
                f"has {len(value)} images: several channels are not supported",
                value=value,
                cure="keep the CT only",
            )
        value = value[0]
    if value is not None and not isinstance(value, str):
        raise DataError(f"path {str(value)[:80]!r}: must be text", value=value, cure=CORRECT)
    return value or None


def _derived_id(image: str, label: str | None) -> str:
    """The scan's file name, without nnU-Net's channel `_0000` if the label's name has none."""
    name = case_names.stem(image.rsplit("/", 1)[-1])
    bare = name.removesuffix("_0000")
    return bare if label and case_names.stem(label.rsplit("/", 1)[-1]) == bare else name


def _is_junk(image: object) -> bool:
    """Whether this is an AppleDouble file, which archives packed on a Mac contain."""
    return isinstance(image, str) and image.rsplit("/", 1)[-1].startswith("._")
