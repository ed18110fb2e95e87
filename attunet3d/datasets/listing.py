"""Makes a manifest with folds from the folder of a data set, without reading scans."""

import logging
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import DataError
from attunet3d.datasets import formats, manifest_template, nnunet_splits
from attunet3d.datasets.manifest import Manifest

_log = logging.getLogger(__name__)


def list_cases(
    data_dir: Path,
    template: Path | None = None,
    names: Sequence[str] = (),
    group: str | None = None,
    root: Path | None = None,
    organs: Sequence[str] = (),
) -> Manifest:
    """List the cases of a data set.

    Args:
        data_dir: The data set as downloaded; see `formats`.
        template: A manifest that the data set completes.
        names: Label names, as "1=pancreas"; other values keep the data set's names.
        group: Regular expression that finds the patient in a case's id.
        root: A folder that contains all files of the data set; None: `data_dir` does.
        organs: Those that are taken where the labels hold organs by name; none: all.

    Raises:
        UserError: The folder's layout is unknown, or a rule of manifests is broken.
    """
    if template is not None:
        found = formats.renamed(manifest_template.complete(template, data_dir), _names(names))
    else:
        found = formats.read_data_set(data_dir, _names(names), root, organs)
    _log_unnamed(found)
    return formats.grouped(found, group)


def assign_folds(
    cases: Manifest, data_dir: Path, folds: int | None = None, seed: int = 0
) -> Manifest:
    """Assign the patients to folds.

    The first of these that exists is taken: `folds` new folds; those that the cases have; nnU-Net's
    `splits_final.json`; five new folds, or as many as there are patients if that is less. A single
    patient gets no fold, and neither does a data set that lists its own validation cases.

    Args:
        cases: The manifest.
        data_dir: Where to look for nnU-Net's splits.
        folds: Number of new folds.
        seed: Seeds the folds.

    Raises:
        UserError: There are fewer patients than folds, or the splits do not fit the cases.
    """
    if folds is not None:
        return cases.with_new_folds(folds, seed)
    if cases.validation or any(case.fold is not None for case in cases.training):
        return cases
    if splits := nnunet_splits.find_splits(data_dir):
        ids = {case.id for case in cases.training}
        return cases.with_folds(nnunet_splits.read_splits(splits, ids))
    return cases.with_new_folds(None, seed)


def _log_unnamed(found: Manifest) -> None:
    """Warn of labels without a name, which cannot be matched between models."""
    values = [value for value, name in found.labels.items() if name == f"label {value}"]
    if values:
        listed = ", ".join(map(str, values))
        _log.warning("no name for label %s; give one with --label %s=NAME", listed, values[0])


def _names(texts: Sequence[str]) -> dict[str, str]:
    """Names by value, from texts such as "1=pancreas"."""
    named = {}
    for text in texts:
        value, equals, name = text.partition("=")
        if not (equals and name.strip() and value.strip()) or value.strip() in named:
            raise DataError(
                f"--label {text}: must be VALUE=NAME, once per value",
                value=text,
                cure="write it as 1=pancreas",
            )
        named[value.strip()] = name.strip()
    return named
