"""Which case ids and paths a manifest may hold: nothing that leaves its folder, on any system.

An id becomes the name of a file in an output folder, a path is opened beneath a root. Both come
from files that others wrote, so both are held to what Linux, macOS and Windows all take alike.
"""

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
    """Return `case_id` if it can name a file everywhere.

    Raises:
        DataError: It cannot.

    Example:
        >>> check_id("pancreas_001")
        'pancreas_001'
        >>> check_id("../pancreas_001")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.DataError: id '../pancreas_001': must be a plain file name ...
    """
    if not isinstance(case_id, str) or not _is_plain(case_id):
        raise DataError(
            f"id {_shown(case_id)}: must be a plain file name without control characters, slashes"
            ' or any of : * ? " < > | and without a dot or space at its ends; rename the case'
        )
    if len(case_id.encode()) > NAME_BYTES:
        raise DataError(
            f"id {_shown(case_id)}: must be at most {NAME_BYTES} bytes long; rename the case"
        )
    if _is_reserved(case_id) or case_id.lower() in _OUR_FILES:
        raise DataError(
            f"id {case_id!r}: is a name that systems or output folders keep for themselves;"
            " rename the case"
        )
    return case_id


def folded(case_id: str) -> str:
    """What two ids share that some file systems take for one name (case, Unicode forms).

    Example:
        >>> folded("Case_É") == folded("case_e\u0301")
        True
    """
    return unicodedata.normalize("NFC", case_id).casefold()


def inside(root: Path, relative: object) -> Path:
    """The absolute path of `relative` beneath `root`, links followed.

    A root may itself be a link, and links that stay beneath it are followed; one that leads out
    is refused, as it could name any file of the reader's machine.

    Args:
        root: An existing or future folder.
        relative: A path as a manifest holds it, with forward slashes.

    Raises:
        DataError: It is no plain relative path, or leads out of `root`.

    Example:
        >>> inside(Path("/data"), "./imagesTr/a.nii.gz").as_posix()
        '/data/imagesTr/a.nii.gz'
    """
    if not isinstance(relative, str) or not relative.isprintable():
        raise DataError(f"path {_shown(relative)}: must be text without control characters")
    parts = PurePosixPath(relative).parts
    if not parts or len(relative.encode()) > PATH_BYTES:
        raise DataError(f"path {_shown(relative)}: is empty or too long; name a file")
    if parts[0] == "/" or ".." in parts or "\\" in relative or relative[1:2] == ":":
        raise DataError(
            f"path {_shown(relative)}: must be relative to the root, with forward slashes and"
            " without '..'; give another root"
        )
    if any(_is_reserved(part) or len(part.encode()) > 255 for part in parts):
        raise DataError(f"path {_shown(relative)}: no file can have this name; rename it")
    try:
        base = root.resolve()
        path = base.joinpath(*parts).resolve()
    except (OSError, RuntimeError, ValueError):  # a ring of links
        raise DataError(f"path {relative!r}: leads nowhere; mend the link") from None
    if not path.is_relative_to(base):
        raise DataError(
            f"path {relative!r}: is a link that leads out of the root {base}; copy the file or"
            " give a root that holds both"
        )
    return path


def is_name(value: object) -> bool:
    r"""Whether a value can name a label, a patient or a data set: one short line of text.

    Example:
        >>> is_name("pancreas (head)"), is_name(""), is_name(["liver"]), is_name("a\x1b[2J")
        (True, False, False, False)
    """
    return isinstance(value, str) and 0 < len(value) <= NAME_BYTES and value.isprintable()


def stem(name: str) -> str:
    """A file name less the ending of an image, or the name as it is.

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


def _shown(value: object) -> str:
    return repr(value if isinstance(value, str | int | float | None) else type(value).__name__)[:80]
