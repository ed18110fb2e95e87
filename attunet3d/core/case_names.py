"""Checks the case ids and relative paths of manifests, for Linux, macOS and Windows alike.

An id becomes a file name in an output folder, and a path is opened below a root. Both may come from
somebody else's file, so neither may lead out of its folder.
"""

import os
import unicodedata
from pathlib import Path, PurePosixPath

from attunet3d.core.errors import DataError

NIFTI_ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
OTHER_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
ENDINGS = (*NIFTI_ENDINGS, *OTHER_ENDINGS)  # of scans and label maps
NAME_BYTES = 200  # file systems allow 255 with all endings
PATH_BYTES = 4096
_FORBIDDEN = set('/\\:*?"<>|')
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)
}
_OUR_FILES = {"failures", "summary", "scores"}  # of an output folder


def check_id(case_id: object) -> str:
    """Return `case_id` if it is a valid file name on every system.

    Raises:
        DataError: It is not.

    Example:
        >>> check_id("pancreas_001")
        'pancreas_001'
        >>> check_id("../pancreas_001")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.DataError: id '../pancreas_001': must be a plain file name ...
    """
    rule = None
    if not isinstance(case_id, str) or not _is_plain(case_id):
        rule = (
            "must be a plain file name without control characters, slashes or any of"
            ' : * ? " < > | and without a dot or space at its ends'
        )
    elif len(case_id.encode()) > NAME_BYTES:
        rule = f"must be at most {NAME_BYTES} bytes long"
    elif _is_reserved(case_id) or case_id.lower() in _OUR_FILES:
        rule = "is reserved by operating systems or for files of output folders"
    if rule is not None:
        raise DataError(f"id {_shown(case_id)}: {rule}", value=case_id, cure="rename the case")
    assert isinstance(case_id, str)
    return case_id


def folded(case_id: str) -> str:
    """Return the id without the differences that some file systems ignore in names.

    These are letter case and Unicode composition.

    Example:
        >>> folded("Case_É") == folded("case_e\u0301")
        True
    """
    return unicodedata.normalize("NFC", case_id).casefold()


def inside(root: Path, relative: object, *, follow_links: bool = False) -> Path:
    """The absolute path of `relative` beneath `root`.

    The root may itself be a link, and links to targets below it are followed. A link that leads out
    of the root could point to any file of this machine, so it is refused by default. Where the user
    named the root, the links are the user's own (DataLad, git-annex) and may be followed.

    Args:
        root: A folder, which need not exist.
        relative: A path with forward slashes, as in a manifest.
        follow_links: Accept links that lead out of the root and return the path of the link.

    Raises:
        DataError: The path is not a plain relative path, or leads out of `root`.

    Example:
        >>> inside(Path("/data"), "./imagesTr/a.nii.gz").as_posix()
        '/data/imagesTr/a.nii.gz'
    """
    parts = _parts(relative)
    try:
        base = root.resolve()
        path = base.joinpath(*parts).resolve()
    except (OSError, RuntimeError, ValueError):  # a ring of links
        raise _path_error(relative, "is a link that leads to itself", "fix the link") from None
    if path.is_relative_to(base):
        return path
    if follow_links:
        return base.joinpath(*parts)
    raise _path_error(
        relative,
        f"is a link that leads out of the root {base}",
        f"if the folder is your own, follow its links with --root {base}",
    )


def _parts(relative: object) -> tuple[str, ...]:
    """Split a relative path that is valid on every system."""
    if not isinstance(relative, str) or not relative.isprintable():
        raise _path_error(relative, "must be text without control characters", "name a file")
    parts = PurePosixPath(relative).parts
    if not parts or len(relative.encode()) > PATH_BYTES:
        raise _path_error(relative, "is empty or too long", "name a file")
    if parts[0].startswith("/") or ".." in parts or "\\" in relative or relative[1:2] == ":":
        rule = "must be relative to the root, with forward slashes and without '..'"
        raise _path_error(relative, rule, "use --root to name a folder that contains all files")
    if any(_is_reserved(part) or len(part.encode()) > 255 for part in parts):
        raise _path_error(relative, "is not a valid file name on every system", "rename it")
    return parts


def is_name(value: object) -> bool:
    r"""Whether a value is a valid name of a label, patient or data set: one short line of text.

    Example:
        >>> is_name("pancreas (head)"), is_name(""), is_name(["liver"]), is_name("a\x1b[2J")
        (True, False, False, False)
    """
    return isinstance(value, str) and 0 < len(value) <= NAME_BYTES and value.isprintable()


def stem(name: str) -> str:
    """A file name without the ending of an image, or the name itself if it has none.

    Example:
        >>> stem("pancreas_001.nii.gz"), stem("PANCREAS_0001")
        ('pancreas_001', 'PANCREAS_0001')
    """
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _is_plain(text: str) -> bool:
    bare = text.strip(" .") == text and bool(text)
    return bare and text.isprintable() and not set(text) & _FORBIDDEN


def _is_reserved(name: str) -> bool:
    return name.split(".")[0].strip().lower() in _DEVICES


def _path_error(path: object, rule: str, cure: str) -> DataError:
    return DataError(f"path {_shown(path)}: {rule}", value=path, cure=cure)


def _shown(value: object) -> str:
    return repr(value if isinstance(value, str | int | float | None) else type(value).__name__)[:80]


def path_from(folder: Path, path: Path) -> str:
    """The path relative to a folder, with forward slashes; absolute if it is on another drive.

    Example:
        >>> path_from(Path("out"), Path("scans", "ct.nii.gz"))
        '../scans/ct.nii.gz'
    """
    there = path.resolve()
    try:
        return Path(os.path.relpath(there, folder.resolve())).as_posix()
    except ValueError:  # Windows: another drive
        return there.as_posix()
