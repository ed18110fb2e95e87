"""List the cases of a data set, check every scan and label, and assign patients to folds.

DATA_DIR is a data set of the Medical Segmentation Decathlon, an nnU-Net raw data set, or folders
of images and labels. All that is wrong is listed, one line per case and reason, on stderr and in
MANIFEST.failures.json; bad cases are left out, and the exit status is 1. No file is changed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """List, check and assign to folds, then write the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="MANIFEST.json")
    root = "a folder that holds all files of the data set (default: DATA_DIR)"
    parser.add_argument("--root", type=Path, metavar="DIR", help=root)
    folds = "number of folds (default: nnU-Net's splits where they are found, else five)"
    parser.add_argument("--folds", type=int, metavar="K", help=folds)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the folds")
    group = "the patient in a case's id, as '^(p[0-9]+)_'; by default each case is a patient"
    parser.add_argument("--group", metavar="REGEX", help=group)
    label = "name of a label value, instead of the data set's; may be repeated"
    parser.add_argument("--label", action="append", default=[], metavar="VALUE=NAME", help=label)
    template = "msd_task07_pancreas, nih_pancreas_ct, phantom or a file that DATA_DIR completes"
    parser.add_argument("--template", type=Path, metavar="NAME|FILE", help=template)
    flips = "read labels that are mirrored against their scans as they should be"
    parser.add_argument("--fix-flips", action="store_true", help=flips)
    accept = "keep this case's label where it is stored, whatever the check of its place finds"
    parser.add_argument("--accept", action="append", default=[], metavar="CASE", help=accept)
    tissue = "lowest and highest HU of what is labelled (default: -200 and up; lungs: -1024 300)"
    parser.add_argument("--tissue-hu", type=float, nargs="+", metavar="HU", help=tissue)
    arguments = parser.parse_args(argv)

    from attunet3d.datasets import corrections, listing, pair_check  # with NumPy: not for --help

    found = listing.list_cases(
        arguments.data_dir, arguments.template, arguments.label, arguments.group, arguments.root
    )
    problems = pair_check.check_pairs(found, arguments.tissue_hu)
    found, problems = corrections.accept(found, problems, arguments.accept)
    if arguments.fix_flips:
        found, problems = corrections.fix_flips(found, problems)
    pair_check.log_problems(problems)
    failures = pair_check.write_failures(arguments.out, problems)
    good = corrections.without_failures(found, problems)
    good = listing.assign_folds(good, arguments.data_dir, arguments.folds, arguments.seed)
    good.save(arguments.out)
    print(f"{arguments.out}: {good}" + (f"; left out: see {failures}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
