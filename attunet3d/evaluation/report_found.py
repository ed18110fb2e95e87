"""A case of a report whose volumes are not read yet, and what the page says of all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attunet3d.imaging import Volume

Reader = Callable[[Volume], Volume]
"""Reads a label map, given its scan."""


@dataclass(frozen=True, kw_only=True)
class FoundCase:
    """A case whose volumes are not read yet; the rest is as `ReportCase` has it."""

    name: str
    scan: Path | None = None
    series: str | None = None
    """Which DICOM series of the folder `scan`."""
    layers: Mapping[str, Reader] = field(default_factory=dict)
    attention: Path | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    facts: str = ""
    warnings: tuple[str, ...] = ()
    look: tuple[str, ...] = ()
    patient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The cases of a folder in the order of the page, and the page's words."""

    title: str
    subtitle: str
    order: str
    labels: Mapping[int, str]
    columns: Mapping[str, str]
    cases: Sequence[FoundCase]


def number(value: object) -> float | None:
    """A finite number, of JSON or of a table's cell; None for anything else.

    Example:
        >>> number("0.5"), number(""), number(None)
        (0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
