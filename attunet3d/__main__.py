"""The command line: `attunet3d COMMAND …` calls the pipeline of that name."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from attunet3d.core import UserError, command_line, version_text

COMMANDS = {
    "demo": "phantom scans -> train -> infer -> evaluate -> figures, on a CPU",
    "manifest": "list and check the cases of a folder (MSD, nnU-Net, images and labels)",
    "plan": "show what training will do with a data set and a memory, and why",
    "train": "train a 3D Attention U-Net on the cases of a manifest",
    "infer": "segment scans; label maps lie on each scan's own grid",
    "evaluate": "score label maps against references",
    "report": "write a web page to look at results of infer or evaluate",
    "export": "turn saved probabilities into label maps",
    "package": "write a model for other programs: MONAI bundle, ONNX, torch.export",
    "serve": "segment scans that are sent over HTTP, with a page to drop them on",
    "doctor": "say whether this machine is fit, and what would cure it",
    "info": "say what a model, a configuration, a manifest or a scan is",
    "convert-weights": "turn weights of the authors' network or of a published form into a model",
}
OPTIONS = """Any command takes
  --quiet          errors only on stderr, and no progress
  --log-file PATH  messages with their times, added to this file
  --debug          full tracebacks instead of one line"""


def main() -> int:
    """Run the command that the process's arguments name."""
    return command_line.run(dispatch)


def dispatch(argv: Sequence[str] | None) -> int:
    """Call the pipeline named by the first argument with the others."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command in ("-V", "--version"):
        print(version_text())
        return 0
    if command == "--completion":
        print(Path(__file__).with_name("completion.bash").read_text(encoding="utf-8"), end="")
        return 0
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
    sys.argv[0] = f"attunet3d {command}"  # what argparse prints as the program's name
    pipeline = import_module(f"attunet3d.pipelines.{command.replace('-', '_')}")
    status: int = pipeline.main(rest)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{purpose}" for name, purpose in COMMANDS.items()]
    usage = "usage: attunet3d COMMAND …      attunet3d COMMAND --help      attunet3d --version"
    return "\n".join([usage, "", (sys.modules["attunet3d"].__doc__ or ""), "", *lines, "", OPTIONS])


if __name__ == "__main__":
    raise SystemExit(main())
