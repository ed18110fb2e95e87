"""Run the whole workflow on phantom abdomens: train, segment unseen ones, evaluate, report.

Takes about two minutes on two CPU cores and needs no data. OUT_DIR/demo.png is the
picture, OUT_DIR/scores/report.html the page to look at.
"""

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Write the phantoms, then run manifest, train, infer, evaluate and report on them."""
    parser = command_line.parser(__doc__)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    arguments = parser.parse_args(argv)

    from attunet3d import demonstration  # torch comes with it; --help does without

    print("writing phantom abdomens")
    demonstration.write_data(arguments.out_dir)
    for command in demonstration.commands(arguments.out_dir):
        print(f"\n$ attunet3d {shlex.join(command)}", flush=True)
        status: int = import_module(f"attunet3d.pipelines.{command[0]}").main(command[1:])
        if status:
            return status
    print(f"\nthe picture: {demonstration.picture(arguments.out_dir)}")
    print(f"the page: {arguments.out_dir / 'scores' / 'report.html'}")
    return 0
