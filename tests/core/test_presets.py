"""Presets: the paper's numbers, and where a configuration is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core import SettingsError
from attunet3d.core.config import Config, changed_settings
from attunet3d.core.presets import (
    PRESETS,
    attunet2d_nearest,
    attunet2d_transposed,
    attunet2d_unnormalised,
    attunet3d_same_resolution,
    attunet3d_transposed,
    demo_cpu,
    find_config,
    oktay2018,
    pancreas_ct,
)

# What each preset says; every other setting is the default, which is pinned below.
STILL = {
    f"augmentation.{name}_probability": 0
    for name in ("noise", "blur", "brightness", "contrast", "gamma", "low_resolution")
}
FORM = {
    "preprocessing.hu_window": (-160, 240),
    "augmentation.flip_axes": (0, 1),
    "augmentation.affine_probability": 0,
    **STILL,
    "training.epochs": 100,
    "training.optimiser": "adam",
    "training.learning_rate": 1e-4,
    "training.weight_decay": 5e-4,
    "training.schedule": "step",
    "training.step_gamma": 0.1,
    "training.clip_gradient_norm": 0,
}
SLICES = FORM | {
    "preprocessing.spacing_mm": (1.5, 1.5, 3),
    "training.patch_size": (256, 256, 8),
    "training.batch_size": 2,
    "training.epoch_patches": 8,
}
SETTINGS = {
    oktay2018: {
        "network.strides": ((2, 2, 2),) * 4,
        "preprocessing.spacing_mm": (2, 2, 2),
        "preprocessing.hu_window": (-1024, 3071),
        "preprocessing.normalisation": "volume",
        "preprocessing.crop_to_body": False,
        "augmentation.flip_axes": (0, 1),
        "augmentation.affine_probability": 1,
        "augmentation.rotation_degrees": (0, 0, 15),
        "augmentation.scale": (0.7, 1.3),
        **STILL,
        "training.patch_size": (160, 160, 96),
        "training.batch_size": 2,
        "training.foreground_fraction": 0,
        "training.steps": 31_000,  # 1000 epochs of 61 cases in batches of two
        "training.loss": "dice",
        "training.optimiser": "adam",
        "training.learning_rate": 1e-4,
        "training.weight_decay": 1e-6,
        "training.schedule": "step",
        "training.step_size": 7_750,  # 250 epochs
        "training.clip_gradient_norm": 0,
    },
    pancreas_ct: {
        "network.channels": (32, 64, 128, 256, 320),
        "network.gate_bias": 3,
        "augmentation.flip_axes": (),
        "augmentation.elastic_probability": 0.1,
        "training.steps": 25_000,
        "training.optimiser": "adamw",
        "training.learning_rate": 1e-3,
        "training.weight_decay": 1e-2,
        "training.schedule": "one_cycle",
        "training.validate_every": 1000,
        "training.ema_decay": 0.999,
    },
    demo_cpu: {
        "network.channels": (8, 16, 32, 64, 128),
        "network.strides": ((2, 2, 2),) * 4,
        "preprocessing.spacing_mm": (4, 4, 4),
        "preprocessing.hu_window": (-160, 240),
        "augmentation.flip_axes": (),
        "augmentation.affine_probability": 0.5,
        "augmentation.rotation_degrees": (10, 10, 10),
        **STILL,
        "training.patch_size": (48, 48, 48),
        "training.batch_size": 2,
        "training.foreground_fraction": 0.7,
        "training.steps": 160,
        "training.validate_every": 80,
        "training.save_every": 80,
        "training.optimiser": "adamw",
        "training.learning_rate": 5e-3,
        "training.weight_decay": 1e-2,
        "training.schedule": "one_cycle",
        "inference.mode": "whole",
    },
    attunet2d_nearest: SLICES
    | {
        "network.form": "2d_nearest",
        "training.loss": "bce",
        "training.initialisation": "normal",
    },
    attunet2d_transposed: {
        name: value for name, value in SLICES.items() if name != "training.optimiser"
    }
    | {
        "network.form": "2d_transposed",
        "training.loss": "ce",
        "training.initialisation": "kaiming",
        "training.learning_rate": 0.1,
        "training.momentum": 0.9,
    },
    attunet2d_unnormalised: SLICES
    | {
        "network.form": "2d_unnormalised",
        "training.loss": "bce",
        "training.initialisation": "xavier",
        "training.weight_decay": 0,
    },
    attunet3d_same_resolution: FORM
    | {
        "network.form": "3d_same_resolution",
        "training.loss": "ce",
        "training.initialisation": "kaiming",
    },
    attunet3d_transposed: FORM | {"network.form": "3d_transposed", "training.loss": "ce"},
}
DEFAULTS_THAT_PRESETS_REST_ON = {
    "network.form": "attention_unet",
    "network.slices": 3,
    "network.channels": (16, 32, 64, 128, 256),
    "network.gate": "double",
    "network.deep_supervision": "fused",
    "network.norm": "batch",
    "network.gate_bias": None,
    "training.seed": 0,
    "training.accumulation": 1,
    "training.foreground_fraction": 0.5,
    "training.epochs": 0,
    "training.step_epochs": 30,
    "training.loss": "dice_ce",
    "training.initialisation": "default",
    "training.optimiser": "sgd",
    "training.learning_rate": 1e-2,
    "training.momentum": 0.99,
    "training.weight_decay": 3e-5,
    "training.schedule": "polynomial",
    "training.step_gamma": 0.5,
    "training.clip_gradient_norm": 12,
    "training.ema_decay": 0,
    "inference.keep_largest": (),
}


@pytest.mark.parametrize("preset", SETTINGS, ids=lambda preset: preset.__name__)
def test_a_preset_says_these_numbers_and_no_others(preset: Callable[..., Any]) -> None:
    found = changed_settings(Config(), preset())
    assert {name: new for name, (_, new) in found.items()} == SETTINGS[preset]


def test_the_defaults_that_presets_rest_on_are_these() -> None:
    values = Config().by_name()
    assert {name: values[name] for name in DEFAULTS_THAT_PRESETS_REST_ON} == (
        DEFAULTS_THAT_PRESETS_REST_ON
    )


def test_every_preset_is_pinned() -> None:
    assert list(SETTINGS) == list(PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations_like_any_other(name: str, tmp_path: Path) -> None:
    config = find_config(name)
    assert config == PRESETS[name]()
    config.save(tmp_path / "config.json")
    assert find_config(tmp_path / "config.json") == config
    assert find_config(str(tmp_path / "config.json")) == config
    assert config.with_overrides(["training.steps=7"]).training.steps == 7


def test_files_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {steps: 3}")
    assert find_config(tmp_path / "mine.yaml") == Config().with_overrides(["training.steps=3"])
    (tmp_path / "mine.yaml").write_text("training: {stepps: 3}")
    with pytest.raises(SettingsError, match="steps"):
        find_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("oktay2019", "did you mean oktay2018"),
        ("pancreas-ct", "did you mean pancreas_ct"),
        ("x", "choose from oktay2018, pancreas_ct, demo_cpu, attunet2d_nearest"),
        ("none.yaml", "is neither a file nor a preset"),
    ],
)
def test_unknown_names(name: str, cure: str) -> None:
    with pytest.raises(SettingsError, match=cure):
        find_config(name)
