"""Settings with a name: the paper's, today's practice, and a demonstration's.

A preset is a configuration like any other: `--set` changes it, and what it leaves open (`None`)
the plan decides.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attunet3d.core.config import Config
from attunet3d.core.errors import SettingsError
from attunet3d.core.model_config import InferenceConfig, NetworkConfig, PreprocessingConfig
from attunet3d.core.training_config import AugmentationConfig, TrainingConfig

# The authors count epochs: 1000 of the 61 training cases of CT-82 in batches of two, the learning
# rate halved every 250. Here a step is an update of the weights.
_STEPS_AN_EPOCH = 31
_UNCHANGED_HU = (-1024.0, 3071.0)  # the range of 12-bit CT: nothing is clipped


def oktay2018() -> Config:
    """The paper's network and training, as its text and the authors' code have them.

    Text: 2 mm, Adam, 1e-4, patches of 160×160×96 voxels, z-scored scans, soft Dice. Code
    (ozan-oktay/Attention-Gated-Networks, the CT configuration): batch 2, in-plane flips and affine
    changes (±15°, 0.7 to 1.3), 1000 epochs, the rate halved every 250, weight decay 1e-6, heads
    fused, crops anywhere, no window on the HU, no clipping of gradients. Where the two differ
    (the code runs SGD) the text is followed. The zoom here is the same along z; the authors' is
    in the plane only.
    """
    return Config(
        network=NetworkConfig(strides=((2, 2, 2),) * 4),
        preprocessing=PreprocessingConfig(
            spacing_mm=(2.0, 2.0, 2.0),
            hu_window=_UNCHANGED_HU,
            normalisation="volume",
            crop_to_body=False,
        ),
        augmentation=replace(
            _no_augmentation(),
            flip_axes=(0, 1),
            affine_probability=1.0,
            rotation_degrees=(0.0, 0.0, 15.0),
            scale=(0.7, 1.3),
        ),
        training=TrainingConfig(
            patch_size=(160, 160, 96),
            batch_size=2,
            foreground_fraction=0.0,
            steps=1000 * _STEPS_AN_EPOCH,
            loss="dice",
            optimiser="adam",
            learning_rate=1e-4,
            weight_decay=1e-6,
            schedule="step",
            step_size=250 * _STEPS_AN_EPOCH,
            step_gamma=0.5,
            clip_gradient_norm=0.0,
        ),
    )


def pancreas_ct() -> Config:
    """What works best today for a small organ in CT; the plan fits it to the data and the GPU.

    A wider network with a head at every scale, Dice + cross-entropy, SGD with Nesterov momentum
    warmed up and brought down by a polynomial, an average of the weights, patches of which half
    hold the organ, and strong augmentation (the recipe of Isensee et al. 2021, nnU-Net). Gates
    start open, as the paper says they should.
    """
    return Config(
        network=NetworkConfig(
            channels=(32, 64, 128, 256, 320), deep_supervision="per-scale", gate_bias=3.0
        ),
        augmentation=AugmentationConfig(elastic_probability=0.1),
        training=TrainingConfig(
            steps=100_000,
            loss="dice_ce",
            optimiser="sgd",
            learning_rate=1e-2,
            momentum=0.99,
            weight_decay=3e-5,
            schedule="polynomial",
            warmup_steps=1000,
            validate_every=1000,
            ema_decay=0.999,
        ),
    )


def demo_cpu() -> Config:
    """A small network on a coarse grid: a minute's training on two CPU cores."""
    return Config(
        network=NetworkConfig(channels=(8, 16, 32, 64, 128), strides=((2, 2, 2),) * 4),
        preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0), hu_window=(-160.0, 240.0)),
        augmentation=replace(
            _no_augmentation(), affine_probability=0.5, rotation_degrees=(10.0, 10.0, 10.0)
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


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset for preset in (oktay2018, pancreas_ct, demo_cpu)
}


def find_config(name: str | Path) -> Config:
    """The preset of a name, or the configuration in a YAML or JSON file.

    Raises:
        SettingsError: There is neither.
        SettingsError: The file holds a wrong setting.

    Example:
        >>> find_config("oktay2018").training.patch_size
        (160, 160, 96)
    """
    if str(name) in PRESETS:
        return PRESETS[str(name)]()
    if Path(name).is_file():
        return Config.load(Path(name))
    close = difflib.get_close_matches(str(name), PRESETS, n=1)
    cure = f"did you mean {close[0]}?" if close else f"there are {', '.join(PRESETS)}"
    raise SettingsError(f"{name}: is neither a file nor a preset; {cure}")


def _no_augmentation() -> AugmentationConfig:
    return AugmentationConfig(
        flip_axes=(),
        affine_probability=0.0,
        noise_probability=0.0,
        blur_probability=0.0,
        brightness_probability=0.0,
        contrast_probability=0.0,
        gamma_probability=0.0,
        low_resolution_probability=0.0,
    )
