"""Models as a service: a queue of scans, processes that segment them, and an HTTP interface."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
