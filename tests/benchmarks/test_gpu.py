import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch


def benchmark(name: str = "__main__") -> Any:
    return importlib.import_module(f"benchmarks.gpu.{name}")


def test_every_section_of_a_small_run_on_the_cpu_gives_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = benchmark()
    out = tmp_path / "out" / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out), "--work", str(tmp_path / "work")]
    assert gpu.main(arguments) == 0
    content = json.loads(out.read_text())
    assert list(content["sections"]) == list(gpu.sections())
    errors = {
        (name, step): result["error"]
        for name, section in content["sections"].items()
        for step, result in [("", section), *section.items()]
        if isinstance(result, dict) and "error" in result
    }
    assert errors == {}
    found = content["sections"]
    assert found["learning"]["fit"]["steps_a_second"] > 0
    assert found["correctness"]["weights"] == "model"  # the one just trained
    assert found["correctness"]["float32 without TF32"]["deviation"] is None
    assert found["correctness"]["decision"]["different"] == 0
    assert found["cohort"]["cohort, whole"]["scans"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark().main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "no CUDA device on this machine: nothing is measured\n"
    assert not list(tmp_path.iterdir())


def test_an_error_is_a_record_and_the_next_section_goes_on(tmp_path: Path) -> None:
    gpu = benchmark()
    (tmp_path / "work").mkdir()
    gpu.section("correctness", "cpu", True, tmp_path / "work")  # the scan is missing
    found = json.loads(gpu.result_path(tmp_path / "work", "correctness").read_text())
    assert "scan.nii.gz" in found["error"]


def test_convolutions_count_forward_and_backward_with_their_work() -> None:
    timing, ceiling = benchmark("timing"), benchmark("convolutions")
    layer = torch.nn.Conv3d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    with ceiling.Convolutions(torch.device("cpu")) as convolutions:
        layer(x).sum().backward()
    setting = timing.Setting(torch.device("cpu"), True, Path())
    record = convolutions.seconds(setting)
    assert record["convolutions"] == 2
    products = 4**3 * 3 * 2 * 3**3  # voxels · out · in · kernel
    assert record["gflop"] == pytest.approx(3 * 2 * products / 1e9, rel=1e-3)


def test_transposed_and_strided_convolutions_count_their_products() -> None:
    timing, ceiling = benchmark("timing"), benchmark("convolutions")
    up = torch.nn.ConvTranspose3d(2, 3, 2, stride=2)
    down = torch.nn.Conv3d(3, 5, 2, stride=2)
    with torch.no_grad(), ceiling.Convolutions(torch.device("cpu")) as convolutions:
        down(up(torch.randn(1, 2, 4, 4, 4)))
    record = convolutions.seconds(timing.Setting(torch.device("cpu"), True, Path()))
    products = 4**3 * 2 * 3 * 8 + 4**3 * 3 * 5 * 8
    assert record["gflop"] == pytest.approx(2 * products / 1e9, rel=1e-3)


def test_goals_compare_what_was_found_and_leave_open_what_was_not() -> None:
    goals = benchmark("goals")
    found = {
        "train oktay2018 ours": {"contiguous": {"ms": 16.0}, "channels_last": {"error": "x"}},
        "train oktay2018 AttentionUnet": {"contiguous": {"ms": 24.0}},
        "cohort": {"one scan, whole": {"ms": 400.0}},
    }
    rows = {row["what"]: row for row in goals.goals(found)}
    steps = rows["training steps/s, 2×160×160×96, patch on the GPU"]
    assert (steps["found"], steps["reached"]) == (62.5, True)
    assert rows["times MONAI AttentionUnet"]["found"] == 1.5
    assert rows["times MONAI AttentionUnet"]["reached"] is False
    assert rows["scan, file to file, ms"]["reached"] is True
    assert rows["cohort, scans/s"]["found"] is None
    assert rows["cohort, scans/s"]["reached"] is None
    assert "| cohort, scans/s | – | >= 10 | – |" in goals.table(list(rows.values()))
