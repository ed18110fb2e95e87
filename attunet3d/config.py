"""What a run is: one frozen tree of settings, checked at birth, saved as plain JSON.

A value of `None` means "let the plan decide"; the `config.json` a run writes holds no `None`
where the plan has decided. Axes are those of the network's grid: x to the patient's right-to-left
(R), y back to front (A), z feet to head (S), so `patch_size=(160, 160, 96)` is x, y, z.
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from attunet3d import atomic
from attunet3d.errors import UserError
from attunet3d.strict_text import read_text
from attunet3d.strict_yaml import parse_yaml

MOST_BYTES = 100_000  # of a file of settings; a whole configuration takes 3,000
Triple = tuple[float, float, float]
Size = tuple[int, int, int]


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or out of its range."""


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value!r:.200}")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The arguments of `AttentionUNet3D` that the data do not give."""

    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Feature channels of each level, finest first; their number is the number of levels."""
    strides: tuple[Size, ...] | None = None
    """Max-pool factor between neighbouring levels; None: chosen by the plan (2, 2, 2 for most)."""
    gate: Literal["double", "single", "none"] = "double"
    """Attention gates a skip: the authors' pair, one, or a plain U-Net."""
    deep_supervision: Literal["fused", "per-scale", "none"] = "fused"
    """Heads fused into one output as the authors do, one loss a scale, or one plain head."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """Normalisation after each convolution."""
    dropout: float = 0.0
    """Probability that a feature channel is dropped after each block, in training."""
    align_corners: bool = False
    """Trilinear convention; True only for weights trained with torch 0.3."""
    gate_bias: float | None = None
    """Initial bias of psi; 3.0 opens the gates at the start as the paper's text says."""

    def __post_init__(self) -> None:
        _require(len(self.channels) >= 2, "network.channels", self.channels, "at least two levels")
        _require(min(self.channels) > 0, "network.channels", self.channels, "positive")
        _require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        if self.strides is not None:
            rule = f"{len(self.channels) - 1} triples of positive factors, one between two levels"
            whole = all(min(stride) > 0 for stride in self.strides)
            fits = len(self.strides) == len(self.channels) - 1
            _require(whole and fits, "network.strides", self.strides, rule)


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """The way from a scan in Hounsfield units to the network's input; no randomness."""

    spacing_mm: Triple | None = None
    """Voxel size of the network's grid along R, A, S."""
    hu_window: tuple[float, float] | None = None
    """Lowest and highest Hounsfield unit kept; values beyond are clipped."""
    normalisation: Literal["dataset", "volume"] = "dataset"
    """Shift and scale by the training set's foreground, or by each scan's own statistics."""
    mean_hu: float | None = None
    """Mean of the training set's foreground within the window (normalisation "dataset")."""
    std_hu: float | None = None
    """Standard deviation of the training set's foreground within the window."""
    crop_to_body: bool = True
    """Leave the air and the table around the body out."""

    def __post_init__(self) -> None:
        if self.spacing_mm is not None:
            ok = min(self.spacing_mm) > 0
            _require(ok, "preprocessing.spacing_mm", self.spacing_mm, "positive millimetres")
        if self.hu_window is not None:
            low, high = self.hu_window
            _require(
                low < high, "preprocessing.hu_window", self.hu_window, "lowest, then highest HU"
            )
        if self.std_hu is not None:
            _require(self.std_hu > 0, "preprocessing.std_hu", self.std_hu, "positive")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes of a training patch; each `*_probability` is per patch."""

    flip_axes: tuple[int, ...] = (0, 1, 2)
    """Axes mirrored at random (0 = left-right); () for none."""
    affine_probability: float = 0.3
    """How often a patch is rotated and scaled."""
    rotation_degrees: Triple = (15.0, 15.0, 30.0)
    """Largest rotation about x, y and z."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Smallest and largest zoom."""
    elastic_probability: float = 0.0
    """How often a smooth random deformation is added to the affine one."""
    elastic_mm: float = 8.0
    """Largest displacement of the deformation's control points."""
    noise_probability: float = 0.1
    """Gaussian noise, up to 0.3 standard deviations."""
    blur_probability: float = 0.15
    """Gaussian blur, 0.5 to 1.25 voxels."""
    brightness_probability: float = 0.15
    """Values times 0.75 to 1.25."""
    contrast_probability: float = 0.15
    """Contrast times 0.75 to 1.25 about the patch's mean."""
    gamma_probability: float = 0.3
    """Gamma of 0.7 to 1.5 on the patch's range."""
    low_resolution_probability: float = 0.25
    """Down to as little as half the resolution and back."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability"):
                _require(0 <= value <= 1, f"augmentation.{name}", value, "in [0, 1]")
        _require(
            set(self.flip_axes) <= {0, 1, 2}, "augmentation.flip_axes", self.flip_axes, "of 0, 1, 2"
        )
        _require(
            0 < self.scale[0] <= self.scale[1],
            "augmentation.scale",
            self.scale,
            "positive, in order",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Patches, loss, optimiser and schedule; one step is one update of the weights."""

    seed: int = 0
    """Seeds the weights, the order of the data and every augmentation."""
    patch_size: Size | None = None
    """Voxels of a training patch along x, y, z; None: chosen by the plan for the memory at hand."""
    batch_size: int | None = None
    """Patches a step sees at a time; None: chosen by the plan."""
    accumulation: int = 1
    """Batches whose gradients are summed before one update."""
    foreground_fraction: float = 0.5
    """Share of patches centred on a labelled voxel, every class as often."""
    steps: int = 50_000
    """Updates of the weights in the whole run."""
    validate_every: int = 500
    """Steps between validations; the best validation's weights are kept."""
    save_every: int = 250
    """Steps between saves of the state from which `--resume` goes on."""
    loss: Literal["dice", "dice_ce", "ce", "bce", "focal", "tversky"] = "dice_ce"
    """What is minimised."""
    ignore_index: int | None = None
    """Label value whose voxels count in no loss (loss "ce" and "dice_ce")."""
    tversky: tuple[float, float] = (0.3, 0.7)
    """Weights of false positives and false negatives in the Tversky loss."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimiser; SGD has Nesterov momentum."""
    learning_rate: float = 1e-2
    """Learning rate after the warm-up."""
    momentum: float = 0.99
    """Momentum of SGD."""
    weight_decay: float = 3e-5
    """L2 penalty, decoupled in AdamW."""
    schedule: Literal["polynomial", "cosine", "one_cycle", "step", "constant"] = "polynomial"
    """How the learning rate falls; one_cycle also warms up, and cycles the momentum, by itself."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from near zero."""
    step_size: int = 10_000
    """Steps between two falls of schedule "step" (StepLR)."""
    step_gamma: float = 0.5
    """Factor of each fall of schedule "step"."""
    clip_gradient_norm: float = 12.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is then validated and kept; 0: off."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; auto: bfloat16 on GPUs that compute in it, float16 on others."""
    early_stop: int = 0
    """Stop after this many validations without a better one; 0: never."""
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss does: stop the run, or skip the step and count it."""
    workers: int = 0
    """Processes that prepare batches; 0: one thread beside the training."""

    def __post_init__(self) -> None:
        positive = (
            "accumulation",
            "steps",
            "validate_every",
            "save_every",
            "learning_rate",
            "step_size",
        )
        for name in positive:
            _require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "positive")
        for name in ("warmup_steps", "early_stop", "workers", "clip_gradient_norm", "weight_decay"):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")
        if self.patch_size is not None:
            _require(min(self.patch_size) > 0, "training.patch_size", self.patch_size, "positive")
        if self.batch_size is not None:
            _require(self.batch_size > 0, "training.batch_size", self.batch_size, "positive")
        rises = self.schedule == "one_cycle" and self.warmup_steps > 0
        _require(
            not rises, "training.warmup_steps", self.warmup_steps, '0 with schedule "one_cycle"'
        )
        share = self.foreground_fraction
        _require(0 <= share <= 1, "training.foreground_fraction", share, "in [0, 1]")
        _require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")
        if self.ignore_index is not None:
            is_label = 1 <= self.ignore_index <= 255
            _require(is_label, "training.ignore_index", self.ignore_index, "in 1 … 255")
            takes = self.loss in ("ce", "dice_ce")
            _require(takes, "training.loss", self.loss, '"ce" or "dice_ce" with ignore_index')


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a scan is segmented; every choice is recorded in the case's sidecar."""

    mode: Literal["window", "whole"] = "window"
    """Overlapping windows, or the whole body box in one pass where memory allows."""
    window: Size | None = None
    """Voxels of a window along x, y, z; None: the training patch."""
    overlap: float = 0.5
    """Least share of a window that its neighbour covers as well."""
    window_batch: int = 1
    """Windows a pass."""
    mirror: bool = False
    """Average over the eight mirrorings (test-time augmentation)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; auto: bfloat16 on GPUs whose self-test passes, else float32."""
    engine: Literal["torch", "openvino"] = "torch"
    """What runs the network; openvino: faster on CPUs, from the extra `attunet3d[openvino]`."""
    keep_largest: bool = False
    """Keep the largest connected component of each label only."""
    max_voxels: int = 1024 * 1024 * 900
    """Largest scan accepted."""

    def __post_init__(self) -> None:
        _require(0 <= self.overlap < 1, "inference.overlap", self.overlap, "in [0, 1)")
        _require(self.window_batch > 0, "inference.window_batch", self.window_batch, "positive")
        if self.window is not None:
            _require(min(self.window) > 0, "inference.window", self.window, "positive")


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Build a configuration from plain values; what is missing keeps its default.

        Raises:
            ConfigError: A name is unknown, or a value is of the wrong type or out of range.
        """
        config: Config = _build(cls, values, "")
        return config

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a YAML or JSON file (no tags, no aliases, no expressions, no code).

        Raises:
            ConfigError: The file is missing, no mapping of settings, or holds a wrong one.
        """
        try:
            values = parse_yaml(read_text(path, MOST_BYTES))
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:300]
            raise ConfigError(f"{path}: no configuration can be read here ({reason})") from None
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}: must hold settings by name, got {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads."""
        atomic.write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def with_overrides(self, settings: Iterable[str]) -> "Config":
        """Return this configuration with `section.name=value` applied, all together.

        Raises:
            ConfigError: A setting is not `section.name=value`, unknown, or wrong.
        """
        values = self.to_dict()
        for setting in settings:
            path, equals, text = setting.partition("=")
            section, dot, name = path.strip().partition(".")
            if not (equals and dot):
                raise ConfigError(
                    f"--set {setting}: write section.name=value, as training.steps=1000"
                )
            if section not in values:
                raise ConfigError(_unknown(section, values, ""))
            if name not in values[section]:
                raise ConfigError(_unknown(name, values[section], f"{section}."))
            try:
                values[section][name] = parse_yaml(text) if text.strip() else None
            except ValueError:
                raise ConfigError(
                    f"--set {setting}: write a number, a name or a list such as [1, 2, 3]"
                ) from None
        return Config.from_dict(values)


def _unknown(name: object, known: Iterable[str], prefix: str) -> str:
    close = difflib.get_close_matches(str(name)[:80], list(known), n=1)
    cure = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}"
    return f"unknown setting {prefix}{str(name)[:80]}; {cure}"


def _build(cls: Any, values: object, prefix: str) -> Any:
    """An instance of the dataclass `cls` from plain `values`, every type checked."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must hold settings by name, got {values!r:.200}")
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(_unknown(name, hints, prefix))
    return cls(
        **{name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    )


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` has it, or an error that names both."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name + ".")
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(get_args(hint)[0], value, name)
    if get_origin(hint) is Literal:
        _require(
            value in get_args(hint), name, value, "one of " + ", ".join(map(str, get_args(hint)))
        )
        return value
    if get_origin(hint) is tuple:
        return _convert_tuple(get_args(hint), value, name)
    return _convert_scalar(hint, value, name)


def _convert_tuple(items: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple), name, value, "a list such as [1, 2, 3]")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    _require(len(value) == len(items), name, value, f"a list of {len(items)}")
    return tuple(_convert(item, part, name) for item, part in zip(items, value, strict=True))


def _convert_scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{name} must be a number, got {value!r:.200}") from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and abs(value) < 1e300  # neither NaN nor infinite, nor an int beyond float
    if hint is float:
        _require(number, name, value, "a number")
        return float(value)
    if hint is int:
        _require(number and value == int(value), name, value, "a whole number")
        return int(value)
    _require(isinstance(value, hint), name, value, f"a {hint.__name__}")
    return value
