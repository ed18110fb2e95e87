"""3D Attention U-Net for organs in CT: from labelled scans to label maps on the scanner's grid."""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"
_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "pyproject.toml").is_file():  # each checkout runs its own pipelines/
    __path__.append(str(_CHECKOUT))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
