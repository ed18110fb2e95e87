"""3D Attention U-Net for organs in CT: from labelled scans to label maps on the scanner's grid."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attunet3d import network as network
    from attunet3d.gate import GridAttentionGate
    from attunet3d.inference import Predictor
    from attunet3d.network import AttentionUNet3D

__version__ = "0.1.0"
__all__ = ["AttentionUNet3D", "GridAttentionGate", "Predictor"]

_HOME = {
    "AttentionUNet3D": "network",
    "GridAttentionGate": "gate",
    "Predictor": "inference",
}


def __getattr__(name: str) -> Any:
    """Load a public name, and torch with it, on first use."""
    if name in _HOME:
        return getattr(import_module(f"attunet3d.{_HOME[name]}"), name)
    if name == "network":
        return import_module("attunet3d.network")
    raise AttributeError(f"module 'attunet3d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "network"])
