"""The table of a public benchmark: our scores as they were measured, others' with their sources.

Scans are not read and nothing is trained here: two functions stand in for both.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from attunet3d.core import UserError, command_line
from attunet3d.datasets import pair_check
from benchmarks.accuracy import reproduce

SCORES = {"mean": 0.8, "std": 0.05, "mean_ci95": [0.78, 0.82]}
Reproduce = Callable[..., int]


def data_set(folder: Path, **parts: int) -> Path:
    """A data set in the layout of MSD with so many cases per list, whose files are empty."""
    lists: dict[str, list[dict[str, str]]] = {}
    for part, count in parts.items():
        for kind in ("images", "labels"):
            (folder / f"{kind}_{part}").mkdir(parents=True)
        names = [f"{part}_{number}.nii.gz" for number in range(count)]
        lists[part] = [
            {"image": f"images_{part}/{name}", "label": f"labels_{part}/{name}"} for name in names
        ]
        for path in (path for case in lists[part] for path in case.values()):
            (folder / path).touch()
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **lists}))
    return folder


def folds(out: Path) -> dict[str, int | None]:
    """Fold by case, as the manifest in `out` says."""
    cases = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["training"]
    return {case["id"]: case.get("fold") for case in cases}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """Reproduces a benchmark: all scans are right, and the training is known."""

    def trained(argv: Sequence[str]) -> int:
        (Path(argv[2]) / "fold0").mkdir(parents=True, exist_ok=True)
        results = Path(argv[2]) / "cross_validation"
        results.mkdir(exist_ok=True)
        summary = {"scored": 4, "labels": {"1": {"name": "pancreas", "dice": SCORES}}}
        (results / "summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(pair_check, "check_pairs", lambda *_: [])
    monkeypatch.setattr("benchmarks.accuracy.reproduce.train_command.main", trained)
    return lambda *argv: command_line.run(reproduce.main, [str(value) for value in argv])


def test_the_table_holds_our_scores_and_the_published_ones(tmp_path: Path) -> None:
    labels = {
        "1": {"name": "pancreas", "dice": SCORES},
        "2": {"name": "tumour", "dice": SCORES | {"mean": 0.5, "std": None}},
    }
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"labels": labels, "scored": 7}), encoding="utf-8")
    lines = reproduce.table(reproduce.find_benchmark("msd07"), path, ["a", "b"]).splitlines()
    assert lines[2] == "| who | what | Dice | A100 h | source |"
    ours = "| this run | pancreas, out of fold | 0.800 ± 0.050 (0.780 to 0.820) | not measured |"
    assert lines[4].startswith(ours)
    assert "| mean of 2 labels, out of fold | 0.650 |" in lines[6]
    assert lines[7].startswith("| MONAI DiNTS bundle | mean of pancreas and tumour | 0.62 |")
    assert "Cases scored: 7. Left out: a, b." in lines
    with pytest.raises(UserError, match="no such summary"):
        reproduce.table(reproduce.find_benchmark("msd07"), tmp_path / "missing.json", [])


def test_every_published_number_has_its_source() -> None:
    content = yaml.safe_load(reproduce.PUBLISHED.read_text("utf-8"))
    assert list(content) == ["msd07", "nih82", "amos", "btcv"]
    for name in content:
        for row in reproduce.find_benchmark(name).published:
            assert {"who", "what", "dice", "source"} <= set(row)
            assert 0 < float(row["dice"].split()[0]) < 1


def test_a_folder_keeps_to_one_benchmark_and_its_data(
    call: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, other, out = (tmp_path / name for name in ("data", "other", "out"))
    for folder in (data, other):
        data_set(folder, training=4)
    assert call("btcv", data, out) == 0
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "Cases scored: 4. Left out: none." in table
    for name, place in (("amos", data), ("btcv", other)):
        assert call(name, place, out) == 2
        said = f"{out}: holds btcv of {data}; name another folder"
        assert said in capsys.readouterr().err
    assert call("btcv", tmp_path / "none", out) == 2
    assert "none: must be the folder of the data set" in capsys.readouterr().err
    assert (out / "table.md").read_text(encoding="utf-8") == table
    assert call("btcv", data, out) == 0  # goes on
    (out / "benchmark.txt").unlink()
    assert call("btcv", data, out) == 2
    assert "holds a run of something else" in capsys.readouterr().err


def test_nnunets_splits_are_the_folds_of_msd07(call: Reproduce, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", training=281, test=139)
    names = [f"training_{number}" for number in range(281)]
    parts = [names[:100], names[100:]]  # which no shuffle gives
    splits = [{"train": [n for n in names if n not in part], "val": part} for part in parts]
    (data / "splits_final.json").write_text(json.dumps(splits))
    assert call("msd07", data, tmp_path / "splits") == 0
    found = folds(tmp_path / "splits")
    assert [[name for name in names if found[name] == fold] for fold in (0, 1)] == parts
    (data / "splits_final.json").unlink()
    assert call("msd07", data, tmp_path / "five") == 0
    assert set(folds(tmp_path / "five").values()) == {0, 1, 2, 3, 4}


def test_a_data_set_with_validation_cases_gets_folds_of_its_training_cases(
    call: Reproduce, tmp_path: Path
) -> None:
    data = data_set(tmp_path / "data", training=5, validation=2, test=1)
    assert call("amos", data, tmp_path / "out") == 0
    found = folds(tmp_path / "out")
    assert sorted(found) == [f"training_{number}" for number in range(5)]
    assert sorted(fold for fold in found.values() if fold is not None) == [0, 1, 2, 3, 4]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert [len(manifest[part]) for part in ("validation", "test")] == [2, 1]


def test_cases_that_are_left_out_are_named_and_make_the_status_1(
    call: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = pair_check.Problem(case_id="training_3", text="is cut off")
    monkeypatch.setattr(pair_check, "check_pairs", lambda *_: [problem])
    data, out = data_set(tmp_path / "data", training=5), tmp_path / "out"
    assert call("amos", data, out) == 1
    assert "Cases scored: 4. Left out: training_3." in (out / "table.md").read_text("utf-8")
    (out / "run" / "cross_validation" / "failures.json").write_text('{"training_1": "is cut"}')
    assert call("amos", data, out) == 1
    assert "Left out: training_1, training_3." in (out / "table.md").read_text("utf-8")


def test_what_is_refused_leaves_no_folder(
    call: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_set(tmp_path / "data", training=4)
    for name, said in (("msd07", "lists 4 training cases, "), ("nih82", "0 match ")):
        assert call(name, data, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert said in error
        assert "--template" not in error
        assert not (tmp_path / "out").exists()
