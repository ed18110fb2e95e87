"""Items of MONAI's configurations: objects by the names of their classes, as JSON holds them."""

from collections.abc import Mapping
from typing import Any


def target(name: str, **arguments: Any) -> dict[str, Any]:
    """An object of the class or function `name`.

    Example:
        >>> target("attunet3d.WindowInferer", roi_size=[16, 16, 16])
        {'_target_': 'attunet3d.WindowInferer', 'roi_size': [16, 16, 16]}
    """
    return {"_target_": name, **arguments}


def monai(name: str, **arguments: Any) -> dict[str, Any]:
    """An object of MONAI."""
    return target(f"monai.{name}", **arguments)


def chain(*transforms: Mapping[str, Any]) -> dict[str, Any]:
    """Transforms one after the other."""
    return monai("transforms.Compose", transforms=list(transforms))
