"""Free memory: what the machine, the control groups and malloc's own store leave."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from attunet3d.core import (
    available_bytes,
    machine_total_bytes,
    memory,
    memory_class,
    total_bytes,
)

CPU = torch.device("cpu")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
MIB = 2**20


def test_memory_is_told_in_bytes() -> None:
    assert 2**24 < available_bytes(CPU) <= 2 * psutil.virtual_memory().total
    assert 2**24 < machine_total_bytes() <= psutil.virtual_memory().total
    assert total_bytes(CPU) == machine_total_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpus_memory_is_told() -> None:
    assert MIB < available_bytes(torch.device("cuda")) <= total_bytes(torch.device("cuda"))


@pytest.mark.parametrize(
    ("total", "size"),
    [
        (8.0, 8),
        (7.77, 8),  # up to 3 % are kept by firmware or error correction
        (7.75, 7),
        (0.5, 0),
        (12.0, 11),
        (15.9, 16),
        (23.3, 24),
        (23.2, 16),
        (24 * 1.0737, 24),  # 24 GiB
        (32.0, 24),
        (79.0, 80),
        (141.0, 80),
    ],
)
def test_a_class_of_memory_is_the_largest_common_size_below(total: float, size: int) -> None:
    assert memory_class(round(total * 1e9)) == size


def group(
    folder: Path, limit: str, used: str, idle: str | None = None, names: tuple[str, ...] = V2
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit + "\n", encoding="ascii")
    (folder / names[1]).write_text(used + "\n", encoding="ascii")
    if idle is not None:
        text = f"anon 5\n{names[2]} {idle}\nactive_file 7\n"
        (folder / "memory.stat").write_text(text, encoding="ascii")


def limits(root: Path, own: str | None) -> list[tuple[int, int]]:
    """Limits and what they leave, as `_group_limits` finds them below `root`."""
    path = root / "own"
    if own is not None:
        path.write_text(own, encoding="ascii")
    return sorted(set(memory._group_limits(root, path)))


@pytest.mark.parametrize(
    ("limit", "used", "idle", "free"),
    [("1000", "400", None, 600), ("1000", "2000", "5", 0), ("1000", "900", "300", 400)],
)
def test_free_memory_keeps_to_the_control_groups_limit(
    tmp_path: Path, limit: str, used: str, idle: str | None, free: int
) -> None:
    group(tmp_path, limit, used, idle)
    assert limits(tmp_path, None) == [(1000, free)]
    group(tmp_path / "v1" / "memory", limit, used, idle, V1)
    assert limits(tmp_path / "v1", None) == [(1000, free)]


def test_every_group_around_the_own_one_counts(tmp_path: Path) -> None:
    for name, limit in (("", "max"), ("slurm", "5000"), ("slurm/job", "8000")):
        group(tmp_path / name, limit, "1000")
    assert limits(tmp_path, "0::/slurm/job\n") == [(5000, 4000), (8000, 7000)]
    (tmp_path / "slurm" / "memory.max").write_text("max\n", encoding="ascii")
    assert limits(tmp_path, "0::/slurm/job\n") == [(8000, 7000)]


def test_version_1_finds_the_memory_controllers_group(tmp_path: Path) -> None:
    own = "3:cpu,cpuacct:/other\n2:hugetlb,memory:/job/step\n1:name=systemd:/x\n0::/y\n"
    group(tmp_path / "memory" / "job", "5000", "1000", names=V1)
    group(tmp_path / "memory" / "job" / "step", "9000", "1000", "500", names=V1)
    group(tmp_path / "memory", str(2**63 - 4096), "3000", names=V1)  # version 1's "no limit"
    assert limits(tmp_path, own)[:2] == [(5000, 4000), (9000, 8500)]


def test_a_container_that_does_not_see_its_groups_path_uses_the_root(tmp_path: Path) -> None:
    group(tmp_path, "1000", "400")
    assert limits(tmp_path, "0::/docker/0123abcd\n") == [(1000, 600)]


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    assert limits(tmp_path, None) == []


def test_the_tightest_of_machine_and_groups_counts_and_malloc_gives_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ram = SimpleNamespace(total=9000, available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(memory, "_kept_by_malloc_bytes", lambda: 30)
    monkeypatch.setattr(memory, "_group_limits", lambda: iter([(8000, 2000), (7000, 5000)]))
    assert (machine_total_bytes(), available_bytes(CPU)) == (7000, 1030)
    ram.available = 4000
    assert available_bytes(CPU) == 2030
    monkeypatch.setattr(memory, "_group_limits", lambda: iter([]))
    assert (machine_total_bytes(), available_bytes(CPU)) == (9000, 4030)
