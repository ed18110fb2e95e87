"""Segment scans with one model or the mean of several; label maps lie on each scan's own grid.

INPUT is a scan (NIfTI, or what SimpleITK reads), a folder or ZIP archive of scans or DICOM series,
or a manifest (its test cases, else those that the model was validated on). What is done is skipped,
so the same call finishes a stopped one. OUT_DIR/failures.json lists failures; exit status 1.
MODEL, INPUT and OUT_DIR may be URLs of an object store, such as s3://BUCKET/scans.
"""

from collections.abc import Sequence

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every scan of the input."""
    parser = command_line.parser(__doc__)
    parser.add_argument("model", nargs="+", help="run folder or .safetensors; several: ensemble")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("out_dir", metavar="OUT_DIR")
    parser.add_argument("--fold", type=int, metavar="K", help="a manifest's validation cases")
    parser.add_argument("--all", action="store_true", help="a manifest's cases, seen ones too")
    parser.add_argument("--root", help="where the manifest's paths begin")
    parser.add_argument("--device", help="cpu, cuda:N or mps; several: cuda:0,cuda:1")
    parser.add_argument("--shard", metavar="I/N", help="one part; others may share OUT_DIR")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="who works")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster that runs")
    parser.add_argument("--memory", metavar="24GB", help="budget for one pass over the body")
    parser.add_argument("--series", help="DICOM series: number, UID or part of its description")
    for flag, what, name in (
        ("--save-probabilities", "for `export`", "probabilities"),
        ("--save-attention", "the gates' coefficients", "attention"),
        ("--mask-files", "a mask per label, CASE/LABEL", "mask_files"),
        ("--preview", "a picture per case to look at", "preview"),
        ("--report", "one page about all cases, report.html", "report"),
        ("--dicom-seg", "a DICOM Segmentation per series, CASE.dcm", "dicom_seg"),
        ("--orthogonal", "straighten a tilted gantry", "orthogonal"),
        ("--overwrite", "redo what is done", "overwrite"),
        ("--dry-run", "tell what it would take, and stop", "dry_run"),
    ):
        parser.add_argument(flag, dest=name, action="store_true", help=what)
    parser.add_argument("--locator", metavar="MODEL", help="coarse model; its box is segmented")
    parser.add_argument("--set", action="append", default=[], metavar="inference.NAME=VALUE")
    args = command_line.parse(parser, argv)

    from attunet3d.cohort import dry_run, make_engine, read_flags, segment_call, staged
    from attunet3d.imaging import workspace
    from attunet3d.packaging import with_dicom_seg

    with workspace() as place, staged(vars(args), place) as here:
        model, call = read_flags(here.flags, place)
        if args.dry_run:
            print(*dry_run(model.load(), call), sep="\n")
            return 0
        engine = make_engine(model, call, args.engine, args.address)
        outcome = segment_call(call, here.send(with_dicom_seg(engine, call)))
        if args.report and (outcome.done or outcome.skipped):
            from attunet3d.evaluation import write_folder_report  # takes a second to import

            write_folder_report(call.out_dir, scans=dict(call.cases))
    return command_line.told(args.out_dir, outcome)
