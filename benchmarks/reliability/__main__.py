"""How often wrong, how much lost, how easily broken: all parts, one table.

    python -m benchmarks.reliability [--small] [--adversarial DIR] [--only PART …] [--out FOLDER]

The parts are `corpus` (odd, damaged and hostile files, through us, MONAI and SimpleITK), `bombs`,
`kills`, `resumes`, `faults`, `fuzz`, `workers` (of a cohort, killed), `uploads` (to the service)
and `store` (an S3 server behind a bad connection; needs moto and s3fs). `--small` does a part of
each. DIR is a folder of hostile scans and pairs with an `index.json`; it can be given as
ATTUNET3D_ADVERSARIAL as well. Writes `reliability.md` and `results/reliability.json` beside the
benchmarks, or into FOLDER; the exit status is 1 when anything is not as it should be.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.reliability.report import markdown

PARTS = ("corpus", "bombs", "kills", "resumes", "faults", "fuzz", "workers", "uploads", "store")
VARIABLE = "ATTUNET3D_ADVERSARIAL"


def run_part(name: str, folder: Path, small: bool, adversarial: Path | None) -> dict[str, Any]:
    """One part in a folder of its own; what it returns, and its seconds."""
    part = import_module(f"benchmarks.reliability.{name}")
    folder.mkdir(parents=True)
    began = time.perf_counter()
    extra = {"adversarial": adversarial} if name in ("corpus", "uploads") else {}
    result = part.run(folder, small, **extra)
    return {**result, "part_seconds": round(time.perf_counter() - began, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a part of everything")
    parser.add_argument("--adversarial", type=Path, default=os.environ.get(VARIABLE) or None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1])
    arguments = parser.parse_args(argv)
    given = arguments.adversarial and Path(arguments.adversarial).resolve()
    results = {}
    with tempfile.TemporaryDirectory(prefix="reliability_") as folder:
        for name in arguments.only:
            print(f"--- {name}", flush=True)
            if find_spec(f"benchmarks.reliability.{name}") is None:
                print(f"{name}: is not there; skipped")
                continue
            results[name] = run_part(name, Path(folder) / name, arguments.small, given)
    text = markdown(results, measure.machine(), arguments.small)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "reliability.md").write_text(text, encoding="utf-8")
    command = "python -m benchmarks.reliability" + " --small" * arguments.small
    content = {"command": command, "parts": results}
    path = measure.save("reliability", content, arguments.out / "results")
    print(text)
    print(f"{arguments.out / 'reliability.md'}, {path}")
    return 1 if any(row["bad"] for part in results.values() for row in part["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
