"""The Attention U-Net, its checkpoints, and the rewriting that makes it fast."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
