"""Write docs/reference/commands.md from the parsers, settings.md from the schema: `make docs`."""

import contextlib
import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from attunet3d.__main__ import COMMANDS
from attunet3d.core import json_schema

REFERENCE = Path(__file__).parent / "reference"


def commands() -> str:
    """Each command with what its `--help` says."""
    parts = ["# Commands", "Exit status: 0 all done, 1 some cases failed, 2 the call is wrong."]
    for name, purpose in COMMANDS.items():
        main = import_module(f"attunet3d.pipelines.{name.replace('-', '_')}").main
        sys.argv[0] = f"attunet3d {name}"  # the name that argparse prints
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
            main(["--help"])
        parts += [
            f"## {name}",
            f"{purpose[0].upper()}{purpose[1:]}.",
            f"```\n{stream.getvalue()}```",
        ]
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """A table of the settings of each section."""
    schema = json_schema()
    parts = ["# Settings", "As in a `CONFIG` file or in `--set SECTION.NAME=VALUE`."]
    for section, entry in schema["$defs"]["Config"]["properties"].items():
        name = entry.get("$ref", "").rsplit("/", 1)[-1]
        fields: dict[str, Any] = schema["$defs"].get(name, {}).get("properties", {})
        if not fields:
            continue
        rows = [
            f"| `{key}` | `{part.get('default')}` | {_text(part)} |" for key, part in fields.items()
        ]
        parts += [
            f"## {section}",
            "\n".join(["| name | default | meaning |", "|---|---|---|", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


def _text(part: dict[str, Any]) -> str:
    return " ".join(str(part.get("description", "")).split()).replace("|", "\\|")


if __name__ == "__main__":
    os.environ["COLUMNS"] = "90"
    (REFERENCE / "commands.md").write_text(commands(), encoding="utf-8")
    (REFERENCE / "settings.md").write_text(settings(), encoding="utf-8")
