"""The completion that `attunet3d --completion` prints, as bash runs it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attunet3d.__main__ import dispatch

ROOT = Path(__file__).parents[1]
BASH = shutil.which("bash")


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [(["conv"], "convert-weights"), (["infer", "--save-a"], "--save-attention")],
)
def test_commands_and_options_are_completed(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["--completion"]) == 0
    script = capsys.readouterr().out
    call = f'attunet3d() {{ "{sys.executable}" -m attunet3d "$@"; }}\n'
    given = f"COMP_WORDS=(attunet3d {' '.join(words)}); COMP_CWORD={len(words)}\n"
    code = f'{script}\n{call}{given}_attunet3d; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        [str(BASH), "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == [wanted]
