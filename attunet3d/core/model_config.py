"""Settings that belong to a trained model: network, preprocessing, inference."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from attunet3d.core.settings import (
    HU,
    ProperShare,
    Settings,
    VoxelSize,
    refusal,
    suggestion,
)

MAX_VOXELS = 1024 * 1024 * 900  # of a scan: 3.8 GB in float32
Features = Annotated[int, Meta(ge=1, le=4096)]
Blocks = Annotated[int, Meta(ge=1, le=32)]
Stride = Annotated[int, Meta(ge=1, le=16)]
Millimetres = Annotated[float, Meta(ge=0.01, le=100)]
Millilitres = Annotated[float, Meta(gt=0, le=10_000)]
LabelValue = Annotated[int, Meta(ge=1, le=255)]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Settings):
    """The form of the network, and its arguments that do not depend on the data."""

    form: Literal[
        "attention_unet",
        "2d_nearest",
        "2d_transposed",
        "3d_same_resolution",
        "3d_transposed",
        "2d_unnormalised",
    ] = "attention_unet"
    """This package's network, or a published Attention U-Net, to which of the settings below only
    `slices` and `width` apply."""
    slices: Literal[1, 3, 5] = 3
    """Neighbouring slices along z that a 2D form sees as channels."""
    width: Features | None = None
    """Feature channels of a published form's finest level; null: as published."""
    channels: Annotated[tuple[Features, ...], Meta(min_length=2)] = (16, 32, 64, 128, 256)
    """Feature channels of each level, finest first; their number is the number of levels."""
    strides: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    """Factors between neighbouring levels along x, y, z; null: chosen by the plan."""
    block: Literal["plain", "residual"] = "plain"
    """Blocks of the encoder: two convolutions as the authors have them, or residual ones."""
    blocks: tuple[Blocks, ...] | None = None
    """Blocks of each level of the encoder, finest first; null: one."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Activation after each normalisation."""
    downsampling: Literal["max_pool", "strided"] = "max_pool"
    """Downsampling between levels: by max-pooling, or by strides in the first block of a level."""
    gate: Literal["double", "single", "none"] = "double"
    """Attention gates per skip connection: the authors' pair, one, or a plain U-Net."""
    deep_supervision: Literal["fused", "per-scale", "none"] = "fused"
    """Heads fused into one output as the authors do, one loss per scale, or one plain head."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """Normalisation after each convolution."""
    dropout: ProperShare = 0.0
    """Probability that a feature channel is dropped after each block, in training."""
    align_corners: bool = False
    """Convention of trilinear upsampling; true only for weights trained with torch 0.3."""
    gate_bias: Annotated[float, Meta(ge=-20, le=20)] | None = None
    """Initial bias of psi; with 3.0 the gates are open at the start, as the paper's text says."""

    def check(self) -> None:
        """Refuse strides and blocks that do not fit the levels; a published form has its own."""
        if self.form != "attention_unet":
            return
        levels = len(self.channels)
        if self.strides is not None and len(self.strides) != levels - 1:
            raise self.refuse("strides", f"{levels - 1} triples, one between neighbouring levels")
        if self.blocks is not None and len(self.blocks) != levels:
            raise self.refuse("blocks", f"{levels} numbers, one per level")


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig(Settings):
    """How a scan in Hounsfield units becomes the network's input, without randomness."""

    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    """Voxel size of the network's grid along R, A, S in mm; null: chosen by the plan."""
    hu_window: tuple[HU, HU] | None = None
    """Lowest and highest HU; values outside are clipped."""
    normalisation: Literal["dataset", "volume"] = "dataset"
    """Shift and scale by the training set's foreground, or by each scan's own statistics."""
    mean_hu: HU | None = None
    """Mean of the training set's foreground within the window, in HU (normalisation "dataset")."""
    std_hu: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    """Standard deviation of the training set's foreground within the window, in HU."""
    crop_to_body: bool = True
    """Whether to crop the scan to the body, without surrounding air and table."""

    def check(self) -> None:
        """Refuse an empty window."""
        if self.hu_window is not None and self.hu_window[0] >= self.hu_window[1]:
            raise self.refuse("hu_window", "the lowest, then the highest HU")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Settings):
    """How a scan is segmented; every choice is recorded in the case's sidecar."""

    mode: Literal["auto", "window", "whole"] = "auto"
    """Overlapping windows, or the whole body box in one pass where the memory budget allows it;
    auto: one pass, but windows for networks with instance or group normalisation."""
    window: VoxelSize | None = None
    """Size of a window along x, y, z in voxels; null: the training patch."""
    overlap: ProperShare = 0.5
    """Least overlap of neighbouring windows, as a fraction of a window."""
    window_batch: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Windows per forward pass."""
    mirror: bool = False
    """Whether to average over mirrorings along the axes of `augmentation.flip_axes` (test-time
    augmentation), but not left and right where a label names a side."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; auto: bfloat16 on GPUs that pass a self-test, else float32."""
    engine: Literal["torch", "openvino"] = "torch"
    """Library that runs the network; openvino: faster on CPUs, needs `attunet3d[openvino]`."""
    decision: Literal["argmax", "dice"] = "argmax"
    """The label of the largest logit, or the labels that maximise the expected Dice (RankSEG)."""
    keep_largest: tuple[LabelValue | str, ...] = ()
    """Labels, by value or name, of which only the largest connected component is kept; of regions
    that overlap, the components of all their values."""
    smallest_ml: dict[str, Millilitres] = field(default_factory=dict, hash=False)
    """Smallest volume in ml, by label name, of a connected component that is kept."""
    regions_class_order: tuple[LabelValue, ...] = ()
    """Label values of overlapping regions in the order in which they are written, later ones over
    earlier ones; set from the manifest."""
    max_voxels: Annotated[int, Meta(ge=1, le=2**40)] = MAX_VOXELS
    """Largest scan accepted, in voxels."""


def label_values(
    wanted: Iterable[int | str],
    labels: Mapping[int, str],
    setting: str = "inference.keep_largest",
) -> tuple[int, ...]:
    """Return the values of labels that are given by value or name, as in `keep_largest`.

    Raises:
        SettingsError: There is no such label.

    Example:
        >>> label_values(("pancreas", 3), {0: "background", 1: "pancreas", 3: "tumour"})
        (1, 3)
    """
    values: dict[int | str, int] = {value: value for value in labels if value}
    values |= {name: value for value, name in labels.items() if value}
    for label in wanted:
        if label not in values:
            cure = suggestion(str(label), map(str, values))
            raise refusal(setting, label, "a label of the model", cure)
    return tuple(values[label] for label in wanted)
