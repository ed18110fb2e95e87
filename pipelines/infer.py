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
    several = "run folder, cross-validation or .safetensors; several: ensemble"
    parser.add_argument("model", nargs="+", help=several)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--fold", type=int, metavar="K", help="a manifest's validation cases")
    parser.add_argument("--all", action="store_true", help="a manifest's cases, seen ones too")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: CUDA, else cpu)")
    parser.add_argument("--memory", metavar="24GB", help="budget for one pass over the body")
    saved = "for `export`", "the gates' coefficients"
    for kind, what in zip(("probabilities", "attention"), saved, strict=True):
        parser.add_argument(f"--save-{kind}", dest=kind, action="store_true", help=what)
    parser.add_argument("--mask-files", action="store_true", help="a mask per label, CASE/LABEL")
    parser.add_argument("--preview", action="store_true", help="a picture per case to look at")
    parser.add_argument("--series", help="DICOM series: number, UID or part of its description")
    parser.add_argument("--orthogonal", action="store_true", help="straighten a tilted gantry")
    parser.add_argument("--overwrite", action="store_true", help="redo what is done")
    parser.add_argument("--locator", metavar="MODEL", help="coarse model; its box is segmented")
    setting = "such as inference.overlap=0.25, inference.mode=whole, inference.mirror=true"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    arguments = command_line.parse(parser, argv)

    from attunet3d.core import parse_memory
    from attunet3d.datasets import Split
    from attunet3d.inference import CohortOptions, Predictor, find_cases, segment_cohort

    model, device, settings = arguments.model, arguments.device, arguments.set
    memory = parse_memory(arguments.memory)
    predictor = Predictor.load(model, device, settings, arguments.locator, memory)
    split = Split.of_models([*model, *filter(None, [arguments.locator])])
    scans = find_cases(
        arguments.input, arguments.root, arguments.fold, everything=arguments.all, split=split
    )
    options = CohortOptions.of(vars(arguments))
    outcome = segment_cohort(predictor, scans, arguments.out_dir, options, split)
    print(f"{arguments.out_dir}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
