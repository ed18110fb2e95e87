"""DICOM files from elsewhere: whatever lengths they claim, memory is bounded and slices kept."""

import resource
import struct
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core import DataError
from attunet3d.imaging.dicom_file import parse
from attunet3d.imaging.volume import read_volume
from tests.imaging.test_dicom import write_series

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, DEFLATED, JPEG = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70"
UNDEFINED = 0xFFFFFFFF
LONG = {"OB", "OW", "SQ", "UN", "UT"}
ITEM, ITEM_END, END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)


def element(
    tag: tuple[int, int],
    kind: str | None,
    value: bytes = b"",
    length: int | None = None,
    order: str = "<",
) -> bytes:
    """One element; an implicit one has no type."""
    length = len(value) if length is None else length
    head = struct.pack(order + "HH", *tag)
    if kind is None:
        return head + struct.pack(order + "I", length) + value
    if kind in LONG:
        return head + kind.encode() + struct.pack(order + "HI", 0, length) + value
    return head + kind.encode() + struct.pack(order + "H", length) + value


def text(tag: tuple[int, int], kind: str | None, value: str, **how: Any) -> bytes:
    return element(tag, kind, value.encode() + b" " * (len(value) % 2), **how)


def file(*elements: Any, syntax: str = EXPLICIT, meta: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + text((2, 0x10), "UI", syntax) + meta + b"".join(elements)


SERIES = text((0x20, 0xE), "UI", "1.2.3")
PIXELS = element((0x7FE0, 0x10), "OW", bytes(64))
NAME = text((0x10, 0x10), "PN", "DOE^JANE")


def sequence(*items: Any, kind: str = "SQ", length: int | None = None) -> bytes:
    return element((0x40, 0x275), kind, b"".join(items), length)


SOUND = {
    "plain": file(NAME, SERIES, PIXELS),
    "implicit": file(text((0x20, 0xE), None, "1.2.3"), syntax=IMPLICIT),
    "big": file(text((0x20, 0xE), "UI", "1.2.3", order=">"), syntax=BIG),
    "sequence": file(sequence(element(ITEM, None, NAME)), SERIES),
    "open sequence": file(
        sequence(element(ITEM, None, NAME, UNDEFINED), element(ITEM_END, None), length=UNDEFINED),
        element(END, None),
        SERIES,
    ),
    "unknown sequence": file(
        sequence(element(ITEM, None, element((9, 1), None, b"ab")), kind="UN", length=UNDEFINED),
        element(END, None),
        SERIES,
    ),
    "series of another within": file(
        sequence(element(ITEM, None, text((0x20, 0xE), "UI", "9.9"))), SERIES
    ),
    "compressed": file(
        SERIES,
        element(
            (0x7FE0, 0x10), "OB", element(ITEM, None) + element(ITEM, None, b"x" * 8), UNDEFINED
        ),
        element(END, None),
        syntax=JPEG,
    ),
}


def test_sound_files_of_all_kinds_are_parsed(tmp_path: Path) -> None:
    for name, data in SOUND.items():
        path = tmp_path / name
        path.write_bytes(data)
        with path.open("rb") as file:
            found = parse(file.fileno(), path, header_only=True)
        assert found.SeriesInstanceUID == "1.2.3", name


def test_a_cut_anywhere_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write_series(folder, (0, 0, 2.5), count=2)
    path = sorted(folder.iterdir())[0]
    whole = path.read_bytes()
    for keep in range(132, len(whole), 7):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="series"):
            read_volume(folder)


def deep(depth: int) -> bytes:
    data = NAME
    for _ in range(depth):
        data = sequence(element(ITEM, None, data))
    return data


@pytest.mark.parametrize(
    "data",
    [
        file(element((0x10, 0x10), "UN", b"x", 0xFFFFFFF0), SERIES),
        file(element((0x10, 0x10), "PN", b"x", 0xFFF0), SERIES),
        file(element((0x10, 0x10), "OB", b"x", UNDEFINED), SERIES),
        file(sequence(element(ITEM, None, b"x", 0x7FFFFFFF)), SERIES),
        file(sequence(element(ITEM, None, element((9, 1), "OB", b"x", 1 << 30))), SERIES),
        file(element((0x40, 0x275), None, element(ITEM, None, b"x" * 8, 1 << 30)), syntax=IMPLICIT),
        file(element((0x7FE0, 0x10), "OB", element(ITEM, None, b"", 1 << 31), UNDEFINED)),
        file(element((0x10, 0x10), "??", b"xx"), SERIES),
        file(deep(40), SERIES),
        file(SERIES, syntax=DEFLATED),
        file(SERIES, syntax=""),
        file(SERIES, syntax="1" * 100),
        bytes(128) + b"DICM" + SERIES,
        bytes(128) + b"DICM",
        bytes(128) + b"DICM\xff",
    ],
)
def test_lengths_beyond_the_file_are_not_believed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        read_volume(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert "DOE" not in str(caught.value)


def test_a_slice_that_claims_more_pixels_than_it_holds_is_refused(tmp_path: Path) -> None:
    size = [element((0x28, place), "US", struct.pack("<H", 60_000)) for place in (0x10, 0x11)]
    bits = [element((0x28, place), "US", struct.pack("<H", 16)) for place in (0x100, 0x101)]
    one = element((0x28, 2), "US", struct.pack("<H", 1))
    what = text((8, 0x16), "UI", "1.2.840.10008.5.1.4.1.1.2") + text((8, 0x18), "UI", "1.2.3.4")
    (tmp_path / "a.dcm").write_bytes(file(what, SERIES, one, *size, *bits, PIXELS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=str(tmp_path)):
        read_volume(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
