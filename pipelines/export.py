"""Turn results of `infer` into label maps of another rule, or into another program's form.

With --format nifti the probabilities that `infer --save-probabilities` wrote, averaged over the
folders, become label maps: the most probable class wins, or with a threshold a label is taken
wherever its probability reaches it. What `infer` did by keep_largest, smallest_ml or decision=dice
is not repeated. The other formats are made of one folder's label maps. Cases that fail are listed
in OUT_DIR/failures.json; exit status 1.
"""

from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line

FORMATS = ("nifti", "dicom-seg", "rtstruct", "seg-nrrd", "mesh", "mesh-ply", "mesh-glb")


def main(argv: Sequence[str] | None = None) -> int:
    """Decide every case anew."""
    parser = command_line.parser(__doc__)
    parser.add_argument("predictions", nargs="+", type=Path, metavar="PREDICTIONS")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--format", choices=FORMATS, default="nifti")
    source = "of dicom-seg and rtstruct: the DICOM that was given to `infer`, if it was moved"
    parser.add_argument("--source", type=Path, metavar="DIR", help=source)
    threshold = "least probability of a label, or of all; may be given several times"
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="[NAME=]VALUE", help=threshold
    )
    largest = "keep the largest component of this label only, a name or value; may be repeated"
    parser.add_argument(
        "--keep-largest", action="append", default=[], metavar="LABEL", help=largest
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what another rule made")
    arguments = command_line.parse(parser, argv)

    from attunet3d.cohort import export  # torch comes with it; --help does without
    from attunet3d.packaging import convert_label_maps

    folders, out_dir, overwrite = arguments.predictions, arguments.out_dir, arguments.overwrite
    if arguments.format == "nifti":
        rule = export.Rule.parse(arguments.threshold, arguments.keep_largest)
        outcome = export.export_labels(folders, out_dir, rule, overwrite=overwrite)
    elif len(folders) > 1 or arguments.threshold or arguments.keep_largest:
        parser.error(f"--format {arguments.format}: takes one folder's label maps as they are")
    else:
        form, source = arguments.format, arguments.source
        outcome = convert_label_maps(folders[0], out_dir, form, source, overwrite)
    return command_line.told(arguments.out_dir, outcome)
