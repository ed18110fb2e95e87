"""How a model is trained: augmentation, patches, loss, optimiser, schedule."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from attunet3d.core.model_config import LabelValue
from attunet3d.core.settings import (
    Count,
    PositiveCount,
    ProperShare,
    Settings,
    Share,
    VoxelSize,
)

Axis = Annotated[int, Meta(ge=0, le=2)]
Degrees = Annotated[float, Meta(ge=0, le=180)]
Zoom = Annotated[float, Meta(ge=0.1, le=10)]
Weight = Annotated[float, Meta(ge=0, le=10)]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Settings):
    """Random changes of a training patch; each `*_probability` is per patch."""

    flip_axes: tuple[Axis, ...] = (0, 1, 2)
    """Axes mirrored at random: 0 (left-right), 1 (back-front), 2 (feet-head)."""
    affine_probability: Share = 0.3
    """Probability that a patch is rotated and scaled."""
    rotation_degrees: tuple[Degrees, Degrees, Degrees] = (15.0, 15.0, 30.0)
    """Largest rotation about x, y and z in degrees."""
    scale: tuple[Zoom, Zoom] = (0.7, 1.4)
    """Smallest and largest zoom."""
    elastic_probability: Share = 0.0
    """Probability that a smooth random deformation is added to the affine transform."""
    elastic_mm: Annotated[float, Meta(ge=0, le=100)] = 8.0
    """Largest displacement of the deformation's control points in mm."""
    noise_probability: Share = 0.1
    """Probability of Gaussian noise, up to 0.3 standard deviations."""
    blur_probability: Share = 0.15
    """Probability of Gaussian blur, 0.5 to 1.25 voxels."""
    brightness_probability: Share = 0.15
    """Probability that values are multiplied by 0.75 to 1.25."""
    contrast_probability: Share = 0.15
    """Probability that contrast about the patch's mean is multiplied by 0.75 to 1.25."""
    gamma_probability: Share = 0.3
    """Probability of a gamma of 0.7 to 1.5 on the patch's range."""
    low_resolution_probability: Share = 0.25
    """Probability of resampling to as little as half the resolution and back."""

    def check(self) -> None:
        """Refuse a repeated axis, and a zoom range in the wrong order."""
        if len(set(self.flip_axes)) < len(self.flip_axes):
            raise self.refuse("flip_axes", "different axes")
        if self.scale[0] > self.scale[1]:
            raise self.refuse("scale", "the smallest, then the largest zoom")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """Patches, loss, optimiser and schedule; one step is one update of the weights."""

    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    """Seeds the weights, the order of the data and every augmentation."""
    patch_size: VoxelSize | None = None
    """Size of a training patch along x, y, z in voxels; null: chosen by the plan."""
    batch_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Patches per batch, over all processes of a run together; null: chosen by the plan."""
    accumulation: PositiveCount = 1
    """Batches whose gradients are averaged for one update of the weights."""
    foreground_fraction: Share = 0.5
    """Fraction of patches centred on a foreground voxel; classes are sampled equally often."""
    steps: PositiveCount = 50_000
    """Updates of the weights in the whole run."""
    epochs: Count = 0
    """Passes over the training cases, each ended by a validation and a line of a table; they give
    `steps`, `validate_every` and, by `step_epochs`, `step_size`; 0: those count."""
    epoch_patches: PositiveCount = 1
    """Patches drawn from each training case in an epoch."""
    validate_every: PositiveCount = 500
    """Steps between validations; the best validation's weights are kept."""
    save_every: PositiveCount = 250
    """Steps between saves of the state from which `--resume` continues."""
    loss: Literal["dice", "dice_ce", "ce", "bce", "focal", "tversky"] = "dice_ce"
    """Loss that is minimised."""
    dice_background: bool = True
    """Count the background as a class in the Dice and Tversky losses."""
    dice_batch: bool = False
    """Compute Dice and Tversky over all patches of a batch together instead of per patch."""
    ignore_index: LabelValue | None = None
    """Label value whose voxels are left out of the loss (loss "ce", "dice_ce" and "bce")."""
    regions: tuple[tuple[LabelValue, ...], ...] = ()
    """Label values that make up each of the overlapping regions in `inference.regions_class_order`,
    each learned by a sigmoid of its own; set from the manifest."""
    tversky: tuple[Weight, Weight] = (0.3, 0.7)
    """Weights of false positives and false negatives in the Tversky loss."""
    focal_gamma: Weight = 2.0
    """Focusing exponent of the focal loss."""
    initialisation: Literal["default", "normal", "xavier", "kaiming", "orthogonal"] = "default"
    """Kernels at the start: the network's own way, N(0, 0.02), Glorot's uniform, He's normal, or
    orthogonal; but for "default", normalisation starts from N(1, 0.02) and biases from 0."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimiser; SGD has Nesterov momentum."""
    learning_rate: Annotated[float, Meta(gt=0, le=10)] = 1e-2
    """Learning rate after the warm-up."""
    encoder_rate: Share = 1.0
    """Factor of the learning rate in the encoder, for a start from another model; 0 freezes it."""
    taken_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Factor of the learning rate of weights that `--init` takes; new ones have the full rate."""
    momentum: ProperShare = 0.99
    """Momentum of SGD."""
    weight_decay: Share = 3e-5
    """L2 penalty, decoupled in AdamW."""
    schedule: Literal["polynomial", "cosine", "one_cycle", "step", "constant"] = "polynomial"
    """How the learning rate decays; one_cycle also warms up and cycles the momentum."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly from near zero."""
    step_size: PositiveCount = 10_000
    """Steps between two reductions of the learning rate in schedule "step" (StepLR)."""
    step_epochs: PositiveCount = 30
    """The same in epochs, where `epochs` is set."""
    step_gamma: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Factor of each reduction of the learning rate in schedule "step"."""
    clip_gradient_norm: Annotated[float, Meta(ge=0, le=10**6)] = 12.0
    """Norm to which larger gradients are clipped; 0: no clipping."""
    ema_decay: ProperShare = 0.0
    """Highest decay of the weights' moving average, which is validated and kept; 0: off."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; auto: float32 on CPUs, bfloat16 or else float16 on GPUs."""
    early_stop: Count = 0
    """Validations without improvement after which training stops; 0: never."""
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss does: stop the run, or skip the step and count it."""
    workers: Annotated[int, Meta(ge=0, le=64)] = 0
    """Threads that prepare batches; 0: one on a CPU, four for a GPU."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, but slower
    steps."""
    sync_batch_norm: bool = False
    """Normalise over the patches of all GPUs instead of each GPU's own."""

    def check(self) -> None:
        """Refuse settings that contradict each other."""
        if self.schedule == "one_cycle" and self.warmup_steps:
            raise self.refuse(
                "warmup_steps", '0 with schedule "one_cycle", which warms up by itself'
            )
        if self.ignore_index is not None and self.loss not in ("ce", "dice_ce", "bce"):
            raise self.refuse("loss", '"ce", "dice_ce" or "bce" with ignore_index')
        if not any(self.tversky):
            raise self.refuse("tversky", "two weights, at least one of them above 0")
