"""Say what a model, a configuration, a manifest or a scan is, in words and numbers.

MODEL is a run folder or a .safetensors file, CONFIG a preset (oktay2018, pancreas_ct, demo_cpu) or
a YAML or JSON file. Of both, the settings that differ from the defaults and a table of the
network's layers are shown. --schema prints the JSON schema of CONFIG, with which editors complete
and check such files.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Find out what it is, and print its summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("subject", nargs="?", metavar="MODEL|CONFIG|MANIFEST|SCAN")
    asked.add_argument("--schema", action="store_true", help="print the JSON schema of CONFIG")
    arguments = parser.parse_args(argv)

    from attunet3d import core, datasets, imaging, models  # --help does without them

    subject = arguments.subject
    if arguments.schema:
        print(json.dumps(core.json_schema(), indent=2))
        return 0
    kind = core.kind_of(subject)
    print(f"{subject}: {kind}\n")
    if kind == "config":
        print(models.config_summary(core.find_config(subject)))
    elif kind == "model":
        print(models.model_summary(models.load_model(Path(subject))))
    elif kind == "manifest":
        print(datasets.manifest_summary(datasets.Manifest.load(Path(subject))))
    else:
        print(imaging.scan_summary(imaging.read_volume(Path(subject))))
    return 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
