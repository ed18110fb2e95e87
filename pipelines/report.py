"""Write one web page about an output folder of `infer` or `evaluate`.

The page needs no network and no program but a browser. It has a table of the cases, the most
doubtful or the worst Dice first, plots, and a viewer of each case: scan, label maps, attention maps
if they were saved, surfaces. Cases whose scan is not found are named; exit status 1.
"""

from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the cases and write the page."""
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="OUT_DIR/report.html")
    moved = "where the scans lie, by file name, if they were moved or the folder does not say"
    parser.add_argument("--scans", type=Path, metavar="DIR", help=moved)
    arguments = parser.parse_args(argv)

    from attunet3d.evaluation import write_folder_report  # torch comes with it; --help does without
    from attunet3d.imaging import find_scans, workspace

    page = arguments.out or arguments.folder / "report.html"
    with workspace() as place:
        scans = dict(find_scans(arguments.scans, place)) if arguments.scans is not None else None
        outcome = write_folder_report(arguments.folder, page, scans)
    return command_line.told(page, outcome)
