"""What a run is: one frozen tree of settings, checked at birth, saved as plain JSON.

A value of `None` means "let the plan decide"; the `config.json` a run writes holds no `None`
where the plan has decided. Axes are those of the network's grid: x to the patient's right-to-left
(R), y back to front (A), z feet to head (S), so `patch_size=(160, 160, 96)` is x, y, z.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attunet3d.core import whole_file
from attunet3d.core.errors import SettingsError
from attunet3d.core.model_settings import InferenceConfig, NetworkConfig, PreprocessingConfig
from attunet3d.core.strict_text import read_text
from attunet3d.core.strict_yaml import parse_yaml
from attunet3d.core.training_settings import AugmentationConfig, TrainingConfig
from attunet3d.core.typed_values import build, unknown
from attunet3d.core.types import Size

MOST_BYTES = 100_000  # of a file of settings; a whole configuration takes 3,000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on but its data.

    Example:
        >>> config = Config().with_overrides(["training.steps=10", "network.gate=single"])
        >>> config.training.steps, config.network.gate
        (10, 'single')
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    @property
    def window(self) -> Size | None:
        """x, y, z voxels of inference's windows: those set, else the training patch."""
        return self.inference.window or self.training.patch_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Build a configuration from plain values; what is missing keeps its default.

        Raises:
            SettingsError: A name is unknown, or a value is of the wrong type or out of range.
        """
        config: Config = build(cls, values)
        return config

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a YAML or JSON file (no tags, no aliases, no expressions, no code).

        Raises:
            SettingsError: The file is missing, no mapping of settings, or holds a wrong one.
        """
        try:
            values = parse_yaml(read_text(path, MOST_BYTES))
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:300]
            raise SettingsError(f"{path}: no configuration can be read here ({reason})") from None
        if not isinstance(values, Mapping):
            raise SettingsError(f"{path}: must hold settings by name, got {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads."""
        whole_file.write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def with_overrides(self, settings: Iterable[str]) -> "Config":
        """Return this configuration with `section.name=value` applied, all together.

        Raises:
            SettingsError: A setting is not `section.name=value`, unknown, or wrong.
        """
        values = self.to_dict()
        for setting in settings:
            path, equals, text = setting.partition("=")
            section, dot, name = path.strip().partition(".")
            if not (equals and dot):
                raise SettingsError(
                    f"--set {setting}: write section.name=value, as training.steps=1000"
                )
            if section not in values:
                raise SettingsError(unknown(section, values))
            if name not in values[section]:
                raise SettingsError(unknown(name, values[section], f"{section}."))
            try:
                values[section][name] = parse_yaml(text) if text.strip() else None
            except ValueError:
                raise SettingsError(
                    f"--set {setting}: write a number, a name or a list such as [1, 2, 3]"
                ) from None
        return Config.from_dict(values)
