"""Turn probabilities that `infer --save-probabilities` wrote into label maps of another rule.

PREDICTIONS are output folders of `infer`; the probabilities of several are averaged. By default
the most probable class wins; with a threshold a label is taken wherever its probability reaches
it. Cases that fail are listed in OUT_DIR/failures.json; exit status 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Decide every case anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", nargs="+", type=Path, metavar="PREDICTIONS")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--format", choices=["nifti"], default="nifti")
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

    from attunet3d.inference import export  # torch comes with it; --help does without

    rule = export.Rule.parse(arguments.threshold, arguments.keep_largest)
    outcome = export.export_labels(
        arguments.predictions, arguments.out_dir, rule, overwrite=arguments.overwrite
    )
    print(f"{arguments.out_dir}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
