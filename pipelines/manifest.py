"""List the cases of a data set, check every scan and label, and assign patients to folds.

DATA_DIR is a data set of the Medical Segmentation Decathlon, an nnU-Net raw data set, folders of
images and labels, or a folder for each case with its scan and a mask file for each organ. All that
is wrong is listed, one line per case and reason, on stderr and in MANIFEST.failures.json; bad cases
are left out, and the exit status is 1. No file is changed.
"""

from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """List, check and assign to folds, then write the manifest."""
    parser = command_line.parser(__doc__)
    add = parser.add_argument
    add("data_dir", type=Path, metavar="DATA_DIR")
    add("--out", type=Path, required=True, metavar="MANIFEST.json")
    add("--root", type=Path, metavar="DIR", help="holds all files (default: DATA_DIR)")
    folds = "number of folds (default: nnU-Net's splits where they are found, else five)"
    add("--folds", type=int, metavar="K", help=folds)
    add("--seed", type=int, default=0, metavar="N", help="of the folds")
    group = "the patient in a case's id, as '^(p[0-9]+)_'; by default each case is a patient"
    add("--group", metavar="REGEX", help=group)
    label = "name of a value, instead of the data set's"
    add("--label", action="append", default=[], metavar="VALUE=NAME", help=label)
    organs = "those to take of mask files, DICOM SEG or RTSTRUCT, as labels 1, 2, … (default: all)"
    add("--organs", nargs="+", default=[], metavar="ORGAN", help=organs)
    template = "msd_task07_pancreas, nih_pancreas_ct, phantom or a file that DATA_DIR completes"
    add("--template", type=Path, metavar="NAME|FILE", help=template)
    add("--fix-flips", action="store_true", help="read labels that are mirrored as they should be")
    accept = "keep this case's label where it is stored, whatever the check finds"
    add("--accept", action="append", default=[], metavar="CASE", help=accept)
    tissue = "lowest and highest HU of what is labelled (default: -200 and up; lungs: -1024 300)"
    add("--tissue-hu", type=float, nargs="+", metavar="HU", help=tissue)
    given = parser.parse_args(argv)

    from attunet3d.datasets import corrections, listing, pair_check  # with NumPy: not for --help

    names = ("data_dir", "template", "label", "group", "root", "organs")
    found = listing.list_cases(*(vars(given)[name] for name in names))
    problems = pair_check.check_pairs(found, given.tissue_hu)
    found, problems = corrections.accept(found, problems, given.accept)
    if given.fix_flips:
        found, problems = corrections.fix_flips(found, problems)
    pair_check.log_problems(problems)
    failures = pair_check.write_failures(given.out, problems)
    good = corrections.without_failures(found, problems)
    good = listing.assign_folds(good, given.data_dir, given.folds, given.seed)
    good.save(given.out)
    print(f"{given.out}: {good}" + (f"; left out: see {failures}" if failures else ""))
    return 1 if failures else 0
