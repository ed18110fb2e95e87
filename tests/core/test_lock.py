"""One process per folder, and a lock that ends with its process."""

import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from attunet3d.core import WriteError, locked_folder
from attunet3d.core.lock import HOLDER

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom attunet3d.core import locked_folder\n"
    "with locked_folder(Path(sys.argv[1]), 'train'):\n    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_a_second_process_is_told_which_one_holds_the_folder(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(WriteError) as caught, locked_folder(tmp_path, "infer"):
        pytest.fail("two hold it")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}: is in use by process {holder.pid} on {platform.node()} ")
    assert "(attunet3d train); wait until that process ends, or name another folder" in line
    assert caught.value.path == tmp_path
    assert json.loads((tmp_path / HOLDER).read_text(encoding="utf-8"))["pid"] == holder.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_dead_process_is_taken_over(
    tmp_path: Path, holder: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    holder.send_signal(number)
    holder.wait(20)
    with locked_folder(tmp_path, "infer"):
        facts = json.loads((tmp_path / HOLDER).read_text(encoding="utf-8"))
    assert (facts["pid"], facts["command"]) == (os.getpid(), "infer")
    assert not any(tmp_path.iterdir())


def test_one_after_the_other_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        with locked_folder(tmp_path / "new" / "folder", "train"):
            (tmp_path / "new" / "folder" / "result").touch()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["result"]


def test_two_threads_exclude_each_other_too(tmp_path: Path) -> None:
    refused = []

    def enter() -> None:
        try:
            with locked_folder(tmp_path, "infer"):
                pass
        except WriteError as error:
            refused.append(str(error))

    with locked_folder(tmp_path, "train"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} " in refused[0]


def test_different_folders_do_not_exclude_each_other(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "a", "infer"), locked_folder(tmp_path / "b", "infer"):
        assert (tmp_path / "a" / HOLDER).is_file()
        assert (tmp_path / "b" / HOLDER).is_file()


def test_a_holder_without_a_readable_name_is_another_process(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    for content in ("", "[]", "{}", '{"pid": 1}'):
        (tmp_path / HOLDER).write_text(content, encoding="utf-8")
        with pytest.raises(WriteError, match="in use by another process"):
            locked_folder(tmp_path, "infer").__enter__()


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(self: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path, "train"):
        (tmp_path / "result").touch()
    assert "has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(self: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(WriteError, match=r"written to \(Read-only.*choose another"):
        locked_folder(tmp_path, "train").__enter__()
