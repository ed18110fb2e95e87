"""Named configurations: the paper's, current practice, demonstrations, and published forms.

`--set` changes a preset like any other configuration, and the plan replaces each `None`. Sources
of the numbers, as named in the comments:

paper     Oktay et al. 2018, arXiv:1804.03999
code      ozan-oktay/Attention-Gated-Networks, the configuration of the CT network
nnU-Net   Isensee et al., Nature Methods 2021, and its code
page      the pages that publish the forms, taken together: none of them tells everything
ours      chosen here
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attunet3d.core.config import Config
from attunet3d.core.errors import SettingsError
from attunet3d.core.model_config import InferenceConfig, NetworkConfig, PreprocessingConfig
from attunet3d.core.settings import suggestion
from attunet3d.core.training_config import AugmentationConfig, TrainingConfig
from attunet3d.core.types import Triple

EPOCH = 31  # updates in an epoch of the code: 61 training cases of CT-82 in batches of two
NO_INTENSITY_CHANGES: dict[str, Any] = {
    f"{change}_probability": 0.0
    for change in ("noise", "blur", "brightness", "contrast", "gamma", "low_resolution")
}


def oktay2018() -> Config:
    """The network and training of the paper's text and the authors' code.

    Where the two differ, the text is followed: the code runs SGD although it names Adam.
    """
    return Config(
        network=NetworkConfig(
            channels=(16, 32, 64, 128, 256),  # code: 64 … 1024 divided by feature_scale 4
            strides=((2, 2, 2),) * 4,  # code
            gate="double",  # code: unet_CT_multi_att_dsv_3D
            deep_supervision="fused",  # code: dsv, heads mixed by a 1×1×1 convolution
        ),
        preprocessing=PreprocessingConfig(
            spacing_mm=(2.0, 2.0, 2.0),  # paper
            hu_window=(-1024.0, 3071.0),  # the range of 12-bit CT: the code does not clip
            normalisation="volume",  # paper: scaled to zero mean and unit deviation
            crop_to_body=False,  # code
        ),
        augmentation=AugmentationConfig(
            flip_axes=(0, 1),  # code: both axes in the plane
            affine_probability=1.0,  # code
            rotation_degrees=(0.0, 0.0, 15.0),  # code: in the plane
            scale=(0.7, 1.3),  # code, where it is in the plane only; here along z as well
            **NO_INTENSITY_CHANGES,  # code
        ),
        training=TrainingConfig(
            patch_size=(160, 160, 96),  # code
            batch_size=2,  # code; paper: 2 to 4
            foreground_fraction=0.0,  # code: crops anywhere
            steps=1000 * EPOCH,  # code
            loss="dice",  # paper: soft Dice over all classes
            optimiser="adam",  # paper
            learning_rate=1e-4,  # code
            weight_decay=1e-6,  # code
            schedule="step",  # code
            step_size=250 * EPOCH,  # code
            step_gamma=0.5,  # code
            clip_gradient_norm=0.0,  # code: no clipping
        ),
    )


def pancreas_ct() -> Config:
    """Current practice for a small organ in CT, adapted by the plan to the data and the GPU.

    A wider network, Dice + cross-entropy, AdamW with a one-cycle rate, averaged weights, half of
    the patches centred on the organ, and strong augmentation. Every connected component of a label
    is kept. What was measured of it stands in `benchmarks/accuracy/README.md`.
    """
    return Config(
        network=NetworkConfig(
            channels=(32, 64, 128, 256, 320),  # nnU-Net: doubled from 32, at most 320
            gate_bias=3.0,  # paper: gates start open; value of the code's 2D gate, alpha 0.95
        ),
        augmentation=AugmentationConfig(
            flip_axes=(),  # ours, see benchmarks/accuracy/README.md; nnU-Net: all three
            elastic_probability=0.1,  # ours
        ),
        training=TrainingConfig(
            foreground_fraction=0.5,  # ours; nnU-Net: 0.33
            steps=25_000,  # ours; nnU-Net: 250,000 of SGD
            loss="dice_ce",  # nnU-Net
            optimiser="adamw",  # ours: good early, see benchmarks/accuracy/README.md
            learning_rate=1e-3,  # MedNeXt, Roy et al. 2023, which has 32 channels too
            weight_decay=1e-2,  # torch's own for AdamW
            schedule="one_cycle",  # ours
            clip_gradient_norm=12.0,  # nnU-Net
            validate_every=1000,  # ours
            ema_decay=0.999,  # ours
        ),
    )


def demo_cpu() -> Config:
    """A small network on a coarse grid, trained in a minute on two CPU cores. All numbers: ours."""
    return Config(
        network=NetworkConfig(channels=(8, 16, 32, 64, 128), strides=((2, 2, 2),) * 4),
        preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0), hu_window=(-160.0, 240.0)),
        augmentation=AugmentationConfig(
            flip_axes=(),
            affine_probability=0.5,
            rotation_degrees=(10.0, 10.0, 10.0),
            **NO_INTENSITY_CHANGES,
        ),
        training=TrainingConfig(
            patch_size=(48, 48, 48),
            batch_size=2,
            foreground_fraction=0.7,
            steps=160,
            validate_every=80,
            save_every=80,
            loss="dice_ce",
            optimiser="adamw",
            learning_rate=5e-3,
            weight_decay=1e-2,
            schedule="one_cycle",
        ),
        inference=InferenceConfig(mode="whole"),
    )


def _form(form: str, training: dict[str, Any], spacing_mm: Triple | None = None) -> Config:
    """A published form, trained by epochs with flips only. Numbers without a comment: page."""
    return Config(
        network=NetworkConfig.from_dict({"form": form}),
        preprocessing=PreprocessingConfig(
            spacing_mm=spacing_mm,
            hu_window=(-160.0, 240.0),  # ours
        ),
        augmentation=AugmentationConfig(
            flip_axes=(0, 1), affine_probability=0.0, **NO_INTENSITY_CHANGES
        ),
        training=TrainingConfig(
            **{
                "epochs": 100,  # ours
                "schedule": "step",
                "step_gamma": 0.1,  # torch's own for StepLR
                "clip_gradient_norm": 0.0,
                "optimiser": "adam",
                "learning_rate": 1e-4,
                "weight_decay": 5e-4,
                **training,
            }
        ),
    )


def _slices(form: str, **training: Any) -> Config:
    """A 2D form: 16 slices of 38 cm a batch. Sizes: ours; three channels: page."""
    sizes = {"patch_size": (256, 256, 8), "batch_size": 2, "epoch_patches": 8}
    return _form(form, spacing_mm=(1.5, 1.5, 3.0), training=sizes | training)


def attunet2d_nearest() -> Config:
    """`AttU_Net`: one sigmoid per class, kernels from N(0, 0.02)."""
    return _slices("2d_nearest", loss="bce", initialisation="normal")


def attunet2d_transposed() -> Config:
    """`AttU_Net` with transposed convolutions, for many classes: cross-entropy, SGD.

    Voxels that the manifest says are to be ignored are left out.
    """
    sgd = {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9}  # momentum: ours
    return _slices("2d_transposed", loss="ce", initialisation="kaiming", **sgd)


def attunet2d_unnormalised() -> Config:
    """The Keras network: one sigmoid per class, Glorot's kernels, its dropout of 0.2."""
    return _slices("2d_unnormalised", loss="bce", initialisation="xavier", weight_decay=0.0)


def attunet3d_same_resolution() -> Config:
    """The 3D network with `AttU_Net`'s gates; the plan chooses grid and patch."""
    return _form("3d_same_resolution", {"loss": "ce", "initialisation": "kaiming"})


def attunet3d_transposed() -> Config:
    """The small 3D network; its answer passes a ReLU, so a softmax compares the classes."""
    return _form("3d_transposed", {"loss": "ce"})


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        *(oktay2018, pancreas_ct, demo_cpu),
        *(attunet2d_nearest, attunet2d_transposed, attunet2d_unnormalised),
        *(attunet3d_same_resolution, attunet3d_transposed),
    )
}


def find_config(name: str | Path) -> Config:
    """Return the preset called `name`, or load that YAML or JSON file.

    Raises:
        SettingsError: There is neither, or a setting in the file is wrong.

    Example:
        >>> find_config("oktay2018").training.patch_size
        (160, 160, 96)
    """
    if str(name) in PRESETS:
        return PRESETS[str(name)]()
    if Path(name).is_file():
        return Config.load(Path(name))
    cure = suggestion(str(name), PRESETS)
    raise SettingsError(f"{name}: is neither a file nor a preset", value=name, cure=cure)
