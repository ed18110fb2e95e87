"""The report of an output folder: what `infer` or `evaluate` wrote becomes the cases of a page.

Numbers are read first, so that the cases can be sorted; the volumes of a case are read when its
turn comes. A case whose scan or label map cannot be read is left out and named.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from attunet3d.cohort import Outcome, failure_reason
from attunet3d.core import Array, DataError, UserError, progress
from attunet3d.evaluation.report import write_report
from attunet3d.evaluation.report_case import Pictures, ReportCase
from attunet3d.evaluation.report_predictions import of_predictions
from attunet3d.evaluation.report_scores import of_scores
from attunet3d.imaging import read_volume

NAME = "report.html"
GRID_TOLERANCE_MM = 1e-3
_log = logging.getLogger(__name__)


def write_folder_report(
    folder: Path, path: Path | None = None, scans: Mapping[str, Path] | None = None
) -> Outcome:
    """Write the page about an output folder of `infer` or of `evaluate`.

    Args:
        folder: What one of the two commands wrote.
        path: Of the page; None: `report.html` in the folder.
        scans: Where scans lie now, by case id; the others lie where the sidecars say.

    Returns:
        The cases on the page, and the reasons of those that are not.

    Raises:
        DataError: The folder holds nothing to report on, or no case could be read.
        WriteError: The page cannot be written.
    """
    report = of_scores(folder) if (folder / "scores.csv").is_file() else of_predictions(folder)
    outcome = Outcome()
    with progress(len(report.cases), "report") as bar:

        def loaded() -> Iterator[tuple[ReportCase, Pictures]]:
            """Each case with its pictures, read when its turn comes."""
            for case in report.cases:
                with bar.item():
                    try:
                        yield case, _load(case, (scans or {}).get(case.name, case.scan))
                        outcome.done.append(case.name)
                    except UserError as error:
                        _leave_out(outcome, case, error)
            if not outcome.done:
                raise DataError(
                    "no case of it can be shown",
                    path=folder,
                    cure="name the folder of the scans with --scans",
                )

        write_report(path or folder / NAME, report, loaded())
    return outcome


def _leave_out(outcome: Outcome, case: ReportCase, error: UserError) -> None:
    name = case.name
    outcome.failures[name] = failure_reason(error)
    _log.error("%s; it is left out", outcome.failures[name], extra={"case": name})


def _load(case: ReportCase, path: Path | None) -> Pictures:
    """Read a case's volumes, which must all lie on the scan's grid."""
    if path is None:
        cure = "name the folder or archive of the scans with --scans"
        raise DataError("the scan is not known", cure=cure)
    scan = read_volume(path, series=case.series)
    layers = {}
    for what, read in case.layers.items():
        label = read(scan)
        if not label.grid.matches(scan.grid, GRID_TOLERANCE_MM):
            rule = f"the {what} lies on another grid than this scan"
            raise DataError(rule, path=path, cure="name the scans that were segmented: --scans")
        layers[what] = label.array
    return Pictures(scan, layers, () if case.attention is None else gates(case.attention))


def gates(path: Path) -> list[Array]:
    """A case's attention maps (I, J, K), the finest gated level's first, in little memory.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        maps = nibabel.load(path)
        count = maps.shape[3] if maps.ndim == 4 else 0
        return [np.asarray(maps.dataobj[..., number], np.float16) for number in range(count)]
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        rule = f"the attention maps cannot be read ({type(error).__name__})"
        raise DataError(rule, path=path, cure="run `infer --save-attention` again") from None
