"""3D Attention U-Net for organs in CT: from labelled scans to label maps on the scanner's grid."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attunet3d.inference.predictor import Predictor
    from attunet3d.models.attention_unet import AttentionUNet3D
    from attunet3d.models.gate import GridAttentionGate

__version__ = "0.1.0"
__all__ = ["AttentionUNet3D", "GridAttentionGate", "Predictor"]

_HOME = {
    "AttentionUNet3D": "models.attention_unet",
    "GridAttentionGate": "models.gate",
    "Predictor": "inference.predictor",
}
_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "pyproject.toml").is_file():  # each checkout runs its own pipelines/
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> Any:
    """Load a public name, and torch with it, on first use."""
    if name in _HOME:
        return getattr(import_module(f"attunet3d.{_HOME[name]}"), name)
    raise AttributeError(f"module 'attunet3d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
