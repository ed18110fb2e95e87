"""Runs the service until it is asked to stop."""

import ipaddress
import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn

from attunet3d.cohort import ModelOptions
from attunet3d.core import SettingsError, locked_folder
from attunet3d.serving.app import AppOptions, build_app
from attunet3d.serving.jobs import JobQueue, QueueLimits
from attunet3d.serving.worker import Worker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """Where and how to serve.

    Args:
        host: Address to listen on.
        port: To listen on.
        folder: Where jobs live; None: a temporary folder that goes with the server.
        devices: One worker for each; an empty name is CUDA where there is one, else the CPU.
        limits: Of the queue.
        app: How uploads are taken.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    folder: Path | None = None
    devices: tuple[str, ...] = ("",)
    limits: QueueLimits = field(default_factory=QueueLimits)
    app: AppOptions = field(default_factory=AppOptions)


def serve(model: ModelOptions, options: ServerOptions) -> None:
    """Load the model on each device, and answer until SIGTERM or Ctrl-C.

    Then no more jobs are taken; running ones get their grace; what waits stays in the folder, and
    the next server with it goes on.

    Raises:
        SettingsError: The address is not of this machine alone, and there is no token.
        UserError: The model cannot be loaded, or the folder is another server's.
    """
    if not _is_loopback(options.host) and options.app.token is None:
        rule = f"host {options.host!r} can be reached from other machines without a token"
        raise SettingsError(rule, value=options.host, cure="set a token, or serve on 127.0.0.1")
    with ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attunet3d-")))
        stack.enter_context(locked_folder(folder, "serve"))
        workers = [Worker(replace(model, device=device or None)) for device in options.devices]
        for worker in workers:
            worker.start()
        queue = JobQueue(folder / "jobs", workers, options.limits)
        _log.info("serving on http://%s:%d", options.host, options.port)
        uvicorn.run(
            build_app(queue, options.app),
            host=options.host,
            port=options.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
