"""A folder of label maps in the form that another program reads: DICOM, 3D Slicer, meshes."""

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d import __version__
from attunet3d.cohort import CaseFiles, Outcome, case_files, results, write_failures
from attunet3d.core import (
    DataError,
    DependencyError,
    WriteError,
    locked_folder,
    progress,
    whole_file,
)
from attunet3d.imaging import find_scans, workspace

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """A form of label maps.

    Args:
        module: Of this room, which writes it.
        extra: The optional dependencies that it needs.
        ending: Of a case's file; empty where a case becomes a folder.
        needs_source: Whether the DICOM series is needed that the scan came from.
    """

    module: str
    extra: str
    ending: str
    needs_source: bool = False


FORMS = {
    "dicom-seg": Form("dicom_seg", "dicom", ".dcm", needs_source=True),
    "rtstruct": Form("rtstruct", "dicom", ".dcm", needs_source=True),
    "seg-nrrd": Form("seg_nrrd", "slicer", ".seg.nrrd"),
    "mesh": Form("mesh", "mesh", ""),
    "mesh-ply": Form("mesh", "mesh", ""),
    "mesh-glb": Form("mesh", "mesh", ""),
}


def convert_label_maps(
    predictions: Path,
    out_dir: Path,
    name: str,
    source: Path | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Write each label map of an output folder of `infer` in another form.

    Args:
        predictions: The folder: CASE.nii.gz and CASE.json.
        out_dir: Gets CASE.dcm, CASE.seg.nrrd, or CASE/LABEL.stl; made when missing.
        name: A key of `FORMS`.
        source: Where the series lie now, for the DICOM forms: what `infer` was given; None: where
            the sidecars say.
        overwrite: Replace what lies in `out_dir` already.

    Returns:
        What was done, and what failed and why.

    Raises:
        DependencyError: The form needs a package that is not installed.
        UserError: A folder cannot be read or written.
    """
    form, write = FORMS[name], writer(name)
    cases = results.read_sidecars(predictions)
    if not cases:
        cure = "name an output folder of `infer`"
        raise DataError("holds no results of `infer`", path=predictions, cure=cure)
    outcome = Outcome()
    with (
        workspace() as place,
        locked_folder(out_dir, "export"),
        progress(len(cases), "export") as bar,
    ):
        moved = dict(find_scans(source, place)) if source is not None else {}
        if len(cases) == len(moved) == 1:
            moved = dict(zip(cases, moved.values(), strict=True))
        for case_id in cases:
            with bar.item(), outcome.trying(case_id):
                target = out_dir / f"{case_id}{form.ending}"
                if target.exists() and not overwrite:
                    raise WriteError("already exists", path=target, cure="add --overwrite")
                if form.needs_source and source is not None and case_id not in moved:
                    rule = f"no series called {case_id!r} is in {source}"
                    raise DataError(rule, cure="name what was given to `infer`")
                write(case_files(predictions, case_id), target, moved.get(case_id))
                outcome.done.append(case_id)
        if name == "seg-nrrd":
            names: dict[int, str] = {}
            for content in cases.values():
                names |= results.label_names(content)
            _write_tables(names, out_dir)
        write_failures(out_dir, outcome.failures)
    return outcome


def writer(name: str) -> Callable[[CaseFiles, Path, Path | None], None]:
    """What writes a case: (its results, target, DICOM series or None for the sidecar's) → nothing.

    Args:
        name: A key of `FORMS`.

    Raises:
        DependencyError: The form needs a package that is not installed.
    """
    form = FORMS[name]
    try:
        module = importlib.import_module(f"attunet3d.packaging.{form.module}")
        from attunet3d.packaging.source_series import SourceSeries
    except ModuleNotFoundError as error:
        cure = f'pip install "attunet3d[{form.extra}]"'
        raise DependencyError(f"{name} needs {error.name}", cure=cure) from None

    def write(files: CaseFiles, target: Path, series: Path | None) -> None:
        """Write one case in the form; `series` is its DICOM series, where not the sidecar's."""
        sidecar = results.read_sidecar(files.sidecar)
        segmentation = results.read_segmentation(files, sidecar)
        if form.needs_source:
            found = SourceSeries.read(series or _series(files, sidecar), sidecar.get("series"))
            getattr(module, f"write_{form.module}")(target, segmentation, found, __version__)
        elif form.module == "mesh":
            kind = "stl" if name == "mesh" else name.removeprefix("mesh-")
            if not module.write_meshes(target, segmentation, kind):
                _log.warning("no voxel is labelled: no mesh", extra={"case": files.case_id})
        else:
            module.write_seg_nrrd(target, segmentation)

    return write


def _series(files: CaseFiles, sidecar: Mapping[str, Any]) -> Path:
    """The DICOM series that a case was made from."""
    scan = sidecar.get("scan")
    if not isinstance(scan, str) or not (files.folder / scan).is_dir():
        rule = "was not made from a DICOM series, or the series lies elsewhere now"
        raise DataError(rule, path=files.mask, cure="name what was given to `infer` by --source")
    return files.folder / scan


def _write_tables(names: Mapping[int, str], out_dir: Path) -> None:
    """Colour tables beside the files, for whoever loads the NIfTI label maps instead."""
    from attunet3d.packaging.seg_nrrd import itk_snap_labels, slicer_colours

    whole_file.write_text(out_dir / "labels.ctbl", slicer_colours(names))
    whole_file.write_text(out_dir / "itk_snap_labels.txt", itk_snap_labels(names))
