"""Archives of scans: everything in them is found, nothing leaves its folder, no bomb goes off."""

import struct
import zipfile
from pathlib import Path

import pytest

from attunet3d.core import DataError, WriteError
from attunet3d.imaging import archive, find_scans, read_volume, workspace
from tests.imaging.source_series import make_series


def write_series(folder: Path, first: int = 0, number: int = 3) -> None:
    """A series of seven slices, in files that begin to count at `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, slice_ in enumerate(make_series("axial")[0], first):
        slice_.SeriesNumber = number
        slice_.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def packed(folder: Path) -> Path:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    members = {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in files}
    return zipped(folder.with_suffix(".zip"), members)


def test_patients_and_series_of_any_depth_are_found_in_an_archive(tmp_path: Path) -> None:
    for name in ("dump/DOE/study 1/ct", "dump/DOE/study 2", "dump/ROE/deep/er/ct"):
        write_series(tmp_path / name)
    (tmp_path / "dump" / "DICOMDIR").write_bytes(b"index")
    source = packed(tmp_path / "dump")
    with workspace() as place:
        found = dict(find_scans(source, place))
        assert sorted(found) == ["DOE_study_1_ct", "DOE_study_2", "ROE_deep_er_ct"]
        assert {read_volume(path).grid.shape for path in found.values()} == {(20, 16, 7)}
    assert not any(path.exists() for path in found.values())


def test_several_series_in_one_folder_are_scans_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "flat", 0, number=2)
    write_series(tmp_path / "flat", 10, number=5)
    write_series(tmp_path / "other")
    with workspace() as place:
        found = dict(find_scans(tmp_path, place))
        assert sorted(found) == ["flat", "flat_2", "other"]
        assert found["other"] == tmp_path / "other"
        names = [sorted(path.name for path in found[name].iterdir()) for name in ("flat", "flat_2")]
        assert [len(part) for part in names] == [7, 7]
        assert not {name[-6:] for name in names[0]} & {name[-6:] for name in names[1]}
        assert [name for name, _ in find_scans(tmp_path, place, apart=False)] == ["flat", "other"]
        single = dict(find_scans(tmp_path / "flat", place))
        assert sorted(single) == ["flat", "flat_2"]
    assert [name for name, _ in find_scans(tmp_path)] == ["flat", "other"]


def test_a_folder_with_a_damaged_file_is_listed_so_that_reading_says_why(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    torn = (tmp_path / "ct" / "3.dcm").read_bytes()[:300]
    (tmp_path / "ct" / "3.dcm").write_bytes(torn)
    with workspace() as place:
        assert find_scans(tmp_path, place) == [("ct", tmp_path / "ct")]


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "/evil.dcm", "a/../../evil.dcm", "..\\evil.dcm", "C:\\evil.dcm", "a\nb"]
)
def test_a_name_that_leads_out_of_the_folder_refuses_the_archive(tmp_path: Path, name: str) -> None:
    source = zipped(tmp_path / "dump.zip", {"good.dcm": b"x", name: b"y"})
    with workspace() as place, pytest.raises(DataError, match=r"dump\.zip: path .* must be"):
        find_scans(source, place)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.zip"]


def test_a_bomb_is_stopped_while_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2_000_000)
    source = zipped(tmp_path / "bomb.zip", {"a": bytes(1_500_000), "b": bytes(50_000_000)})
    content = bytearray(source.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)  # what it claims to unpack to
    (tmp_path / "liar.zip").write_bytes(content)
    for name in ("bomb.zip", "liar.zip"):
        with workspace() as place:
            with pytest.raises(DataError, match=r"unpacks to more|cannot be unpacked"):
                find_scans(tmp_path / name, place)
            sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
            assert sum(sizes) <= 2_000_000


def test_too_many_files_are_refused_before_any_is_written(tmp_path: Path) -> None:
    source = zipped(tmp_path / "many.zip", {str(n): b"" for n in range(11)})
    with pytest.raises(DataError, match="holds 11 files; it must hold 1 to 10"):
        archive.unpack(source, archive.beneath(tmp_path / "out"), most_files=10)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_and_damage_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zipped(tmp_path / "dump.zip", {"a": b"x" * 1000})
    with pytest.raises(WriteError, match="name a larger disk by TMPDIR"):
        archive.unpack(source, lambda number, name: Path("/proc/none", name))
    place = archive.beneath(tmp_path / "out")
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be unpacked"):
        archive.unpack(source, place)
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as file:
        file.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", b"2")
    with pytest.raises(DataError, match="holds two files of the same name"):
        archive.unpack(twice, place)


def test_without_a_workspace_an_archive_is_no_scan(tmp_path: Path) -> None:
    source = zipped(tmp_path / "dump.zip", {"a": b"x"})
    assert find_scans(source) == [("dump.zip", source)]
