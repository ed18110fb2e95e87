"""One self-contained HTML page about a cohort: a table, plots, and a viewer of each case.

The page needs no network and no program but a browser. Each case's pictures are text inside the
page that is decoded when the case is opened, so that a hundred cases stay usable. Cases are written
one by one: memory holds one at a time.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d import __version__
from attunet3d.core import Floats, whole_file
from attunet3d.evaluation.report_case import HU_OF_VALUES, Pictures, ReportCase, number, payload
from attunet3d.evaluation.statistics import bootstrap_interval
from attunet3d.imaging import colour_of

PAGE = files("attunet3d.evaluation") / "report_page"
FOOTER = (
    f"Made by attunet3d {__version__}. Research software: not for the diagnosis, treatment or"
    " measurement of patients."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page: its words, its table, and its cases in the order of the table."""

    title: str
    subtitle: str
    order: str
    """How the cases are sorted, such as "Worst mean Dice first."."""
    labels: Mapping[int, str]
    """Name of each label value; 0 is the background."""
    columns: Mapping[str, str]
    """Heading of each column of the table → format of its numbers, such as "{:.3f}"."""
    cases: Sequence[ReportCase] = ()
    picture: Path | None = None
    """The reliability diagram, a PNG, if there is one."""


def write_report(path: Path, report: Report, cases: Iterable[tuple[ReportCase, Pictures]]) -> None:
    """Write the page, `.html`, with those of its cases whose pictures could be read.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    before, after = page.split("{{cases}}")
    words = {"title": report.title, "subtitle": report.subtitle, "order": report.order}
    words = {name: html.escape(text) for name, text in (words | {"footer": FOOTER}).items()}
    words["picture"] = _figure(report.picture) if report.picture else ""
    words["style"] = (PAGE / "style.css").read_text(encoding="utf-8")
    words["script"] = (PAGE / "viewer.js").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    with whole_file.replacing(path) as file:
        file.write(_filled(before, words).encode())
        for index, (case, pictures) in enumerate(cases):
            content = payload(pictures)
            element = f'<script id="case-{index}" type="application/json">{content}</script>'
            file.write(f"{element}\n".encode())
            rows.append(_row(case, report.columns))
        words["report"] = _report(report.labels, report.columns, rows)
        file.write(_filled(after, words).encode())


def _filled(page: str, words: Mapping[str, str]) -> str:
    """Put the words where `{{name}}` stands; in one go, so that no word is taken for a name."""
    return re.sub(r"{{(\w+)}}", lambda match: words[match[1]], page)


def _figure(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    alternative = "Reliability diagram: share of voxels in the class against their probability"
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alternative}" width="420">'
        "<figcaption>How far probabilities can be believed: of the voxels of a probability, the"
        " share that belongs to the class.</figcaption></figure>"
    )


def _row(case: ReportCase, columns: Mapping[str, str]) -> dict[str, Any]:
    values = [number(case.values.get(name)) for name in columns]
    shown = [
        "–" if value is None else form.format(value)
        for value, form in zip(values, columns.values(), strict=True)
    ]
    look = [number for number, name in enumerate(columns) if name in case.look]
    return {
        "id": case.name,
        "patient": case.patient or case.name,
        "values": values,
        "shown": shown,
        "look": look,
        "facts": case.facts,
        "warnings": case.warnings,
    }


def _report(
    labels: Mapping[int, str], columns: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> str:
    statistics = []
    for index, (name, form) in enumerate(columns.items()):
        known = [row for row in rows if row["values"][index] is not None]
        if known:
            values = np.array([row["values"][index] for row in known])
            patients = [row["patient"] for row in known]
            statistics.append([name, *_statistics(values, patients, form)])
    content = {
        "labels": {value: name for value, name in labels.items() if value},
        "colours": {value: colour_of(value) for value in range(1, 256)},
        "hu": [round(float(hu), 1) for hu in HU_OF_VALUES],
        "columns": list(columns),
        "statistics": statistics,
        "cases": rows,
    }
    return json.dumps(content).replace("</", "<\\/")  # "</script>" in a name ends nothing


def _statistics(values: Floats, patients: Sequence[str], form: str) -> list[str]:
    """Number of cases, mean, 95 % interval of the mean, median, least and largest, as text."""
    numbers = [values.mean(), np.median(values), values.min(), values.max()]
    mean, median, least, most = (form.format(number) for number in numbers)
    interval = "–"
    if len(set(patients)) > 1:
        low, high = bootstrap_interval(values, patients)
        interval = f"{form.format(low)} to {form.format(high)}"
    return [str(len(values)), mean, interval, median, f"{least} to {most}"]
