"""Uploads: what is taken, what is refused, and that nothing of an archive lands outside."""

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attunet3d.core import DataError
from attunet3d.imaging import read_volume
from attunet3d.serving.uploads import MOST_MEMBERS, accept
from tests.imaging.source_series import make_series
from tests.known_network import ball, write_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def upload(folder: Path, content: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(content)
    return path


def zipped(members: Iterator[Any] | list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def series_files() -> Iterator[tuple[str, bytes]]:
    slices, _ = make_series("axial")
    for number, slice_ in enumerate(slices):
        stream = io.BytesIO()
        slice_.save_as(stream, enforce_file_format=True)
        yield f"PAT/{number}.dcm", stream.getvalue()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_file_gets_its_ending(folder: Path, tmp_path: Path, ending: str) -> None:
    content = write_scan(tmp_path / f"a{ending}").read_bytes()
    scan = accept(upload(folder, content), folder, 10**9)
    assert scan.name == f"scan{ending}"
    np.testing.assert_array_equal(read_volume(scan).array, ball())


def test_an_archive_of_a_series_becomes_its_folder(folder: Path) -> None:
    scan = accept(upload(folder, zipped(series_files())), folder, 10**9)
    assert scan.is_dir()
    assert len(list(scan.iterdir())) == 7
    assert [path.name for path in folder.iterdir()] == ["series"]


def test_one_nifti_file_in_an_archive_is_taken_out(folder: Path, tmp_path: Path) -> None:
    content = write_scan(tmp_path / "a.nii.gz").read_bytes()
    scan = accept(upload(folder, zipped([("x/y/a.nii.gz", content)])), folder, 10**9)
    assert scan == folder / "scan.nii.gz"


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"]
)
def test_paths_in_an_archive_lead_nowhere(folder: Path, tmp_path: Path, name: str) -> None:
    before = set(tmp_path.rglob("*"))
    accept(upload(folder, zipped([(name, b"x" * 400), ("b", b"y" * 400)])), folder, 10**9)
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new} == {folder, folder / "series"}
    assert {path.name for path in (folder / "series").iterdir()} == {"00000", "00001"}


def test_an_archive_that_unpacks_to_too_much_is_refused_while_it_unpacks(folder: Path) -> None:
    bomb = zipped([("a", bytes(50_000_000)), ("b", bytes(50_000_000))])
    assert len(bomb) < 200_000
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes"):
        accept(upload(folder, bomb), folder, 1_000_000)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_200_000


def test_a_directory_that_understates_its_sizes_does_not_help(folder: Path) -> None:
    content = bytearray(zipped([("a", bytes(5_000_000))]))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 100)  # the uncompressed size
    with pytest.raises(DataError, match=r"unpacks to more than|cannot be unpacked"):
        accept(upload(folder, bytes(content)), folder, 1_000_000)


def test_too_many_members_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=f"holds {MOST_MEMBERS + 1} files"):
        accept(upload(folder, zipped((str(n), b"") for n in range(MOST_MEMBERS + 1))), folder, 10)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"GIF89a" + bytes(400), zipped([]), zipped([("a", b"x")])[:-10]],
    ids=["empty", "text", "picture", "empty archive", "torn archive"],
)
def test_what_is_no_scan_is_refused(folder: Path, content: bytes) -> None:
    with pytest.raises(DataError):
        accept(upload(folder, content), folder, 10**9)


def test_any_gzip_is_left_to_the_reader(folder: Path) -> None:
    scan = accept(upload(folder, gzip.compress(b"no scan")), folder, 10**9)
    with pytest.raises(ValueError, match="scan"):
        read_volume(scan)
