"""Checks the text header of a MetaImage or NRRD file before SimpleITK reads the file.

Both formats may refer to any other file for their voxels and claim any size, and SimpleITK follows.
Here that file must lie beside the header, and the claimed size must fit the bytes that are there.
"""

import math
import re
from pathlib import Path

from attunet3d.core import DataError

HEADER_BYTES = 65_536  # read at most; headers have a few hundred
MOST_INFLATED = 1100  # bytes from one byte of a deflated stream; its limit is 1032
VOXELS_ENTRY = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*$", re.I | re.M)
SIZES_ENTRY = re.compile(rb"^(?:DimSize\s*=|sizes:)[ \t]*([0-9 \t]+?)\s*$", re.I | re.M)
ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")


def check(path: Path) -> None:
    """Refuse a header that points out of its folder or claims more than its bytes can hold.

    Files of other formats pass.

    Raises:
        DataError: The header does so, or gives no size.
    """
    if not path.name.lower().endswith(ENDINGS):
        return
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    if text.startswith(b"NRRD"):
        text = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]  # then come the voxels
    named = VOXELS_ENTRY.search(text)
    voxels = path
    if named is not None and named[1].upper() != b"LOCAL":
        voxels = _beside(path, named[1])
    sizes = SIZES_ENTRY.search(text)
    if sizes is None or len(sizes[1]) > 100:
        raise DataError("its header gives no size", path=path, cure="convert the scan again")
    count = math.prod(map(int, sizes[1].split()))
    held = voxels.stat().st_size
    if count > MOST_INFLATED * held:
        rule = f"claims {count} voxels, more than its {held} bytes can hold"
        raise DataError(rule, path=path, value=count, cure="copy it again")


def _beside(path: Path, name: bytes) -> Path:
    """The file in the folder of `path` to which its header refers."""
    # LIST is not a name: it announces a list of paths, which may lead anywhere.
    plain = re.fullmatch(rb"\w[\w .+-]*", name) and not name.upper().startswith(b"LIST")
    voxels = path.parent / name.decode("ascii") if plain else path
    inside = plain and voxels.is_file() and voxels.resolve().parent == path.resolve().parent
    if not inside:
        rule = "its voxels must be in the file itself or in one beside it"
        raise DataError(rule, path=path, cure="convert the scan to a single file")
    return voxels
