"""Score label maps against references, case by case and label by label.

PREDICTIONS is a folder of label maps. REFERENCE is a folder with the same file names, or a
manifest (its labelled test cases; without any, those that the model was validated on, as the
files CASE.json beside the predictions tell). OUT_DIR gets scores.csv, summary.json, boxplot.png
and, for cases that cannot be scored or have no prediction, failures.json; exit status 1 then.

Both maps empty is a right answer (Dice 1), one of them empty a wrong one (Dice 0); distances
do not exist then. The summary counts such cases.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line
from attunet3d.evaluation import metrics

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Score, print the table and write the files."""
    parser = command_line.parser(__doc__)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS")
    parser.add_argument("reference", type=Path, metavar="REFERENCE")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    fold = "of a manifest, score the validation cases of this fold"
    parser.add_argument("--fold", type=int, metavar="K", help=fold)
    everything = "of a manifest, score all labelled cases, those seen in training among them"
    parser.add_argument("--all", action="store_true", help=everything)
    tolerance = "surfaces closer than this agree in surface Dice (default: %(default)s)"
    parser.add_argument(
        "--tolerance-mm", type=float, default=metrics.TOLERANCE_MM, metavar="MM", help=tolerance
    )
    page = "one page about all cases, OUT_DIR/report.html"
    parser.add_argument("--report", action="store_true", help=page)
    arguments = parser.parse_args(argv)

    # figures come with it; --help does without
    from attunet3d.evaluation import folder, write_folder_report

    summary = folder.evaluate(
        arguments.predictions,
        arguments.reference,
        arguments.out_dir,
        root=arguments.root,
        fold=arguments.fold,
        everything=arguments.all,
        tolerance_mm=arguments.tolerance_mm,
    )
    print(summary.table())
    if summary.training_remark:
        _log.warning("%s", summary.training_remark)
    if arguments.report:
        write_folder_report(arguments.out_dir)
    return 1 if summary.failures else 0
