"""Meaning of the values in label maps: names, regions of several values, a value to ignore."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attunet3d.core import DataError, case_names

IGNORE = "ignore"  # the name of unlabelled voxels, as in nnU-Net's dataset.json


@dataclass(frozen=True)
class LabelNames:
    """The labels of a data set.

    Args:
        labels: Name of each label value; 0 is the background.
        ignore: The value of unlabelled voxels; it is not among `labels`.
        regions: Label values of each region, by its name, for data sets of overlapping regions;
            `labels` then gives the value with which a region is written.
    """

    labels: dict[int, str]
    ignore: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def parse_labels(values: object, class_order: object = None) -> LabelNames:
    """Read label names from `{"1": name}`, `{name: 1}` or nnU-Net's regions `{name: [1, 2]}`.

    Args:
        values: As JSON gives them.
        class_order: nnU-Net's `regions_class_order`: the value with which each region is written.

    Raises:
        DataError: A value is not a whole number from 0 to 255, a name is given twice, or the
            regions have no order.

    Example:
        >>> parse_labels({"background": 0, "pancreas": 1, "ignore": 2})
        LabelNames(labels={0: 'background', 1: 'pancreas'}, ignore=2, regions={})
        >>> parse_labels({"background": 0, "whole": [1, 2], "tumour": 2}, [1, 2]).labels
        {0: 'background', 1: 'whole', 2: 'tumour'}
    """
    if not isinstance(values, Mapping) or not values:
        rule = 'labels must be names by value, as {"0": "background", "1": "liver"}'
        raise DataError(rule, value=values, cure="correct them")
    pairs = [(key, item) if isinstance(item, str) else (item, key) for key, item in values.items()]
    for _, name in pairs:
        if not case_names.is_name(name):
            raise DataError(
                f"label {name!r:.80}: must be short text without control characters",
                value=name,
                cure="rename it",
            )
    ignore = [_whole(value, name) for value, name in pairs if name.strip().lower() == IGNORE]
    named = [(value, name) for value, name in pairs if name.strip().lower() != IGNORE]
    regions: dict[str, tuple[int, ...]] = {}
    if class_order or any(isinstance(value, list) for value, _ in named):
        regions = _regions(named)
        named = [(0, "background"), *zip(_order(class_order, regions), regions, strict=True)]
    labels: dict[int, str] = {}
    for value, name in named:
        number = _whole(value, name)
        if number in labels or number in ignore:
            raise DataError(f"labels: value {number} has two names", value=number, cure="keep one")
        labels[number] = name
    labels.setdefault(0, "background")
    names = [*labels.values(), *(IGNORE for _ in ignore)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        rule = f"labels: {twice!r} is the name of two values"
        raise DataError(rule, value=twice, cure="give each another name")
    if len(labels) < 2:
        rule = "labels: must have one besides the background"
        raise DataError(rule, value=values, cure="add it")
    return LabelNames(
        labels=dict(sorted(labels.items())), ignore=ignore[0] if ignore else None, regions=regions
    )


def label_values(names: LabelNames) -> dict[str, Any]:
    """The `labels`, and for regions their order, from which `parse_labels` makes these names.

    Example:
        >>> label_values(LabelNames({0: "background", 1: "pancreas"}, ignore=2))
        {'labels': {'0': 'background', '1': 'pancreas', '2': 'ignore'}}
    """
    if not names.regions:
        named = names.labels | ({} if names.ignore is None else {names.ignore: IGNORE})
        return {"labels": {str(value): named[value] for value in sorted(named)}}
    regions: dict[str, Any] = {name: list(values) for name, values in names.regions.items()}
    regions |= {} if names.ignore is None else {IGNORE: names.ignore}
    written = {name: value for value, name in names.labels.items()}
    order = [written[name] for name in names.regions]
    return {"labels": {"background": 0, **regions}, "regions_class_order": order}


def _regions(named: list[tuple[object, str]]) -> dict[str, tuple[int, ...]]:
    """The values of each region, background left out."""
    regions: dict[str, tuple[int, ...]] = {}
    for value, name in named:
        parts = tuple(
            _whole(part, name) for part in (value if isinstance(value, list) else [value])
        )
        if not parts or name in regions:
            rule = f"region {name!r}: must have values, and a name that no other region has"
            raise DataError(rule, value=value, cure="correct it")
        if parts != (0,):
            regions[name] = parts
    return regions


def _order(class_order: object, regions: Mapping[str, object]) -> list[int]:
    """The value with which each region is written."""
    if not isinstance(class_order, list) or len(class_order) != len(regions):
        raise DataError(
            f"regions_class_order {class_order!r:.80}: must be a list of one value for each of the"
            f" {len(regions)} regions",
            value=class_order,
            cure="correct it",
        )
    return [_whole(value, "of regions_class_order") for value in class_order]


def _whole(value: object, name: object) -> int:
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 3
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (digits or whole) or not 0 <= int(str(value)) <= 255:
        raise DataError(
            f"label {name!r:.80}: value {str(value)[:80]!r} must be a whole number from 0 to 255",
            value=value,
            cure="correct it",
        )
    return int(str(value))
