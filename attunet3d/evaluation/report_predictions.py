"""What a report shows of a folder that `infer` wrote: volumes, doubt and warnings of each case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attunet3d.cohort import case_files, results
from attunet3d.core import DataError
from attunet3d.evaluation.report import Report
from attunet3d.evaluation.report_case import ReportCase, number
from attunet3d.imaging import read_label

WORDS = ("ok", "look", "wrong?")  # of doubt, the worst last


def of_predictions(folder: Path) -> Report:
    """Read the sidecars of an output folder of `infer`, the most doubtful case first.

    Raises:
        DataError: It holds no sidecar.
    """
    sidecars = results.read_sidecars(folder)
    if not sidecars:
        rule = "holds neither sidecars of `infer` nor scores of `evaluate`"
        raise DataError(rule, path=folder, cure="name an output folder of one of them")
    labels = {
        value: name
        for content in sidecars.values()
        for value, name in results.label_names(content).items()
    }
    names = [name for value, name in sorted(labels.items()) if value]
    doubted = any(_doubt(content) for content in sidecars.values())
    columns = {f"{name} ml": "{:.1f}" for name in names}
    if doubted:
        columns |= {f"{name} expected Dice": "{:.3f}" for name in names}
    cases = [predicted_case(folder, name, content) for name, content in sidecars.items()]
    ranks = {name: _rank(name, content) for name, content in sidecars.items()}
    return Report(
        title=f"Label maps: {folder.resolve().name}",
        subtitle=f"Cases: {len(cases)}. Labels: {', '.join(names)}.",
        order="Most doubtful first." if doubted else "Cases with warnings first, then by name.",
        labels=labels,
        columns=columns,
        cases=sorted(cases, key=lambda case: ranks[case.name]),
    )


def _doubt(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the sidecar says of each label's doubt, by name."""
    doubt = content.get("doubt")
    if not isinstance(doubt, dict):
        return {}
    return {str(name): entry for name, entry in doubt.items() if isinstance(entry, dict)}


def _rank(name: str, content: Mapping[str, Any]) -> tuple[float, float, float, str]:
    """Sorts the worst word first, then the least expected Dice, then warnings, then names."""
    entries = _doubt(content).values()
    words = [WORDS.index(entry["word"]) for entry in entries if entry.get("word") in WORDS]
    expected = [number(entry.get("expected_dice")) for entry in entries]
    known = [value for value in expected if value is not None]
    return -max(words, default=0), min(known, default=1.0), -len(_warnings(content)), name


def _warnings(content: Mapping[str, Any]) -> tuple[str, ...]:
    parts = [content.get(part) for part in ("warnings", "fallbacks")]
    return tuple(str(line) for part in parts if isinstance(part, list) for line in part)


def predicted_case(folder: Path, name: str, content: Mapping[str, Any]) -> ReportCase:
    """A case as its sidecar describes it."""
    files, doubt = case_files(folder, name), _doubt(content)
    volumes = content.get("volumes")
    volumes = volumes if isinstance(volumes, dict) else {}
    values = {f"{label} ml": number(dict(entry).get("ml")) for label, entry in volumes.items()}
    expected = {
        f"{label} expected Dice": number(entry.get("expected_dice"))
        for label, entry in doubt.items()
    }
    asked = [label for label, entry in doubt.items() if entry.get("word", "ok") != "ok"]
    words = [f"{label}: {doubt[label]['word']}" for label in asked]
    attention, scan = files.maps("attention"), content.get("scan")
    return ReportCase(
        name=name,
        scan=folder / scan if isinstance(scan, str) else None,
        series=content.get("series"),
        layers={"prediction": lambda scan: read_label(files.mask)},
        attention=attention if attention.is_file() else None,
        values={**values, **expected},
        facts="; ".join([*words, _how(content)]),
        warnings=_warnings(content),
        look=tuple(f"{label} expected Dice" for label in asked),
    )


def _how(content: Mapping[str, Any]) -> str:
    modes = {"whole": "one pass over the body", "window": "overlapping windows"}
    models, seconds = content.get("model"), content.get("seconds")
    taken = sum(filter(None, map(number, seconds.values()))) if isinstance(seconds, dict) else 0
    mode = modes.get(str(content.get("mode")))
    way = f"{mode} in {content.get('precision')} on {content.get('device')}"
    if mode is None:  # `export` made it
        way = "from saved probabilities"
    known = ", ".join(str(m)[:8] for m in (models if isinstance(models, list) else [models]))
    return f"{way}, {taken:.1f} s; model {known}"
