"""Show what training will do with a data set and a stated amount of memory, and why.

The plan is made from all training cases and kept beside the manifest, where attunet3d train finds
it for every fold. A plan that is there already is shown.
"""

from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line
from attunet3d.datasets import Manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the training cases, plan, and print the plan."""
    parser = command_line.parser(__doc__)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("config", metavar="CONFIG", help="a preset, or a YAML or JSON file")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    out = "where to keep the plan (default: beside the manifest)"
    parser.add_argument("--out", type=Path, metavar="PLAN", help=out)
    memory = "plan for it, such as 24GB (default: the size of the GPU or machine)"
    parser.add_argument("--memory", metavar="SIZE", help=memory)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA where there is one by default")
    setting = "such as training.batch_size=2; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    arguments = parser.parse_args(argv)

    from attunet3d.core import machine
    from attunet3d.training import plan_file  # torch comes with it; --help does without

    manifest = Manifest.load(arguments.manifest, arguments.root).require_files()
    manifest.fold()  # refuses a template and a manifest without training cases
    config = plan_file.read_config(arguments.config, arguments.set, manifest)
    file = arguments.out or plan_file.default_path(arguments.manifest, arguments.config)
    device = machine.pick_device(arguments.device)
    plan = plan_file.shared_plan(manifest, config, file, device, arguments.memory)
    print(plan.table())
    print(f"{file}: the plan for all folds")
    return 0
