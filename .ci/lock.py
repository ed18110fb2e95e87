"""Write constraints.txt: the versions of all that the tests need, as pip finds them today.

Run it by `make lock`. torch is taken as the file has it already (`make lock TORCH=2.14.0` changes
that): on machines without a GPU this is the version that they have as a CPU build.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
HEAD = "# Versions that the tests are run with; written by `make lock`.\n"


def main(torch: str = "") -> None:
    """Resolve `.[dev]` without installing anything, and write the versions."""
    torch = torch or re.findall(r"^torch==(\S+)$", LOCK.read_text(encoding="utf-8"), re.M)[0]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += [
            "--ignore-installed",
            "--report",
            str(report),
            f"torch=={torch}",
            f"{ROOT}[dev]",
        ]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {part["metadata"]["name"]: part["metadata"]["version"] for part in found}
    lines = [
        f"{name}=={version.partition('+')[0]}\n"
        for name, version in sorted(versions.items(), key=lambda item: item[0].lower())
        if name.lower() != "attunet3d"
    ]
    LOCK.write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} packages, torch {torch}")


if __name__ == "__main__":
    main(*sys.argv[1:])
