"""A configuration is right at birth, reads back as it was saved, and says what is wrong with it."""

import dataclasses
import json

import pytest
import yaml

from attunet3d.core import SettingsError
from attunet3d.core.config import Config
from attunet3d.core.errors import UserError
from attunet3d.core.model_settings import InferenceConfig, NetworkConfig, PreprocessingConfig
from attunet3d.core.training_settings import AugmentationConfig, TrainingConfig

SECTIONS = {
    "network": NetworkConfig,
    "preprocessing": PreprocessingConfig,
    "augmentation": AugmentationConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}
MAY_BE_NONE = {
    "network.strides",
    "network.gate_bias",
    "preprocessing.spacing_mm",
    "preprocessing.hu_window",
    "preprocessing.mean_hu",
    "preprocessing.std_hu",
    "training.patch_size",
    "training.batch_size",
    "training.ignore_index",
    "inference.window",
}
FIELDS = [
    f"{section}.{field.name}"
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
]


def build(name, value):
    section, field = name.split(".")
    return Config.from_dict({section: {field: value}})


def value_of(config, name):
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def refusal(*arguments, call=build):
    with pytest.raises(SettingsError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, UserError)
    return message


# What is out of range: the name, the rule and the value are in the message.
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("network.channels", [16], "at least two levels, got (16,)"),
        ("network.channels", [], "at least two levels, got ()"),
        ("network.channels", [16, 0], "positive, got (16, 0)"),
        ("network.dropout", 1, "in [0, 1), got 1.0"),
        ("network.dropout", -0.1, "in [0, 1), got -0.1"),
        ("network.strides", [[2, 2, 2]], "4 triples of positive factors, one between two levels"),
        ("network.strides", [[2, 2, 0]] * 4, "4 triples of positive factors"),
        ("network.gate", "triple", "one of double, single, none, got 'triple'"),
        ("network.norm", "layer", "one of batch, instance, group, got 'layer'"),
        ("network.deep_supervision", "all", "one of fused, per-scale, none"),
        ("preprocessing.spacing_mm", [1, 1, 0], "positive millimetres, got (1.0, 1.0, 0.0)"),
        ("preprocessing.hu_window", [240, -160], "lowest, then highest HU, got (240.0, -160.0)"),
        ("preprocessing.hu_window", [5, 5], "lowest, then highest HU"),
        ("preprocessing.std_hu", 0, "positive, got 0.0"),
        ("augmentation.flip_axes", [0, 3], "of 0, 1, 2, got (0, 3)"),
        ("augmentation.scale", [1.4, 0.7], "positive, in order, got (1.4, 0.7)"),
        ("augmentation.scale", [0, 1], "positive, in order"),
        ("augmentation.noise_probability", 1.5, "in [0, 1], got 1.5"),
        ("augmentation.elastic_probability", -0.1, "in [0, 1]"),
        ("training.steps", 0, "positive, got 0"),
        ("training.accumulation", 0, "positive"),
        ("training.validate_every", 0, "positive"),
        ("training.save_every", -1, "positive"),
        ("training.step_size", 0, "positive"),
        ("training.learning_rate", 0, "positive, got 0.0"),
        ("training.warmup_steps", -1, "0 or more, got -1"),
        ("training.early_stop", -1, "0 or more"),
        ("training.workers", -1, "0 to 64"),
        ("training.clip_gradient_norm", -1, "0 or more"),
        ("training.weight_decay", -1e-5, "0 or more"),
        ("training.patch_size", [96, 96, 0], "positive, got (96, 96, 0)"),
        ("training.batch_size", 0, "positive, got 0"),
        ("training.foreground_fraction", 1.1, "in [0, 1], got 1.1"),
        ("training.ema_decay", 1, "in [0, 1), got 1.0"),
        ("inference.overlap", 1, "in [0, 1), got 1.0"),
        ("inference.window_batch", 0, "positive, got 0"),
        ("inference.window", [0, 96, 96], "positive, got (0, 96, 96)"),
        ("inference.mode", "slide", "one of window, whole, got 'slide'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_rule_and_value(name, value, rule):
    message = refusal(name, value)
    assert message.startswith(f"{name} must be ")
    assert rule in message


# What is of another type.
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("training.steps", 1.5, "a whole number, got 1.5"),
        ("training.steps", "many", "a whole number, got 'many'"),
        ("training.steps", True, "a whole number, got True"),
        ("training.steps", [10], "a whole number, got [10]"),
        ("training.steps", float("inf"), "a whole number, got inf"),
        ("training.steps", float("nan"), "a whole number, got nan"),
        ("training.learning_rate", 10**400, "a number, got 1000"),
        ("training.learning_rate", "fast", "a number, got 'fast'"),
        ("training.learning_rate", True, "a number, got True"),
        ("training.learning_rate", float("nan"), "a number, got nan"),
        ("training.learning_rate", float("inf"), "a number, got inf"),
        ("training.learning_rate", "nan", "a number, got nan"),
        ("training.learning_rate", {}, "a number, got {}"),
        ("network.align_corners", 1, "a bool, got 1"),
        ("network.align_corners", "yes", "a bool, got 'yes'"),
        ("network.channels", 16, "a list such as [1, 2, 3], got 16"),
        ("network.channels", "16, 32", "a list such as [1, 2, 3]"),
        ("network.channels", [16, "x"], "a whole number, got 'x'"),
        ("network.strides", [[2, 2]] * 4, "a list of 3, got [2, 2]"),
        ("training.patch_size", [96, 96], "a list of 3, got [96, 96]"),
        ("preprocessing.hu_window", [1, 2, 3], "a list of 2"),
        ("training.loss", None, "one of dice, dice_ce"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, rule):
    message = refusal(name, value)
    assert message.startswith(f"{name} must be ")
    assert rule in message


@pytest.mark.parametrize("value", [[], {}, [["dice"]]])
def test_a_choice_that_is_a_container_is_refused(value):
    assert refusal("training.loss", value).startswith("training.loss must be one of dice, ")


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_allowed_where_the_plan_decides_and_nowhere_else(name):
    if name in MAY_BE_NONE:
        assert value_of(build(name, None), name) is None
    else:
        assert refusal(name, None).startswith(f"{name} must be ")


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_is_a_valid_value(name):
    default = value_of(Config(), name)
    assert value_of(build(name, default), name) == default


@pytest.mark.parametrize("cls", [Config, *SECTIONS.values()])
def test_configurations_are_frozen_and_take_names_only(cls):
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, None)
    with pytest.raises(TypeError):
        cls(None)


