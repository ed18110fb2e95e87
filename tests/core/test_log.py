"""Messages on stderr and in a log file."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core import WriteError, log

LOG = logging.getLogger("attunet3d.cohort.run")


def speak() -> None:
    LOG.debug("detail")
    LOG.info("3 done")
    LOG.warning("not HU", extra={"case": "b"})
    LOG.error("is torn", extra={"case": "c\nd"})
    LOG.error("a\nb\x1b[0m")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, ["3 done", "b: warning: not HU"]),
        ({"debug": True}, ["detail", "3 done", "b: warning: not HU"]),
        ({"quiet": True}, []),
    ],
)
def test_stderr_gets_what_was_asked_for_one_line_each(
    options: dict[str, Any], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with log.messages(**options):
        speak()
    errors = [r"c\nd: error: is torn", r"attunet3d: error: a b\x1b[0m"]
    assert capsys.readouterr().err.splitlines() == lines + errors


def test_a_log_file_gets_everything_with_its_time_even_when_quiet(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for _ in range(2):  # the second call adds to it
        with log.messages(quiet=True, log_file=path):
            speak()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} b: warning: not HU", lines[2])


def test_the_logger_is_afterwards_as_it_was() -> None:
    before = (log.ROOT.level, list(log.ROOT.handlers))
    with pytest.raises(KeyError), log.messages():
        raise KeyError
    assert (log.ROOT.level, log.ROOT.handlers) == before


def test_a_log_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"the log cannot be written \(No such file"),
        log.messages(log_file=tmp_path / "missing" / "log.txt"),
    ):
        pytest.fail("it was opened")


def test_a_stderr_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with log.messages():
        speak()
