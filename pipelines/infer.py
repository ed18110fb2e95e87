"""Segment scans with one model or the mean of several; label maps lie on each scan's own grid.

INPUT is a scan (NIfTI, or what SimpleITK reads), a folder of scans or DICOM series, or a manifest
(its test cases, else those that the model was validated on). What is done is skipped, so the same
call finishes a stopped one. Failures are listed in OUT_DIR/failures.json; exit status 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every scan of the input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="+", help="run folder or .safetensors; several: ensemble")
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--fold", type=int, metavar="K", help="a manifest's validation cases")
    parser.add_argument("--all", action="store_true", help="a manifest's cases, seen ones too")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: CUDA, else cpu)")
    parser.add_argument("--save-probabilities", action="store_true", help="for `export`")
    parser.add_argument("--save-attention", action="store_true", help="the gates' coefficients")
    parser.add_argument("--series", help="DICOM series: number, UID or part of its description")
    parser.add_argument("--orthogonal", action="store_true", help="straighten a tilted gantry")
    parser.add_argument("--overwrite", action="store_true", help="redo what is done")
    parser.add_argument("--locator", metavar="MODEL", help="coarse model; its box is segmented")
    setting = "such as inference.overlap=0.25, inference.mode=whole, inference.mirror=true"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    plain = "--" in (argv or ())  # names that begin with a dash; the other parser drops the sign
    arguments = (parser.parse_args if plain else parser.parse_intermixed_args)(argv)

    from attunet3d.datasets import Split
    from attunet3d.inference import CohortOptions, Predictor, find_cases, segment_cohort

    predictor = Predictor.load(arguments.model, arguments.device, arguments.set, arguments.locator)
    split = Split.of_models([*arguments.model, *filter(None, [arguments.locator])])
    scans = find_cases(
        arguments.input, arguments.root, arguments.fold, everything=arguments.all, split=split
    )
    options = CohortOptions(
        probabilities=arguments.save_probabilities,
        attention=arguments.save_attention,
        overwrite=arguments.overwrite,
        series=arguments.series,
        orthogonal=arguments.orthogonal,
    )
    outcome = segment_cohort(predictor, scans, arguments.out_dir, options, split)
    print(f"{arguments.out_dir}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
