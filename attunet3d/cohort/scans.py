"""The scans of a call: what INPUT names, and checksums that tell them apart."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attunet3d.core import DataError, FileError, case_names
from attunet3d.datasets import Manifest, Split, held_out
from attunet3d.imaging import find_scans, parts_of

Scan = tuple[str, Path]
"""Case id and path."""


def find_cases(
    path: Path,
    root: Path | None = None,
    fold: int | None = None,
    *,
    everything: bool = False,
    split: Split | None = None,
    workspace: Path | None = None,
    apart: bool = True,
) -> list[Scan]:
    """List the scans that INPUT names: a file, a folder or archive of them, DICOM, or a manifest.

    Args:
        path: INPUT.
        root: Where the manifest's paths begin; None: where it says.
        fold: Of a manifest, its validation cases.
        everything: Of a manifest, all cases.
        split: What the model has seen; None: nothing is known. See `datasets.held_out`.
        workspace: See `imaging.find_scans`.
        apart: See `imaging.find_scans`.

    Raises:
        UserError: No scan was found.
    """
    if path.suffix.lower() == ".json":
        manifest = Manifest.load(path, root).require_files()
        cases = held_out(manifest, split or Split(), fold=fold, everything=everything)
        return [(case.id, case.image) for case in cases]
    if fold is not None or root is not None or everything:
        cure = "--fold, --all and --root go with one"
        raise DataError("is not a manifest", path=path, cure=cure)
    return find_scans(path, workspace, apart=apart)


def by_id(scans: Iterable[Scan]) -> dict[str, list[Path]]:
    """Scans by case id; ids that some file systems take for one are one.

    Example:
        >>> by_id([("a", Path("x")), ("A", Path("y")), ("b", Path("z"))])["a"]
        [PosixPath('x'), PosixPath('y')]
    """
    found: dict[str, tuple[str, list[Path]]] = {}
    for case_id, path in scans:
        found.setdefault(case_names.folded(case_id), (case_id, []))[1].append(path)
    return dict(found.values())


def identity(path: Path) -> tuple[int, int]:
    """What two names of one file share."""
    found = path.stat()
    return found.st_dev, found.st_ino


def checksum(scan: Path) -> str:
    """SHA-256 of the files that a scan consists of.

    Raises:
        FileError: A file cannot be read.
        DataError: The voxels that a header names do not lie beside it.
    """
    digest = hashlib.sha256()
    try:
        for part in parts_of(scan):
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise _unreadable(scan, error) from None
    return digest.hexdigest()


def version(scan: Path) -> list[tuple[str, int, int, int]]:
    """Names, identities, sizes and times of a scan's files: equal as long as nobody writes to them.

    Raises:
        FileError: A file is missing.
        DataError: The voxels that a header names do not lie beside it.
    """
    try:
        found = [(part, part.stat()) for part in parts_of(scan)]
    except OSError as error:
        raise _unreadable(scan, error) from None
    return [(part.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for part, stat in found]


def _unreadable(scan: Path, error: OSError) -> FileError:
    named = Path(error.filename or scan).name
    return FileError(
        f"cannot be read ({named}: {error.strerror})",
        path=scan,
        cure="check the file and its rights",
    )
