"""What a trained model is made of and how it is used: network, preprocessing, inference."""

from dataclasses import dataclass
from typing import Literal

from attunet3d.core.typed_values import require
from attunet3d.core.types import Size, Triple


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network it is, and the arguments of `AttentionUNet3D` that the data do not give."""

    form: Literal[
        "attention_unet",
        "2d_nearest",
        "2d_transposed",
        "3d_same_resolution",
        "3d_transposed",
        "2d_unnormalised",
    ] = "attention_unet"
    """This package's network, or one that was published as Attention U-Net, which the settings
    below but `slices` leave as it was published."""
    slices: Literal[1, 3, 5] = 3
    """Neighbouring slices along z that a 2D form sees as channels."""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Feature channels of each level, finest first; their number is the number of levels."""
    strides: tuple[Size, ...] | None = None
    """Factor between neighbouring levels; None: chosen by the plan (2, 2, 2 for most)."""
    block: Literal["plain", "residual"] = "plain"
    """Blocks of the encoder: two convolutions as the authors have them, or residual ones."""
    blocks: tuple[int, ...] | None = None
    """Blocks of each level of the encoder, finest first; None: one."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Activation after each normalisation."""
    downsampling: Literal["max_pool", "strided"] = "max_pool"
    """What shrinks features between levels: max-pooling, or strides of a level's first block."""
    gate: Literal["double", "single", "none"] = "double"
    """Attention gates per skip: the authors' pair, one, or a plain U-Net."""
    deep_supervision: Literal["fused", "per-scale", "none"] = "fused"
    """Heads fused into one output as the authors do, one loss per scale, or one plain head."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """Normalisation after each convolution."""
    dropout: float = 0.0
    """Probability that a feature channel is dropped after each block, in training."""
    align_corners: bool = False
    """Trilinear convention; True only for weights trained with torch 0.3."""
    gate_bias: float | None = None
    """Initial bias of psi; 3.0 opens the gates at the start as the paper's text says."""

    def __post_init__(self) -> None:
        require(len(self.channels) >= 2, "network.channels", self.channels, "at least two levels")
        require(min(self.channels) > 0, "network.channels", self.channels, "positive")
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        if self.blocks is not None:
            fits = len(self.blocks) == len(self.channels) and min(self.blocks) > 0
            require(fits, "network.blocks", self.blocks, "one positive number per level")
        if self.strides is not None:
            rule = f"{len(self.channels) - 1} triples of positive factors, one between two levels"
            whole = all(min(stride) > 0 for stride in self.strides)
            fits = len(self.strides) == len(self.channels) - 1
            require(whole and fits, "network.strides", self.strides, rule)


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
            require(ok, "preprocessing.spacing_mm", self.spacing_mm, "positive millimetres")
        if self.hu_window is not None:
            low, high = self.hu_window
            require(
                low < high, "preprocessing.hu_window", self.hu_window, "lowest, then highest HU"
            )
        if self.std_hu is not None:
            require(self.std_hu > 0, "preprocessing.std_hu", self.std_hu, "positive")


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
        require(0 <= self.overlap < 1, "inference.overlap", self.overlap, "in [0, 1)")
        require(self.window_batch > 0, "inference.window_batch", self.window_batch, "positive")
        if self.window is not None:
            require(min(self.window) > 0, "inference.window", self.window, "positive")
