"""Lists the scans in a folder with an id for each: scan files, and DICOM series below it."""

import re
from pathlib import Path

from attunet3d.core import ENDINGS, DataError, stem

CHANNEL = "_0000"  # nnU-Net's ending of the first channel
MOST_CHARACTERS = 100  # of an id made from folder names


def find_scans(path: Path) -> list[tuple[str, Path]]:
    """The scans that a path names, as (case id, path), sorted by name.

    A file is one scan; a pair is named by its `.hdr`. A folder gives its scan files (hidden and
    AppleDouble `._` files are ignored; a directory named like a scan is listed, so that reading
    refuses it), and the folders at or below it that contain a DICOM series. The id is the file's
    name without its ending, and without nnU-Net's channel `_0000` if all files have it; a series is
    named after its folder below `path`, never after a tag.

    Raises:
        DataError: The path does not exist, or the folder contains no scan.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file or folder", path=path, cure="check the path")
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
        scans += _series(path, deep_only=bool(files))
    if scans:
        return scans
    raise DataError(
        "holds no scan: neither scan files nor a DICOM series",
        path=path,
        cure="give a folder of .nii.gz files, or of DICOM files",
    )


def _series(path: Path, deep_only: bool) -> list[tuple[str, Path]]:
    """The series at or below a folder, each with an id of its own."""
    from attunet3d.imaging.dicom import series_folders

    scans: dict[str, Path] = {}
    for folder in series_folders(path):
        if deep_only and folder == path:
            continue
        parts = folder.relative_to(path).parts or (path.resolve().name,)
        plain = "_".join(re.sub(r"[^\w-]+", "_", part).strip("_") for part in parts)
        plain = plain[-MOST_CHARACTERS:].strip("_") or "series"
        name, number = plain, 1
        while name.casefold() in (known.casefold() for known in scans):
            number += 1
            name = f"{plain}_{number}"
        scans[name] = folder
    return list(scans.items())