def test_a_configuration_built_in_python_is_checked_as_well():
    with pytest.raises(SettingsError, match=r"training\.steps must be positive, got 0"):
        TrainingConfig(steps=0)


def test_ignore_index_needs_a_loss_that_knows_it():
    assert TrainingConfig(ignore_index=255, loss="ce").ignore_index == 255
    assert TrainingConfig(ignore_index=255, loss="dice_ce").ignore_index == 255
    for loss in ("dice", "bce", "focal", "tversky"):
        with pytest.raises(SettingsError, match='"ce" or "dice_ce" with ignore_index'):
            TrainingConfig(ignore_index=255, loss=loss)


# Unknown names.
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainig": {}}, "unknown setting trainig; did you mean training?"),
        (
            {"training": {"learning_rat": 1}},
            "unknown setting training.learning_rat; did you mean training.learning_rate?",
        ),
        ({"inference": {"xyz": 1}}, "unknown setting inference.xyz; there are mode, window"),
        ({"network": {1: 2}}, "unknown setting network.1; there are channels"),
        ({"network": [1]}, "network must hold settings by name, got [1]"),
        ({"network": None}, "network must hold settings by name, got None"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(values, message):
    assert refusal(values, call=Config.from_dict).startswith(message)


# Files.
def test_what_is_saved_is_loaded_again_whatever_it_holds(tmp_path):
    config = Config.from_dict(
        {
            "network": {
                "channels": [8, 16],
                "strides": [[2, 2, 1]],
                "gate": "none",
                "gate_bias": 3,
            },
            "preprocessing": {"spacing_mm": [1, 1.5, 2], "hu_window": [-160, 240], "mean_hu": 0.1},
            "augmentation": {"flip_axes": [], "scale": [1, 1]},
            "training": {"seed": -3, "patch_size": [48, 48, 32], "learning_rate": 1e-4},
            "inference": {"window": None, "mirror": True},
        }
    )
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config
    assert (
        json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["training"][
            "learning_rate"
        ]
        == 1e-4
    )
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({}) == Config()


def test_a_yaml_file_may_write_powers_of_ten_as_people_do(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "training:\n  learning_rate: 1e-4\n  weight_decay: 3E-5\n  patch_size: [96, 96, 64]\n"
    )
    training = Config.load(path).training
    assert training.learning_rate == 1e-4
    assert training.weight_decay == 3e-5
    assert training.patch_size == (96, 96, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 0}", "training.steps must be positive, got 0"),
        ("training: {stepz: 1}", "unknown setting training.stepz; did you mean training.steps?"),
        ("[1, 2]", "must hold settings by name, got list"),
        ("", "must hold settings by name, got NoneType"),
        ("oktay2018", "must hold settings by name, got str"),
        ("a: [", "no configuration can be read here"),
        ("a: b: c", "no configuration can be read here"),
        ("\x00", "no configuration can be read here"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert refusal(path, call=Config.load).startswith(f"{path}: {message}")


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.yaml", call=Config.load)
    assert "no configuration can be read here" in refusal(tmp_path, call=Config.load)
    (tmp_path / "scan.nii.gz").write_bytes(b"\x1f\x8b\xff\xfe")
    assert "no configuration can be read here" in refusal(
        tmp_path / "scan.nii.gz", call=Config.load
    )


def test_a_file_far_larger_than_settings_are_is_not_even_read(tmp_path):
    path = tmp_path / "large.json"
    path.write_text('{"training": {}}' + " " * 100_000)
    assert "larger than 100000 bytes" in refusal(path, call=Config.load)


def test_a_deeply_nested_file_is_refused_and_not_a_crash(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 20_000)
    assert "no configuration can be read here" in refusal(path, call=Config.load)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_tag_runs_no_code(tmp_path, tag):
    path, trace = tmp_path / "evil.yaml", tmp_path / "trace"
    path.write_text("training: " + tag.format(trace))
    assert "no configuration can be read here" in refusal(path, call=Config.load)
    setting = "training.steps=" + tag.format(trace)
    with pytest.raises((SettingsError, yaml.YAMLError)):
        Config().with_overrides([setting])
    assert not trace.exists()


# Overrides.
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.steps=10", 10),
        (" training.steps = 10 ", 10),
        ("training.learning_rate=1e-4", 1e-4),
        ("network.gate=single", "single"),
        ("network.gate=none", "none"),
        ("network.channels=[8, 16, 32]", (8, 16, 32)),
        ("training.patch_size=[96,96,64]", (96, 96, 64)),
        ("training.patch_size=null", None),
        ("training.patch_size=", None),
        ("augmentation.flip_axes=[]", ()),
        ("inference.mirror=true", True),
    ],
)
def test_an_override_sets_its_value_and_nothing_else(setting, value):
    config = Config().with_overrides([setting])
    name = setting.partition("=")[0].strip()
    assert value_of(config, name) == value
    others = [field for field in FIELDS if field != name]
    assert [value_of(config, field) for field in others] == [
        value_of(Config(), field) for field in others
    ]


