"""Train a 3D Attention U-Net on the cases of a manifest.

CONFIG: a preset (oktay2018, pancreas_ct, demo_cpu) or a file; attunet3d plan fills its gaps.
On several GPUs: torchrun --nproc-per-node N -m attunet3d train …
"""

from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the arguments describe."""
    parser = command_line.parser(__doc__)
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST")
    add("config", metavar="CONFIG")
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--root", type=Path, help="where the manifest's paths begin")
    add("--fold", type=command_line.fold, metavar="K|all", help="validates; all: each in turn")
    add("--final", action="store_true", help="after --fold all, train on all cases as well")
    add("--seeds", type=int, metavar="N", help="train N times, to tell the spread between seeds")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    add("--resume", action="store_true", help="go on with the run in RUN_DIR")
    add("--steps-more", type=int, metavar="N", help="resume for N steps beyond its end")
    add("--init", type=Path, metavar="MODEL", help="start from its weights")
    add("--keep-labels", action="store_true", help="and teach its labels where cases lack them")
    add("--freeze", choices=["encoder"], help="leave this part as it is in MODEL")
    add("--hours", type=float, metavar="H", help="as many steps as this takes")
    add("--memory", metavar="SIZE", help="plan for it, such as 24GB (default: what there is)")
    add("--plan", type=Path, metavar="PLAN", help="default: beside the manifest")
    add("--device", help="cpu, cuda or cuda:N; CUDA where there is one by default")
    add("--cache", type=Path, metavar="DIR", help="of prepared cases; folds can share it")
    arguments = parser.parse_args(argv)

    from attunet3d.training import (  # torch comes with them
        TrainingCall,
        cross_validate,
        distributed,
        train_run,
        train_seeds,
    )

    with distributed.process_group(arguments.device) as device:
        call = TrainingCall.of(vars(arguments), device)
        if arguments.fold == "all":
            failures = cross_validate(call, arguments.run_dir, final=arguments.final)
            return 1 if failures else 0
        cases = call.manifest.fold(arguments.fold)
        if arguments.seeds is not None:
            train_seeds(call, arguments.run_dir, cases, arguments.seeds)
        else:
            train_run(call, arguments.run_dir, cases)
    return 0
