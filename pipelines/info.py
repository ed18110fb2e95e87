"""Say what a model, a configuration, a manifest or a scan is, in words and numbers.

MODEL is a run folder, a cross-validation or a .safetensors file, CONFIG a preset (oktay2018,
pancreas_ct, demo_cpu, attunet2d_nearest, …) or a YAML or JSON file. Of both, the settings that
differ from the defaults and a table of the network's layers are shown; --picture draws the network.
--schema prints the JSON schema of CONFIG, with which editors complete and check such files.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Find out what it is, and print its summary."""
    parser = command_line.parser(__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("subject", nargs="?", metavar="MODEL|CONFIG|MANIFEST|SCAN")
    asked.add_argument("--schema", action="store_true", help="print the JSON schema of CONFIG")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg|png", help="draw the network")
    arguments = parser.parse_args(argv)

    # --help does without them
    from attunet3d.core import SettingsError, find_config, json_schema, kind_of
    from attunet3d.datasets import Manifest, manifest_summary
    from attunet3d.imaging import read_volume, scan_summary
    from attunet3d.inference import load_as_one
    from attunet3d.models import config_summary, model_summary

    subject = arguments.subject
    if arguments.schema:
        print(json.dumps(json_schema(), indent=1))
        return 0
    kind = kind_of(subject)
    if arguments.picture and kind not in ("config", "model"):
        cure = "name a model or a configuration"
        raise SettingsError(f"--picture: {subject} is a {kind}", cure=cure)
    if kind == "config":
        config, classes = find_config(subject), None
        text = config_summary(config)
    elif kind == "model":
        model = load_as_one(Path(subject))
        config, classes = model.config, len(model.labels)
        text = model_summary(model)
    elif kind == "manifest":
        text = manifest_summary(Manifest.load(Path(subject)))
    else:
        text = scan_summary(read_volume(Path(subject)))
    if arguments.picture:
        from attunet3d.evaluation import save_network_picture  # takes a second to import

        save_network_picture(config, classes, arguments.picture)
    print(f"{subject}: {kind}\n\n{text}")
    return 0
