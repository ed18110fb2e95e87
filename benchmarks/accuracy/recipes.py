"""Recipes: which system is trained, with which settings; read from recipes.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from attunet3d.core import SettingsError

FILE = Path(__file__).with_name("recipes.yaml")
ANSWER = ("inference.decision", "inference.keep_largest", "inference.mirror", "keep_largest")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training; two recipes that differ in one setting are an experiment."""

    name: str
    system: str
    """attunet3d, monai or nnunet."""
    preset: str = ""
    """Of attunet3d: where the settings begin."""
    network: str = ""
    """Of MONAI: the class of its network."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> "Recipe":
        """What decides the model; recipes that share it share one training."""
        settings = {key: value for key, value in self.settings.items() if key not in ANSWER}
        return replace(self, name="", settings=settings)

    @property
    def answer(self) -> dict[str, Any]:
        """What is made of the model's probabilities."""
        return {key: value for key, value in self.settings.items() if key in ANSWER}


def find_recipe(name: str, file: Path = FILE) -> Recipe:
    """The recipe of a name, with what it takes over from its base.

    Raises:
        SettingsError: There is no recipe of this name.
    """
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    if name not in table:
        raise SettingsError(
            f"there is no recipe {name!r}", value=name, cure=f"choose of {', '.join(table)}"
        )
    entry = dict(table[name])
    base = find_recipe(entry["base"], file) if "base" in entry else None
    return Recipe(
        name=name,
        system=entry.get("system") or (base.system if base else ""),
        preset=entry.get("preset") or (base.preset if base else ""),
        network=entry.get("network") or (base.network if base else ""),
        settings={**(base.settings if base else {}), **entry.get("set", {})},
    )
