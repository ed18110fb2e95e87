"""Summarises a manifest as text."""

from collections import Counter

from attunet3d.core import as_table
from attunet3d.datasets.case import Case
from attunet3d.datasets.manifest import Manifest


def manifest_summary(manifest: Manifest) -> str:
    """The labels of a manifest, and its cases, patients and labelled cases per list and fold.

    Example:
        >>> from pathlib import Path
        >>> cases = [Case(id=name, image=Path(name), fold=n % 2) for n, name in enumerate("abc")]
        >>> labels = {0: "background", 1: "liver"}
        >>> print(manifest_summary(
        ...     Manifest(name="three", labels=labels, root=Path("/data"), training=tuple(cases))
        ... ))
        name      three
        labels    0 background, 1 liver
        modality  CT
        root      /data
        <BLANKLINE>
        list             cases  patients  with label
        training             3         3           0
        training fold 0      2         2           0
        training fold 1      1         1           0
    """
    labels = ", ".join(f"{value} {name}" for value, name in sorted(manifest.labels.items()))
    every = (*manifest.training, *manifest.validation, *manifest.test)
    partly = sum(case.annotated is not None for case in every)
    facts = {
        "name": manifest.name,
        "labels": labels,
        "regions": "; ".join(
            f"{name} {' + '.join(map(str, values))}" for name, values in manifest.regions.items()
        ),
        "ignored": "" if manifest.ignore is None else f"voxels of value {manifest.ignore}",
        "in part": f"{partly} cases have some of the labels annotated" if partly else "",
        "modality": manifest.modality,
        "licence": manifest.licence,
        "source": manifest.source,
        "root": manifest.root,
        "template": "complete it with `attunet3d manifest --template`" if manifest.template else "",
    }
    parts = {"training": manifest.training}
    for fold in sorted(Counter(case.fold for case in manifest.training if case.fold is not None)):
        cases = tuple(case for case in manifest.training if case.fold == fold)
        parts[f"training fold {fold}"] = cases
    parts |= {"validation": manifest.validation, "test": manifest.test}
    rows = [_row(name, cases) for name, cases in parts.items() if cases]
    table = as_table([("list", "cases", "patients", "with label"), *rows])
    return f"{as_table([(name, fact) for name, fact in facts.items() if fact])}\n\n{table}"


def _row(name: str, cases: tuple[Case, ...]) -> tuple[object, ...]:
    patients = len({case.patient for case in cases})
    return name, len(cases), patients, sum(case.label is not None for case in cases)
