"""The first spoilt files of each reader, those that the long run of the fuzzer begins with.

`benchmarks/reliability/fuzz.py` says what is done and what must hold; it runs them by the ten
thousand in a process of bounded memory. Here they are read in this process, some seconds of them.
"""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core.errors import UserError
from benchmarks.reliability import (
    fuzz,
    fuzz_models,
    fuzz_nifti,
    fuzz_scans,
    fuzz_targets,
    fuzz_texts,
)
from benchmarks.reliability.fuzz_input import DisagreementError
from benchmarks.reliability.fuzz_targets import TARGETS, Target

INPUTS = 600


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.split(",")[0])
@pytest.mark.filterwarnings("ignore")
def test_spoilt_files_are_read_rightly_or_refused_clearly(tmp_path: Path, target: Target) -> None:
    outcomes = {}
    for number in range(round(INPUTS * target.share)):
        files = fuzz.make_input(target.name, number)
        outcomes[number], _ = fuzz.read_input(target.name, files, tmp_path / "input")
    assert {n: said for n, said in outcomes.items() if said not in ("taken", "refused")} == {}
    assert "refused" in outcomes.values()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.split(",")[0])
def test_the_same_number_gives_the_same_input(target: Target) -> None:
    one, again = (fuzz.make_input(target.name, 7) for _ in range(2))
    assert one == again
    assert any(one != fuzz.make_input(target.name, number) for number in range(8, 12))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.split(",")[0])
def test_sound_files_are_taken_by_readers_that_the_fuzzer_spoils(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the fuzzer would see refusals for a wrong reason, and nothing behind them."""
    harmless: dict[str, Callable[..., bytes]] = {
        "mutated": lambda data, rng, other=b"": data,
        "rezipped": lambda data, rng: data,
        "json_text": lambda value, rng: json.dumps(value).encode(),
        "yaml_text": lambda text, rng: text.encode(),
    }
    for module in (fuzz_models, fuzz_nifti, fuzz_scans, fuzz_texts):
        for name in harmless.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, harmless[name])
    if "NIfTI" in target.name:
        files = {"a.nii": fuzz_nifti.nifti_seeds()[0]}
    else:
        files = target.make(random.Random(0))
    assert fuzz.read_input(target.name, files, tmp_path / "input")[0] == "taken"


def test_what_the_fuzzer_looks_for_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with bugs, or a watchdog that sees nothing would look like a reader without."""
    faults: dict[str, Callable[[Path], Any]] = {
        "ZeroDivisionError": lambda path: 1 / 0,
        "unnamed": lambda path: _raise(UserError("it is damaged")),
        "unclear": lambda path: _raise(UserError(f"{path}: {'x' * 2000}")),
        "DisagreementError": lambda path: _raise(DisagreementError("other voxels")),
    }
    for kind, check in faults.items():
        broken = dataclasses.replace(TARGETS[0], name=kind, check=check)
        monkeypatch.setattr(fuzz_targets, "TARGETS", [broken])
        said, _ = fuzz.read_input(kind, {"a.nii": b""}, tmp_path / "input")
        assert said.startswith(f"bad: {kind}")


def _raise(error: Exception) -> None:
    raise error


def test_a_run_counts_what_it_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "INPUTS", 12)
    result = fuzz.run(tmp_path, small=False)
    assert len(result["rows"]) == len(TARGETS)
    assert all(row["good"] == row["tried"] for row in result["rows"]), result["failures"]
    assert "0 failures" in capsys.readouterr().out
    assert (tmp_path / "fuzz.json").is_file()
