"""Cases and manifests: which scans and labels there are, checked and assigned to folds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
