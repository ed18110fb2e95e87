"""Which code a benchmark has run."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of this checkout, with a + where the package or the commands were changed."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=here, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "../attunet3d", "../pipelines")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
