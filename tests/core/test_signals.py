"""The first Ctrl-C or SIGTERM ends a command within two seconds, the second at once."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from attunet3d.core import stop_requests

BEGIN = """
import concurrent.futures, hashlib, signal, sys, threading, time
from attunet3d.core import command_line, stop_requests
def ready():
    print("ready", flush=True)
def long_call():  # of a library: no signal handler runs before it ends
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000_000)
def main(argv):
"""
STUCK = {
    "main_thread": "    long_call()",
    "worker": (
        "    with concurrent.futures.ThreadPoolExecutor(1) as pool:\n"
        "        pool.submit(long_call).result()"
    ),
    "cleanup": "    try:\n        ready(); time.sleep(60)\n    finally:\n        time.sleep(60)",
    "left_thread": "    threading.Thread(target=long_call).start(); time.sleep(60)",
}
SAVING = """
    with stop_requests() as requests:
        ready()
        while not requests:
            time.sleep(0.01)
        time.sleep(float(argv[0]))
        print("saved", flush=True)
        requests.leave()
"""


@pytest.fixture
def children() -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(
    children: list["subprocess.Popen[str]"], code: str, *arguments: str
) -> "subprocess.Popen[str]":
    script = f"{BEGIN}{code}\nraise SystemExit(command_line.run(main))"
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", STUCK)
def test_the_first_signal_ends_a_command_that_is_stuck(
    children: list["subprocess.Popen[str]"], place: str, number: signal.Signals
) -> None:
    child = start(children, STUCK[place])
    child.send_signal(number)
    _, err = child.communicate(timeout=20)  # two seconds on a machine that is idle
    assert child.returncode == 128 + number
    assert "Traceback" not in err
    assert number == signal.SIGTERM or err.count("interrupted") == 1


def test_a_run_that_saves_is_waited_for(children: list["subprocess.Popen[str]"]) -> None:
    child = start(children, SAVING, "3")
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (143, "saved\n")
    assert "stopping as soon as the state is saved" in err


def test_the_second_signal_ends_even_that_at_once(
    children: list["subprocess.Popen[str]"],
) -> None:
    child = start(children, SAVING, "60")
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    assert "stopping" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (130, "")


def test_a_run_notes_the_first_signal_and_is_left_by_the_second() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as requests:
        assert not requests
        signal.raise_signal(signal.SIGTERM)
        assert requests
        assert requests.number == signal.SIGTERM
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_may_be_abandoned_is_left_at_once() -> None:
    with stop_requests() as requests:
        with requests.at_once():
            pass
        with pytest.raises(SystemExit, match="143"), requests.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert requests.number == signal.SIGTERM
        with pytest.raises(SystemExit), requests.at_once():  # nor is anything more begun
            pytest.fail("it began")


def test_outside_the_main_thread_signals_belong_to_others() -> None:
    found = []

    def work() -> None:
        with stop_requests() as requests:
            found.append(bool(requests))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
