"""Bars on a terminal, lines of log elsewhere, nothing when the user asked for quiet."""

import io
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from attunet3d.core import Progress, log, progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_come_after_ten_seconds_and_then_every_thirty(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        work = Progress(100, "training", "step", done=10, clock=clock)
        for _ in range(90):  # a second each
            clock.now += 1
            work.update(1, {"loss": "0.5"})
        work.close()
    lines = [record.message for record in caplog.records]
    assert lines[0] == "training: 20/100 steps, 0:10 so far, 1:20 left, loss 0.5"
    assert lines[1].startswith("training: 50/100 steps, 0:40 so far, 0:50 left")
    assert lines[2].startswith("training: 80/100 steps, 1:10 so far, 0:20 left")
    assert lines[3] == "training: 100/100 steps, 1:30 so far, loss 0.5"
    assert len(lines) == 4


def test_short_work_says_nothing(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG), progress(2, "infer", "scan") as bar:
        bar.update(2)
    assert not caplog.records
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with log.messages():
        work = Progress(9, "infer", "scan", clock=clock)
        work.total = 4
        work.update(0.25)
        clock.now += 60
        work.update(3.75)
        logging.getLogger("attunet3d.x").warning("odd", extra={"case": "a"})
        work.close()
    shown = terminal.getvalue()
    assert "infer: 100%" in shown
    assert "4/4" in shown
    assert "a: warning: odd\n" in shown
    assert "so far" not in shown


def test_quiet_hides_bars_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with log.messages(quiet=True):
        work = Progress(4, "infer", clock=clock)
        clock.now += 60
        work.update(1)
        work.close()
    assert terminal.getvalue() == ""
    assert not progress_bar.hidden


def test_items_done_in_part_add_up_in_any_order() -> None:
    with progress(3, "infer", "scan") as bar:
        with bar.item() as first, bar.item() as second:
            first(0.5)
            second(0.25)
            assert bar.done == 0.75
            first(0.4)  # never backwards
            second(7.0)  # never more than the item
            assert bar.done == 1.5
        assert bar.done == 2
        with pytest.raises(ValueError, match="torn"), bar.item() as third:
            third(float("torn"))
        assert bar.done == 3  # the item is over


def test_many_threads_may_tell() -> None:
    with progress(800, "evaluate") as bar, ThreadPoolExecutor(8) as pool:
        for _ in range(800):
            pool.submit(bar.update)
    assert bar.done == 800
