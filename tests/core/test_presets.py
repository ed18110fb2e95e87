"""Presets: the paper's numbers, and where a configuration is found."""

import pytest

from attunet3d.core import SettingsError
from attunet3d.core.config import Config
from attunet3d.core.presets import PRESETS, demo_cpu, find_config, oktay2018, pancreas_ct


def test_numbers_of_the_paper_and_its_code():
    config = oktay2018()
    network, training = config.network, config.training
    assert network.channels == (16, 32, 64, 128, 256)
    assert (network.gate, network.deep_supervision, network.norm) == ("double", "fused", "batch")
    assert network.strides == ((2, 2, 2),) * 4
    assert config.preprocessing.spacing_mm == (2, 2, 2)
    assert config.preprocessing.normalisation == "volume"
    assert training.patch_size == (160, 160, 96)
    assert (training.batch_size, training.loss, training.optimiser) == (2, "dice", "adam")
    assert (training.learning_rate, training.weight_decay) == (1e-4, 1e-6)
    assert (training.schedule, training.step_gamma) == ("step", 0.5)
    assert training.steps == 4 * training.step_size  # 1000 epochs, halved every 250
    assert training.step_size == 250 * 31  # 61 cases in batches of two


def test_augmentation_of_the_papers_code():
    augmentation = oktay2018().augmentation
    assert augmentation.flip_axes == (0, 1)
    assert augmentation.affine_probability == 1
    assert augmentation.rotation_degrees == (0, 0, 15)
    assert augmentation.scale == (0.7, 1.3)
    rest = {
        name: value
        for name, value in vars(augmentation).items()
        if name.endswith("_probability") and name != "affine_probability"
    }
    assert set(rest.values()) == {0}


def test_todays_practice_leaves_the_data_to_the_plan():
    config = pancreas_ct()
    assert config.preprocessing.spacing_mm is None
    assert config.preprocessing.hu_window is None
    assert config.training.patch_size is None
    assert config.training.batch_size is None
    assert config.network.deep_supervision == "per-scale"
    assert config.training.loss == "dice_ce"
    assert config.training.ema_decay > 0
    assert config.training.warmup_steps > 0
    assert config.training.schedule in ("polynomial", "cosine")


def test_demonstration_is_small():
    config = demo_cpu()
    assert config.network.channels == (8, 16, 32, 64, 128)
    assert config.preprocessing.spacing_mm == (4, 4, 4)
    assert config.training.patch_size == (48, 48, 48)
    assert config.training.steps % config.training.validate_every == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations_like_any_other(name, tmp_path):
    config = find_config(name)
    assert config == PRESETS[name]()
    config.save(tmp_path / "config.json")
    assert find_config(tmp_path / "config.json") == config
    assert find_config(str(tmp_path / "config.json")) == config
    assert config.with_overrides(["training.steps=7"]).training.steps == 7


def test_files_of_a_user(tmp_path):
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
        ("x", "there are oktay2018, pancreas_ct, demo_cpu"),
        ("none.yaml", "is neither a file nor a preset"),
    ],
)
def test_unknown_names(name, cure):
    with pytest.raises(SettingsError, match=cure):
        find_config(name)
