"""Free memory: what the machine, the control groups and malloc's own store leave."""

import pytest
import torch

from attunet3d.core import memory
from attunet3d.core.memory import available_bytes


def test_memory_is_told_in_bytes():
    found = available_bytes(torch.device("cpu"))
    assert isinstance(found, int)
    assert 2**24 < found < 2**50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpus_memory_is_told():
    assert available_bytes(torch.device("cuda")) > 2**20


def test_free_memory_counts_the_file_cache_as_free(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:    60 kB\n")
    assert memory._free_ram_bytes(meminfo) == 60 * 1024
    assert memory._free_ram_bytes(tmp_path / "absent") > 2**20  # the free pages


def group(folder, limit, used, idle=None):
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(used + "\n")
    if idle is not None:
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\nactive_file 7\n")


@pytest.mark.parametrize(
    ("limit", "used", "idle", "free"),
    [("1000", "400", None, 600), ("1000", "2000", "5", 0), ("1000", "900", "300", 400)],
)
def test_free_memory_keeps_to_the_control_groups_limit(tmp_path, limit, used, idle, free):
    group(tmp_path, limit, used, idle)
    found = memory._free_in_control_group_bytes(tmp_path, tmp_path / "absent")
    assert found == free


def test_the_tightest_limit_from_the_own_group_upwards_counts(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/slurm/job\n")
    root = tmp_path / "groups"
    for name, limit in (("", "max"), ("slurm", "5000"), ("slurm/job", "8000")):
        group(root / name, limit, "1000")
    assert memory._free_in_control_group_bytes(root, own) == 4000
    (root / "slurm" / "memory.max").write_text("max\n")
    assert memory._free_in_control_group_bytes(root, own) == 7000


def test_without_a_limit_nothing_is_taken_off(tmp_path):
    assert memory._free_in_control_group_bytes(tmp_path, tmp_path / "absent") > 2**60


def test_what_malloc_keeps_counts_as_free(monkeypatch):
    for name in ("_free_ram_bytes", "_free_in_control_group_bytes"):
        monkeypatch.setattr(memory, name, lambda: 1000)
    monkeypatch.setattr(memory, "_kept_by_malloc_bytes", lambda: 30)
    assert available_bytes(torch.device("cpu")) == 1030
