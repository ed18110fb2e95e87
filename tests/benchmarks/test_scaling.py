"""The scripts that time training items, starts and growth: what they compute, on toy sizes."""

import importlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def script(name: str) -> Any:
    return importlib.import_module(f"benchmarks.speed.{name}")


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    exponent = script("growth").exponent
    assert exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert exponent([1, 7, 30], [4, 4, 4]) == pytest.approx(0)


def test_growth_beyond_the_mark_is_called_a_miss() -> None:
    growth = script("growth")
    question = growth.Question("voxels", 1.1, 0.1, lambda *_: [])
    points = [growth.Point(10.0**n, 10.0**n, 50.0) for n in range(3)]
    assert [growth.judge(question, points)[kind]["reached"] for kind in ("time", "memory")] == [
        True,
        True,
    ]
    steep = [growth.Point(p.size, p.seconds**1.5, p.size) for p in points]
    told = growth.judge(question, steep)
    assert told["time"]["exponent"] == 1.5
    assert not told["time"]["reached"]
    assert not told["memory"]["reached"]
    assert "time: exponent 1.5, of the two largest 1.5 (at most 1.1) **missed**" in growth.table(
        "voxels", told
    )


def test_a_scan_of_any_size_goes_through_and_its_figure_is_drawn(tmp_path: Path) -> None:
    scaling, growth = script("scaling"), script("growth")
    path = tmp_path / "scan.nii.gz"
    scaling.write_scan(path, (110, 20, 24))  # longer than the block that is repeated
    assert scaling.prepare_scan(path, 3)() == [110, 20, 24]
    points = [growth.Point(size, size / 7, 9.0) for size in (2.0, 4.0)]
    result = growth.judge(scaling.QUESTIONS["scans"], points)
    growth.draw({"scans": result}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(json.dumps(result))["points"][1]["size"] == 4.0


def test_items_of_the_ways_that_need_no_peer_package_are_alike(tmp_path: Path) -> None:
    peers = script("training_peers")
    peers.write_cases(tmp_path, 2, (48, 44, 40))
    cases = (tmp_path, 2, 16)
    before = torch.get_rng_state()
    for name in ("attunet3d", "MONAI, tuned"):
        items = list(islice(peers.WAYS[name](cases, 0), 4))
        for image, label in items:
            assert image.shape == label.shape == (2, 1, 16, 16, 16)
            assert image.dtype == torch.float32
            assert bool(image.isfinite().all())
            assert set(np.unique(label)) <= {0, 1}
    torch.set_rng_state(before)


def test_a_command_is_timed_and_must_answer() -> None:
    startup = script("startup")
    seconds, megabytes = startup.run("nothing", (sys.executable, "-c", ""))
    assert 0 < seconds < 60
    assert megabytes > 1
    with pytest.raises(SystemExit, match="status 3"):
        startup.run("ends badly", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(SystemExit, match="answered"):
        startup.run("says nothing", (sys.executable, "-c", "", "--help"))
