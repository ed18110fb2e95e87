"""Train a 3D Attention U-Net on the cases of a manifest.

CONFIG is a preset (oktay2018, pancreas_ct, demo_cpu) or a YAML or JSON file, such as the
config.json of an earlier run. What it leaves open is planned from the training cases and the
memory at hand, printed, and saved in RUN_DIR.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line, locked_folder
from attunet3d.datasets import Manifest

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, prepare, train and finish a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--root", type=Path, help="where the manifest's paths begin")
    parser.add_argument("--fold", type=int, metavar="K", help="the fold that validates")
    setting = "such as training.steps=1000; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN_DIR")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA where there is one by default")
    cached = "where prepared cases are kept (default: RUN_DIR/cache); folds can share it"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=cached)
    arguments = parser.parse_args(argv)

    from attunet3d.core import find_config, machine
    from attunet3d.training import Trainer, run_folder  # torch comes with them

    device = machine.pick_device(arguments.device, training=True)
    manifest = Manifest.load(arguments.manifest, arguments.root)
    cases = manifest.fold(arguments.fold)
    config = find_config(arguments.config).with_overrides(arguments.set)
    run_dir = arguments.run_dir
    with locked_folder(run_dir, "train"):
        config, begun = run_folder.open_run(run_dir, config, cases, resume=arguments.resume)
        if not begun:
            config = run_folder.plan_run(cases, config, run_dir, device)
        cache_dir = arguments.cache or run_dir / "cache"
        data = run_folder.prepare_data(cases, manifest.labels, config, cache_dir)
        trainer = Trainer(data, config, run_dir, device)
        for warning in trainer.resume() if begun else []:
            _log.warning("%s", warning)
        run_folder.finish(trainer, trainer.fit())
    return 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
