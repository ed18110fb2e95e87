"""Write one web page about an output folder of `infer` or `evaluate`.

The page needs no network and no program but a browser. It has a table of the cases, the most
doubtful or the worst Dice first, plots, and a viewer of each case: scan, label maps, attention maps
if they were saved, surfaces. Cases whose scan is not found are named; exit status 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the cases and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="OUT_DIR/report.html")
    scans = "where the scans lie, by file name, if they were moved or the folder does not say"
    parser.add_argument("--scans", type=Path, metavar="DIR", help=scans)
    arguments = parser.parse_args(argv)

    from attunet3d.evaluation import write_folder_report  # torch comes with it; --help does without

    page = arguments.out or arguments.folder / "report.html"
    outcome = write_folder_report(arguments.folder, page, arguments.scans)
    print(f"{page}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
