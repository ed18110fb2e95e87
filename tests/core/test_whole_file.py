"""A reader sees the old file or the new one, whatever goes wrong."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core import WriteError, whole_file
from attunet3d.core.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    whole_file.write_bytes(tmp_path / "a.bin", b"\x00\xff" * 1000)
    whole_file.write_text(tmp_path / "b.txt", "Größe 3 µl\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff" * 1000
    assert (tmp_path / "b.txt").read_bytes() == "Größe 3 µl\n".encode()
    assert names(tmp_path) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("data", [b"", memoryview(b"view"), bytes(3_000_000)])
def test_any_bytes_are_written_whole(tmp_path: Path, data: memoryview | bytes) -> None:
    whole_file.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == bytes(data)


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old and longer")
    whole_file.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_the_check_sees_the_whole_file_before_it_has_its_name(tmp_path: Path) -> None:
    path, seen = tmp_path / "scan.nii.gz", []

    def check(temporary: Path) -> None:
        seen.append((temporary.read_bytes(), temporary.parent, temporary.name, path.exists()))

    whole_file.write_bytes(path, b"whole", check)
    [(content, folder, name, existed)] = seen
    assert (content, folder, existed) == (b"whole", tmp_path, False)
    assert name.startswith(".")  # hidden, so that no folder scan takes it for a case


@pytest.mark.parametrize("error", [UserError("wrong"), KeyboardInterrupt(), RuntimeError("bug")])
def test_what_the_check_raises_cancels_the_write(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def check(temporary: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        whole_file.write_bytes(path, b"new", check)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_missing_folder_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a"
    with pytest.raises(WriteError) as caught:
        whole_file.write_bytes(path, b"new")
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written (No such file or directory); ")
    assert "choose another output folder" in message
    assert "\n" not in message


def test_a_file_that_stands_where_a_folder_should_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("stands")
    with pytest.raises(WriteError, match=r"Not a directory"):
        whole_file.write_bytes(tmp_path / "file" / "a", b"new")
    with pytest.raises(WriteError, match=r"cannot be created"):
        whole_file.make_folder(tmp_path / "file" / "a")
    with pytest.raises(WriteError, match=r"cannot be created \(File exists\)"):
        whole_file.make_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "stands"


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="folder: cannot be written"):
        whole_file.write_bytes(tmp_path / "folder", b"new")
    assert names(tmp_path) == ["folder"]


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    """The size limit of a process ends a write in its middle, as a full disk does."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from attunet3d.core import WriteError, whole_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    whole_file.write_bytes(Path(sys.argv[1]), bytes(1_000_000))\n"
        "except WriteError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large); free space")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom attunet3d.core import whole_file\n"
        "whole_file.write_bytes(Path(sys.argv[1]), b'new', lambda temporary: os._exit(9))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert path.read_bytes() == b"old"
    assert all(name.startswith(".") for name in names(tmp_path) if name != "a")
    assert len(names(tmp_path)) == 2
    whole_file.sweep(tmp_path)
    assert names(tmp_path) == ["a"]


def test_sweeping_leaves_what_is_being_written_and_what_is_not_ours(tmp_path: Path) -> None:
    others = [".a.tmp", ".writing-", ".writing-12345678.tmp", "writing-12345678.a.tmp"]
    for name in others:
        (tmp_path / name).touch()
    whole_file.write_bytes(tmp_path / "a", b"whole", lambda temporary: whole_file.sweep(tmp_path))
    assert (tmp_path / "a").read_text(encoding="utf-8") == "whole"
    assert names(tmp_path) == sorted(["a", *others])
    whole_file.sweep(tmp_path / "missing")


def test_a_file_written_in_pieces_appears_whole_and_only_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file.replacing(path) as file:
        file.write(b"first ")
        assert not path.exists()
        file.write(b"second")
    assert path.read_bytes() == b"first second"
    with pytest.raises(ZeroDivisionError), whole_file.replacing(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"first second"
    assert names(tmp_path) == ["a"]


def test_readers_beside_a_writer_see_whole_files_only(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "a", set(), threading.Event()
    contents = [bytes([letter]) * 200_000 for letter in b"abcdef"]
    whole_file.write_bytes(path, contents[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        whole_file.write_bytes(path, content)
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_writers_of_one_name_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([letter]) * 50_000 for letter in b"abcdef"]
    writers = [threading.Thread(target=whole_file.write_bytes, args=(path, c)) for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o002])
def test_files_are_as_readable_as_the_user_makes_all_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        whole_file.write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_the_umask_of_the_process_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting it to read it, in two threads, can leave the process with the wrong one for good."""

    def umask(mask: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "umask", umask)
    whole_file.write_bytes(tmp_path / "a", b"")


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    whole_file.write_bytes(path, b"whole")
    assert names(tmp_path) == [path.name]


def test_without_locks_nothing_open_is_renamed_and_leftovers_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where an open file can be neither renamed nor deleted."""
    monkeypatch.setattr(whole_file, "fcntl", None)
    opened: list[Any]
    replace, opened = os.replace, []

    def windows_replace(source: Path, target: Path) -> None:
        assert all(file.closed for file in opened)
        replace(source, target)

    monkeypatch.setattr(os, "replace", windows_replace)
    with whole_file.replacing(tmp_path / "a") as file:
        opened.append(file)
        file.write(b"whole")
    (tmp_path / ".writing-01234567.b.tmp").touch()
    whole_file.sweep(tmp_path)
    assert names(tmp_path) == ["a"]
