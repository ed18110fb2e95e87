"""The settings of a run: one frozen tree, checked when it is created and saved as plain JSON.

A value of `None` (`null` in files) means "let the plan decide"; the `config.json` of a run holds
what the plan decided. Axes are those of the network's grid: x runs from the patient's left to right
(R), y from back to front (A), z from feet to head (S).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from attunet3d.core import whole_file
from attunet3d.core.errors import SettingsError
from attunet3d.core.model_config import InferenceConfig, NetworkConfig, PreprocessingConfig
from attunet3d.core.settings import Settings, named, refusal, schema
from attunet3d.core.text import read_text, reason
from attunet3d.core.training_config import AugmentationConfig, TrainingConfig
from attunet3d.core.types import Size
from attunet3d.core.yaml_text import parse_yaml

SECTIONS: dict[str, type[Settings]] = {
    "network": NetworkConfig,
    "preprocessing": PreprocessingConfig,
    "augmentation": AugmentationConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}
FILE_BYTES = 100_000  # largest file that is read; a whole configuration takes 3,000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on except its data.

    Raises:
        SettingsError: A value is of the wrong type, out of range, or contradicts another.

    Example:
        >>> config = Config().with_overrides(["training.steps=10", "inference.window=96,96,64"])
        >>> config.training.steps, config.inference.window
        (10, (96, 96, 64))
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        order, regions = self.inference.regions_class_order, self.training.regions
        if len(order) != len(regions) or not all(map(tuple.__contains__, regions, order)):
            rule = f"one value of each of training.regions {regions}"
            raise refusal("inference.regions_class_order", order, rule)
        if order and self.inference.decision != "argmax":
            rule = '"argmax" for regions that overlap'
            raise refusal("inference.decision", self.inference.decision, rule)
        patch, strides = self.training.patch_size, self.network.strides
        if self.network.form == "attention_unet" and patch is not None and strides is not None:
            check_patch(patch, strides)

    @property
    def regions(self) -> dict[int, tuple[int, ...]]:
        """The label values that make up each overlapping region, by the one that is written."""
        return dict(zip(self.inference.regions_class_order, self.training.regions, strict=True))

    @property
    def window(self) -> Size | None:
        """Size of inference's windows in voxels (x, y, z): as set, else that of the patch."""
        return self.inference.window or self.training.patch_size

    @classmethod
    def from_dict(cls, values: object) -> "Config":
        """Make a configuration of plain values by section; missing ones keep their defaults.

        Raises:
            SettingsError: A name is unknown, or a value is of the wrong type or out of range.
        """
        groups: dict[str, Any] = {
            name: SECTIONS[name].from_dict(part) for name, part in named(values, SECTIONS).items()
        }
        return cls(**groups)

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a YAML or JSON file.

        Raises:
            SettingsError: The file cannot be read, or holds a wrong setting.
        """
        try:
            return cls.from_dict(parse_yaml(read_text(path, FILE_BYTES)))
        except SettingsError as error:
            raise error.within(path) from None
        except (OSError, ValueError) as error:
            rule = f"cannot be read as a configuration ({reason(error)})"
            raise SettingsError(rule, path=path) from None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and name, as `from_dict` reads them."""
        return asdict(self)

    def by_name(self) -> dict[str, Any]:
        """All values by dotted name, such as "training.steps"."""
        sections = self.to_dict().items()
        return {f"{s}.{name}": value for s, values in sections for name, value in values.items()}

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads."""
        whole_file.write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def replaced(self, values: Mapping[str, Any]) -> "Config":
        """Return a copy with other values by dotted name; rules apply to the final values.

        Raises:
            SettingsError: A name is unknown, or a value is of the wrong type or out of range.

        Example:
            >>> Config().replaced({"training.steps": 10}).training.steps
            10
        """
        sections = self.to_dict()
        for name, value in values.items():
            section, _, field_name = name.partition(".")
            named({section: {}}, SECTIONS)
            sections[section] |= named({field_name: value}, sections[section], section)
        return Config.from_dict(sections)

    def with_overrides(self, settings: Iterable[str]) -> "Config":
        """Return a copy changed by texts `section.name=value`, as `replaced` does.

        Values are YAML; the brackets of a list may be left out, and an empty value means null.

        Raises:
            SettingsError: A text is not `section.name=value`, or the setting is unknown or wrong.
        """
        return self.replaced(dict(map(_parse_override, settings)))


def check_patch(patch: Size, strides: Iterable[Size]) -> None:
    """Refuse a training patch that the strides do not divide.

    Raises:
        SettingsError: It is not a multiple of their product; the nearest are named.
    """
    divisor = [prod(steps) for steps in zip(*strides, strict=True)]
    down = [max(1, size // step) * step for size, step in zip(patch, divisor, strict=True)]
    up = [-(-size // step) * step for size, step in zip(patch, divisor, strict=True)]
    if up != list(patch):
        rule = f"a multiple of {divisor}, the product of network.strides"
        raise refusal("training.patch_size", patch, rule, f"the nearest are {down} and {up}")


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ, as (old, new) values by dotted name.

    Example:
        >>> changed_settings(Config(), Config().replaced({"training.seed": 1}))
        {'training.seed': (0, 1)}
    """
    before, after = old.by_name(), new.by_name()
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors."""
    return schema(Config)


def _parse_override(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or "." not in name:
        raise SettingsError(
            f"--set {text:.200}: is not section.name=value", cure="write it as training.steps=1000"
        )
    if "," in value and value[0] not in "[{\"'":
        value = f"[{value}]"
    try:
        return name, parse_yaml(value)
    except ValueError:
        cure = "write a number, a name or a list such as [1, 2, 3]"
        raise SettingsError(f"--set {text:.200}: the value cannot be read", cure=cure) from None
