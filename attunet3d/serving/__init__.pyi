from .app import AppOptions as AppOptions
from .app import build_app as build_app
from .jobs import JobQueue as JobQueue
from .jobs import QueueLimits as QueueLimits
from .server import ServerOptions as ServerOptions
from .server import serve as serve
from .worker import Worker as Worker
