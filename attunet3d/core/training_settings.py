"""How a model is trained: augmentation, patches, loss, optimiser, schedule."""

from dataclasses import dataclass
from typing import Literal

from attunet3d.core.typed_values import require
from attunet3d.core.types import Size, Triple

MOST_WORKERS = 64


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
                require(0 <= value <= 1, f"augmentation.{name}", value, "in [0, 1]")
        require(
            set(self.flip_axes) <= {0, 1, 2}, "augmentation.flip_axes", self.flip_axes, "of 0, 1, 2"
        )
        require(
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
    """Of the forward pass; auto: float32 on CPUs, bfloat16 on GPUs that have it, else float16."""
    early_stop: int = 0
    """Stop after this many validations without a better one; 0: never."""
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss does: stop the run, or skip the step and count it."""
    workers: int = 0
    """Threads that prepare batches; 0: one on a CPU, four for a GPU."""

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
            require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "positive")
        for name in ("warmup_steps", "early_stop", "clip_gradient_norm", "weight_decay"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")
        most = f"0 to {MOST_WORKERS}"
        require(0 <= self.workers <= MOST_WORKERS, "training.workers", self.workers, most)
        if self.patch_size is not None:
            require(min(self.patch_size) > 0, "training.patch_size", self.patch_size, "positive")
        if self.batch_size is not None:
            require(self.batch_size > 0, "training.batch_size", self.batch_size, "positive")
        rises = self.schedule == "one_cycle" and self.warmup_steps > 0
        require(
            not rises, "training.warmup_steps", self.warmup_steps, '0 with schedule "one_cycle"'
        )
        share = self.foreground_fraction
        require(0 <= share <= 1, "training.foreground_fraction", share, "in [0, 1]")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")
        if self.ignore_index is not None:
            is_label = 1 <= self.ignore_index <= 255
            require(is_label, "training.ignore_index", self.ignore_index, "in 1 … 255")
            takes = self.loss in ("ce", "dice_ce")
            require(takes, "training.loss", self.loss, '"ce" or "dice_ce" with ignore_index')
