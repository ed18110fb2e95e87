"""The law of the slowest stage by hand, and the simulation held against it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale import services as service_times
from benchmarks.scale.services import Services
from benchmarks.scale.simulation import Fleet, bottleneck, limits, simulate

SERVICES = Services(0.4, 0.1, 0.2, 0.3, 0.2, bytes_in=40e6, bytes_out=10e6)


def test_limits_by_hand() -> None:
    fleet = Fleet(4, cores_per_gpu=2, storage_bytes_s=1e9, scheduler_s=0.01)
    found = limits(SERVICES, fleet)
    assert found == pytest.approx({"GPUs": 20, "cores": 8, "storage": 20, "scheduler": 100})
    name, rate = bottleneck(SERVICES, fleet)
    assert name == "cores"
    assert rate == pytest.approx(8)


@pytest.mark.parametrize(
    ("fleet", "slowest"),
    [
        (Fleet(2, cores_per_gpu=16, storage_bytes_s=1e12), "GPUs"),
        (Fleet(2, cores_per_gpu=2, storage_bytes_s=1e12), "cores"),
        (Fleet(4, cores_per_gpu=16, storage_bytes_s=5e8), "storage"),
        (Fleet(8, cores_per_gpu=16, storage_bytes_s=1e12, scheduler_s=0.1), "scheduler"),
    ],
)
def test_the_simulation_comes_near_the_law_and_never_above(fleet: Any, slowest: str) -> None:
    name, law = bottleneck(SERVICES, fleet)
    assert name == slowest
    found = simulate(SERVICES, fleet, 800)
    assert 0.9 * law < found < 1.05 * law


def test_twice_the_gpus_do_twice_the_scans_until_storage_is_full() -> None:
    def rate(gpus: Any) -> Any:
        return simulate(SERVICES, Fleet(gpus, cores_per_gpu=16, storage_bytes_s=1e9), 1200)

    assert rate(2) == pytest.approx(2 * rate(1), rel=0.08)
    assert rate(16) == pytest.approx(rate(8), rel=0.08)


def test_the_same_seed_gives_the_same_rate() -> None:
    assert simulate(SERVICES, Fleet(2), 200, seed=3) == simulate(SERVICES, Fleet(2), 200, seed=3)


def test_a_small_scan_is_measured_and_a_table_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert service_times.main(["--small", "--repeats", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "services.json").read_text())["services"]
    assert all(value > 0 for value in found.values())
    services = service_times.load(0.1, tmp_path / "services.json")
    rows = [scale.row("one", services, Fleet(1))]
    assert "| one | 0.1 |" in scale.table(rows)
