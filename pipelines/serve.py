"""Segment scans that other programs and people send over HTTP.

A page to drop scans on is at http://HOST:PORT/, the interface's description at /docs. On an address
that other machines reach, a token is required: it is read from the environment variable
ATTUNET3D_TOKEN, so that it stands in no list of processes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a model until the process is asked to stop."""
    parser = command_line.parser(__doc__)
    parser.add_argument("model", nargs="+", help="run folder or .safetensors; several: ensemble")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default="8000")
    parser.add_argument("--device", default="", help="such as cpu or cuda:0,cuda:1: a worker each")
    kept = "where jobs live, so that a restarted server goes on with them"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=kept)
    setting = "such as inference.mode=whole; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--waiting", type=int, default="32", help="jobs that may wait")
    limits.add_argument("--seconds", type=float, default="1800", help="for one job")
    limits.add_argument("--keep", type=float, default="3600", help="seconds that results are kept")
    arguments = parser.parse_args(argv)

    from attunet3d.cohort import ModelOptions
    from attunet3d.serving import AppOptions, QueueLimits, ServerOptions, serve

    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        folder=arguments.folder,
        devices=tuple(arguments.device.split(",")),
        limits=QueueLimits(arguments.waiting, arguments.seconds, arguments.keep),
        app=AppOptions(token=os.environ.get("ATTUNET3D_TOKEN")),
    )
    serve(ModelOptions(models=arguments.model, settings=arguments.set), options)
    return 0
