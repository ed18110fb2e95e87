"""The page on MONAI, Lightning and DDP runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "frameworks.md"
DATA, MONAI, LIGHTNING, DDP = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("block", [MONAI, LIGHTNING], ids=["MONAI", "Lightning"])
def test_the_network_learns_in_another_framework(block: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(DATA + block, encoding="utf-8")
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "ddp.py").write_text(DDP, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "ddp.py"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["all 2 processes have the same weights"]