def test_overrides_are_applied_together_and_the_last_of_a_name_wins():
    start = Config.from_dict({"preprocessing": {"hu_window": [-100, 240]}})
    config = start.with_overrides(
        ["training.ignore_index=255", "training.loss=focal", "training.loss=ce"]
    )
    assert (config.training.ignore_index, config.training.loss) == (255, "ce")
    assert config.preprocessing.hu_window == (-100, 240)
    assert start.training.ignore_index is None
    assert start.with_overrides([]) == start


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.steps", "--set training.steps: write section.name=value, as training.steps=1"),
        ("steps=10", "--set steps=10: write section.name=value"),
        ("", "--set : write section.name=value"),
        ("trainin.steps=10", "unknown setting trainin; did you mean training?"),
        ("training.step=10", "unknown setting training.step; did you mean training.steps?"),
        ("training.steps=ten", "training.steps must be a whole number, got 'ten'"),
        ("training.steps=", "training.steps must be a whole number, got None"),
        ("training.steps=[1", "--set training.steps=[1: write a number, a name or a list such as"),
        ("training.steps=" + "[" * 9999, "write a number, a name or a list such as [1, 2, 3]"),
    ],
)
def test_a_wrong_override_is_refused(setting, message):
    assert message in refusal([setting], call=Config().with_overrides)


@pytest.mark.parametrize("cls", SECTIONS.values())
def test_every_setting_has_its_one_sentence(cls):
    """The text under each field is its documentation; a field without one cannot be understood."""
    import inspect

    lines = [line.strip() for line in inspect.getsource(cls).splitlines()]
    for field in dataclasses.fields(cls):
        [row] = [n for n, line in enumerate(lines) if line.startswith(f"{field.name}:")]
        sentence = lines[row + 1]
        assert sentence.startswith('"""'), field.name
        assert sentence.endswith('."""'), field.name
