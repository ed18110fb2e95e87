"""Lists the scans in a folder or archive with an id for each: scan files, and DICOM series."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attunet3d.core import ENDINGS, DataError, stem
from attunet3d.imaging import itk_image, nifti
from attunet3d.imaging.archive import beneath, is_archive, room_on_disk, unpack

CHANNEL = "_0000"  # nnU-Net's ending of the first channel
MOST_CHARACTERS = 100  # of an id made from folder names
WORKSPACE = "attunet3d-scans-"  # begins the name of a temporary folder


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder for `find_scans`, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix=WORKSPACE, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def is_temporary(scan: Path) -> bool:
    """Whether a scan lies in a workspace, so that nobody will find it there later.

    Example:
        >>> is_temporary(Path("/tmp/attunet3d-scans-x1/dump/ct")), is_temporary(Path("dump/ct"))
        (True, False)
    """
    return any(part.startswith(WORKSPACE) for part in scan.parts)


def find_scans(
    path: Path, workspace: Path | None = None, *, apart: bool = True
) -> list[tuple[str, Path]]:
    """The scans that a path names, as (case id, path), sorted by name.

    A file is one scan; a pair is named by its `.hdr`. A folder gives its scan files (hidden and
    AppleDouble `._` files are ignored; a directory named like a scan is listed, so that reading
    refuses it), and the folders at or below it that contain a DICOM series. The id is the file's
    name without its ending, and without nnU-Net's channel `_0000` if all files have it; a series is
    named after its folder below `path`, never after a tag.

    Args:
        path: The file or folder.
        workspace: Where a ZIP archive is unpacked, and where links to the slices of each of several
            series in one folder are made, which then count as scans `NAME`, `NAME_2` and so on;
            see `workspace`. None: archives are not read, and several series count as one, of which
            `read_volume` takes the one it is told.
        apart: Make those links.

    Raises:
        DataError: The path does not exist, contains no scan, or is an archive that is damaged, too
            large, or has files outside of it.
        WriteError: The disk of the workspace is full.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file or folder", path=path, cure="check the path")
    if workspace is not None and is_archive(path):
        path = _unpacked(path, workspace)
    if not path.is_dir():
        return [(stem(path.name), path)]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
    names = [stem(file.name) for file in files]
    if all(name.endswith(CHANNEL) and name != CHANNEL for name in names):
        names = [name.removesuffix(CHANNEL) for name in names]
    scans = list(zip(names, files, strict=True))
    folders = [entry for entry in entries if entry.is_dir() and entry not in files]
    if not files or folders:
        scans += _series(path, bool(files), workspace if apart else None)
    if scans:
        return scans
    raise DataError(
        "holds no scan: neither scan files nor a DICOM series",
        path=path,
        cure="give a folder of .nii.gz files, or of DICOM files",
    )


def parts_of(scan: Path) -> list[Path]:
    """The files that a scan consists of: one, a header and its voxels, or all of a folder.

    Raises:
        OSError: A folder or a header cannot be read.
        DataError: The voxels that a MetaImage or NRRD header names do not lie beside it.
    """
    if scan.is_dir():
        return sorted(path for path in scan.rglob("*") if path.is_file())
    if scan.is_file() and scan.name.lower().endswith(itk_image.ENDINGS):
        return itk_image.pair_of(scan)
    return nifti.pair_of(scan)


def voxel_files(scan: Path) -> list[Path]:
    """The names that a file with a scan's voxels may have, beside its header; there or not.

    Empty where the scan is one file or a folder.

    Raises:
        OSError: A header cannot be read.
        DataError: The voxels that a MetaImage or NRRD header names do not lie beside it.

    Example:
        >>> [path.name for path in voxel_files(Path("ct.hdr"))][:2], voxel_files(Path("ct.nii"))
        (['ct.img', 'ct.img.gz'], [])
    """
    if scan.is_file() and scan.name.lower().endswith(itk_image.ENDINGS):
        return itk_image.voxel_files(scan)
    return nifti.voxel_files(scan)


def _unpacked(archive: Path, workspace: Path) -> Path:
    folder = workspace / "archive" / (archive.stem or "archive")
    folder.mkdir(parents=True)
    try:
        unpack(archive, beneath(folder), room_on_disk(workspace))
    except DataError as error:
        raise error.within(archive) from None
    found = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]  # without __MACOSX
    while len(found) == 1 and found[0].is_dir():  # as where a folder was packed
        folder, found = found[0], list(found[0].iterdir())
    return folder


def _series(path: Path, deep_only: bool, workspace: Path | None) -> list[tuple[str, Path]]:
    """The series at or below a folder, each with an id of its own."""
    from attunet3d.imaging.dicom import series_folders

    scans: dict[str, Path] = {}
    for folder in series_folders(path):
        if deep_only and folder == path:
            continue
        parts = folder.relative_to(path).parts or (path.resolve().name,)
        plain = "_".join(re.sub(r"[^\w-]+", "_", part).strip("_") for part in parts)
        plain = plain[-MOST_CHARACTERS:].strip("_") or "series"
        for series in [folder] if workspace is None else _each(folder, workspace):
            name, number = plain, 1
            while name.casefold() in (known.casefold() for known in scans):
                number += 1
                name = f"{plain}_{number}"
            scans[name] = series
    return list(scans.items())


def _each(folder: Path, workspace: Path) -> list[Path]:
    """A folder of links for each series of a folder; the folder itself where there is only one."""
    from attunet3d.imaging.dicom import series_files

    try:
        series = series_files(folder)
    except DataError:  # reading the folder will give the reason
        return [folder]
    if len(series) == 1:
        return [folder]
    places = []
    for files in series:
        places.append(Path(tempfile.mkdtemp(prefix="series-", dir=workspace)))
        for number, file in enumerate(files):
            (places[-1] / f"{number:05}_{file.name}").symlink_to(file.resolve())
    return places
