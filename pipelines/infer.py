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
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("model", nargs="+", help="run folder or .safetensors; several: ensemble")
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--fold", type=int, metavar="K", help="a manifest's validation cases")
    parser.add_argument("--all", action="store_true", help="a manifest's cases, seen ones too")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    parser.add_argument("--device", help="cpu, cuda:N or mps; several: cuda:0,cuda:1")
    parser.add_argument("--shard", metavar="I/N", help="one part; others may share OUT_DIR")
    parser.add_argument("--memory", metavar="24GB", help="budget for one pass over the body")
    parser.add_argument("--series", help="DICOM series: number, UID or part of its description")
    for flag, what, name in (
        ("--save-probabilities", "for `export`", "probabilities"),
        ("--save-attention", "the gates' coefficients", "attention"),
        ("--mask-files", "a mask per label, CASE/LABEL", "mask_files"),
        ("--preview", "a picture per case to look at", "preview"),
        ("--orthogonal", "straighten a tilted gantry", "orthogonal"),
        ("--overwrite", "redo what is done", "overwrite"),
        ("--dry-run", "tell what it would take, and stop", "dry_run"),
    ):
        parser.add_argument(flag, dest=name, action="store_true", help=what)
    parser.add_argument("--locator", metavar="MODEL", help="coarse model; its box is segmented")
    parser.add_argument("--set", action="append", default=[], metavar="inference.NAME=VALUE")
    args = command_line.parse(parser, argv)

    from attunet3d.cohort import dry_run, find_cases, make_engine, read_flags, segment_call
    from attunet3d.datasets import Split

    split = Split.of_models([*args.model, *filter(None, [args.locator])])
    scans = find_cases(args.input, args.root, args.fold, everything=args.all, split=split)
    model, call = read_flags(vars(args), scans, split)
    if args.dry_run:
        print(*dry_run(model.load(), call), sep="\n")
        return 0
    outcome = segment_call(call, make_engine(model, call))
    print(f"{args.out_dir}: {outcome}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
