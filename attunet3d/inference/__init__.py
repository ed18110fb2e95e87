"""From a trained model and a scan to a label map on the scan's own grid."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
