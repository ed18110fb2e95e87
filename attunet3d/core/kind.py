"""Tells apart what a path or a name on the command line can mean."""

from pathlib import Path
from typing import Literal

from attunet3d.core.ensemble_file import ENSEMBLE
from attunet3d.core.presets import PRESETS
from attunet3d.core.text import read_json

Kind = Literal["model", "config", "manifest", "scan"]
_LISTS = ("training", "validation", "test")  # of a manifest


def kind_of(name: str) -> Kind:
    """Classify `name` by its ending, and JSON by its content; anything else is a scan.

    Args:
        name: A preset's name, or a path.

    Raises:
        FileError: A JSON file cannot be read.

    Example:
        >>> kind_of("oktay2018"), kind_of("mine.yaml"), kind_of("ct.nii.gz")
        ('config', 'config', 'scan')
    """
    path = Path(name)
    if name in PRESETS or path.suffix in (".yaml", ".yml") or not (path.suffix or path.exists()):
        return "config"
    if path.suffix == ".safetensors" or any(
        (path / name).is_file() for name in ("model.safetensors", ENSEMBLE)
    ):
        return "model"
    if path.suffix == ".json":
        values = read_json(path)
        lists = isinstance(values, dict) and any(isinstance(values.get(n), list) for n in _LISTS)
        return "manifest" if lists else "config"
    return "scan"
