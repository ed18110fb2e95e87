"""The table of a public benchmark: our scores as they were measured, others' with their sources."""

import json
from pathlib import Path

import pytest
import yaml

from attunet3d.core import UserError
from benchmarks.accuracy import reproduce


def test_the_table_holds_our_scores_and_the_published_ones(tmp_path: Path) -> None:
    scores = {"mean": 0.8, "std": 0.05, "mean_ci95": [0.78, 0.82]}
    labels = {
        "1": {"name": "pancreas", "dice": scores},
        "2": {"name": "tumour", "dice": scores | {"mean": 0.5, "std": None}},
    }
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"labels": labels}), encoding="utf-8")
    lines = reproduce.table(reproduce.find_benchmark("msd07"), path).splitlines()
    assert lines[2] == "| who | what | Dice | A100 h | source |"
    ours = "| this run | pancreas, out of fold | 0.800 ± 0.050 (0.780 to 0.820) | not measured |"
    assert lines[4].startswith(ours)
    assert "| mean of 2 labels, out of fold | 0.650 |" in lines[6]
    assert lines[7].startswith("| MONAI DiNTS bundle | mean of pancreas and tumour | 0.62 |")
    with pytest.raises(UserError, match="no such summary"):
        reproduce.table(reproduce.find_benchmark("msd07"), tmp_path / "missing.json")


def test_every_published_number_has_its_source() -> None:
    content = yaml.safe_load(reproduce.PUBLISHED.read_text("utf-8"))
    assert list(content) == ["msd07", "nih82", "amos", "btcv"]
    for name in content:
        for row in reproduce.find_benchmark(name).published:
            assert {"who", "what", "dice", "source"} <= set(row)
            assert 0 < float(row["dice"].split()[0]) < 1
