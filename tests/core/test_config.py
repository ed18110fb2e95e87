"""A configuration is right at birth, reads back as it was saved, and says what is wrong with it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from attunet3d.core import SettingsError
from attunet3d.core.config import Config, changed_settings, json_schema
from attunet3d.core.errors import UserError
from attunet3d.core.model_config import (
    InferenceConfig,
    NetworkConfig,
    PreprocessingConfig,
    label_values,
)
from attunet3d.core.presets import PRESETS, find_config
from attunet3d.core.training_config import AugmentationConfig, TrainingConfig

SECTIONS = {
    "network": NetworkConfig,
    "preprocessing": PreprocessingConfig,
    "augmentation": AugmentationConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}
MAY_BE_NONE = {
    "network.strides",
    "network.blocks",
    "network.width",
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
SCHEMA = json_schema()["$defs"]
FIELDS = [
    f"{section}.{field.name}"
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
]


def field_schema(name: str) -> dict[str, Any]:
    """The schema of a field; of a field that may be null, that of its other type."""
    section, field = name.split(".")
    found = SCHEMA[SECTIONS[section].__name__]["properties"][field]
    result: dict[str, Any] = found | next(
        (part for part in found.get("anyOf", []) if part["type"] != "null"), {}
    )
    return result


NUMBERS = [name for name in FIELDS if field_schema(name).get("type") in ("integer", "number")]


def build(name: str, value: Any) -> Config:
    section, field = name.split(".")
    return Config.from_dict({section: {field: value}})


def value_of(config: Config, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def refusal(*arguments: Any, call: Callable[..., Any] = build) -> str:
    with pytest.raises(SettingsError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, UserError)
    return message


def refuses(name: str, value: str | float | None) -> bool:
    try:
        build(name, value)
    except SettingsError as error:
        return str(error).startswith(name) and "got " in str(error)
    return False


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("network.channels", [16], "a list [a, b, …] of length >= 2, got [16]"),
        ("network.channels[1]", [16, 0], "a whole number >= 1, got [16, 0]"),
        ("network.dropout", 1, "a number < 1.0, got 1"),
        (
            "network.strides",
            [[2, 2, 2]],
            "4 triples, one between neighbouring levels, got [(2, 2, 2)]",
        ),
        ("network.strides[3][2]", [[2, 2, 2]] * 3 + [[2, 2, 0]], "a whole number >= 1, got [[2, "),
        ("network.gate", "triple", "one of double, single, none, got 'triple'"),
        ("network.norm", "layer", "one of batch, instance, group, got 'layer'"),
        ("network.deep_supervision", "all", "one of fused, per-scale, none"),
        ("preprocessing.spacing_mm[2]", [1, 1, 0], "a number >= 0.01, got [1, 1, 0]"),
        ("preprocessing.hu_window", [240, -160], "the lowest, then the highest HU, got [240.0, -"),
        ("preprocessing.hu_window", [5, 5], "the lowest, then the highest HU"),
        ("preprocessing.std_hu", 0, "a number > 0.0, got 0"),
        ("augmentation.flip_axes[1]", [0, 3], "a whole number <= 2, got [0, 3]"),
        ("augmentation.flip_axes", [1, 1], "different axes, got [1, 1]"),
        ("augmentation.scale", [1.4, 0.7], "the smallest, then the largest zoom, got [1.4, 0.7]"),
        ("augmentation.elastic_mm", -3, "a number >= 0.0, got -3"),
        ("training.steps", 0, "a whole number >= 1, got 0"),
        ("training.momentum", -5, "a number >= 0.0, got -5"),
        ("training.step_gamma", -1, "a number > 0.0, got -1"),
        ("training.tversky[0]", [-1, -2], "a number >= 0.0, got [-1, -2]"),
        ("training.tversky", [0, 0], "two weights, at least one of them above 0, got [0.0, 0.0]"),
        ("training.focal_gamma", -1, "a number >= 0.0, got -1"),
        ("training.patch_size[2]", [96, 96, 0], "a whole number >= 1, got [96, 96, 0]"),
        ("inference.max_voxels", -3, "a whole number >= 1, got -3"),
        ("inference.mode", "slide", "one of auto, window, whole, got 'slide'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_rule_and_value(
    name: str, value: Any, rule: str
) -> None:
    message = refusal(name.partition("[")[0], value)
    assert message.startswith(f"{name} must be {rule}")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_smallest_and_a_largest_value(name: str) -> None:
    found = field_schema(name)
    low, high = (
        found.get(f"{kind}imum", found.get(f"exclusive{kind.capitalize()}imum"))
        for kind in ("min", "max")
    )
    assert low is not None
    assert high is not None
    beyond = [low - 1, high + 1, float("nan"), float("inf"), -float("inf"), 10**400, None, "text"]
    beyond += [found[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in found]
    if name in MAY_BE_NONE:
        beyond.remove(None)
    assert [value for value in beyond if not refuses(name, value)] == []
    for key in ("minimum", "maximum"):
        if key in found and name != "training.ignore_index":  # which needs another loss
            assert not refuses(name, found[key])


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("training.steps", 1.5, "a whole number, got 1.5"),
        ("training.steps", "many", "a whole number, got 'many'"),
        ("training.steps", True, "a whole number, got True"),
        ("training.steps", [10], "a whole number, got [10]"),
        ("training.steps", float("inf"), "a whole number, got inf"),
        ("training.steps", float("nan"), "a whole number, got nan"),
        ("training.learning_rate", 10**400, "a number in range, got 1000"),
        ("training.learning_rate", "fast", "a number, got 'fast'"),
        ("training.learning_rate", True, "a number, got True"),
        ("training.learning_rate", "nan", "a number, got 'nan'"),
        ("training.learning_rate", {}, "a number, got {}"),
        ("network.align_corners", 1, "true or false, got 1"),
        ("network.align_corners", "yes", "true or false, got 'yes'"),
        ("network.channels", 16, "a list [a, b, …], got 16"),
        ("network.channels", "16, 32", "a list [a, b, …], got '16"),
        ("network.channels[1]", [16, "x"], "a whole number, got [16, 'x']"),
        ("network.strides[0]", [[2, 2]] * 4, "a list [a, b, …] of length 3, got [[2, 2], "),
        ("training.patch_size", [96, 96], "a list [a, b, …] of length 3, got [96, 96]"),
        ("preprocessing.hu_window", [1, 2, 3], "a list [a, b, …] of length 2, got "),
        ("training.loss", None, "one of dice, dice_ce"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, rule: str) -> None:
    message = refusal(name.partition("[")[0], value)
    assert message.startswith(f"{name} must be {rule}")


@pytest.mark.parametrize("value", [[], {}, [["dice"]]])
def test_a_choice_that_is_a_container_is_refused(value: list[list[str]] | dict[Any, Any]) -> None:
    assert refusal("training.loss", value).startswith("training.loss must be one of dice, ")


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_allowed_where_the_plan_decides_and_nowhere_else(name: str) -> None:
    if name in MAY_BE_NONE:
        assert value_of(build(name, None), name) is None
    else:
        assert refusal(name, None).startswith(f"{name} must be ")


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_is_a_valid_value(name: str) -> None:
    default = value_of(Config(), name)
    assert value_of(build(name, default), name) == default


@pytest.mark.parametrize("cls", [Config, *SECTIONS.values()])
def test_configurations_are_frozen_and_take_names_only(cls: Any) -> None:
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, None)
    with pytest.raises(TypeError):
        cls(None)


def test_a_configuration_built_in_python_is_checked_as_well() -> None:
    with pytest.raises(SettingsError, match=r"training\.steps must be a whole number >= 1, got 0"):
        TrainingConfig(steps=0)


def test_ignore_index_needs_a_loss_that_knows_it() -> None:
    assert TrainingConfig(ignore_index=255, loss="ce").ignore_index == 255
    assert TrainingConfig(ignore_index=255, loss="dice_ce").ignore_index == 255
    assert TrainingConfig(ignore_index=255, loss="bce").ignore_index == 255
    for loss in ("dice", "focal", "tversky"):
        with pytest.raises(SettingsError, match='"ce", "dice_ce" or "bce" with ignore_index'):
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
        ({"inference": {"xyz": 1}}, "unknown setting inference.xyz; choose from mode, window"),
        ({"network": {1: 2}}, "unknown setting network.1; choose from form, slices"),
        ({"network": [1]}, "network must be a mapping of settings by name, got [1]"),
        ({"network": None}, "network must be a mapping of settings by name, got None"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(
    values: dict[str, Any], message: str
) -> None:
    assert refusal(values, call=Config.from_dict).startswith(message)


# Files.
def test_what_is_saved_is_loaded_again_whatever_it_holds(tmp_path: Path) -> None:
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
            "training": {"seed": 3, "patch_size": [48, 48, 32], "learning_rate": 1e-4},
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


def test_a_yaml_file_may_write_powers_of_ten_as_people_do(tmp_path: Path) -> None:
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
        ("training: {steps: 0}", "training.steps must be a whole number >= 1, got 0"),
        ("training: {stepz: 1}", "unknown setting training.stepz; did you mean training.steps?"),
        ("[1, 2]", "a configuration must be a mapping of settings by name, got [1, 2]"),
        ("", "a configuration must be a mapping of settings by name, got None"),
        ("oktay2018", "a configuration must be a mapping of settings by name, got 'oktay"),
        ("a: [", "cannot be read as a configuration"),
        ("a: b: c", "cannot be read as a configuration"),
        ("\x00", "cannot be read as a configuration"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert refusal(path, call=Config.load).startswith(f"{path}: {message}")


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml", call=Config.load)
    assert "cannot be read as a configuration" in refusal(tmp_path, call=Config.load)
    (tmp_path / "scan.nii.gz").write_bytes(b"\x1f\x8b\xff\xfe")
    assert "cannot be read as a configuration" in refusal(
        tmp_path / "scan.nii.gz", call=Config.load
    )


def test_a_file_far_larger_than_settings_are_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text('{"training": {}}' + " " * 100_000)
    assert "larger than 100000 bytes" in refusal(path, call=Config.load)


def test_a_deeply_nested_file_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 20_000)
    assert "cannot be read as a configuration" in refusal(path, call=Config.load)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_tag_runs_no_code(tmp_path: Path, tag: str) -> None:
    path, trace = tmp_path / "evil.yaml", tmp_path / "trace"
    path.write_text("training: " + tag.format(trace))
    assert "cannot be read as a configuration" in refusal(path, call=Config.load)
    setting = "training.steps=" + tag.format(trace)
    with pytest.raises(SettingsError):
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
        ("training.patch_size=96,96,64", (96, 96, 64)),
        ("training.steps=1e3", 1000),
        ("training.seed=010", 10),
        ("inference.keep_largest=[pancreas, 2]", ("pancreas", 2)),
        ("inference.keep_largest=pancreas,", ("pancreas",)),
        ("training.patch_size=null", None),
        ("training.patch_size=", None),
        ("augmentation.flip_axes=[]", ()),
        ("inference.mirror=true", True),
    ],
)
def test_an_override_sets_its_value_and_nothing_else(setting: str, value: Any) -> None:
    config = Config().with_overrides([setting])
    name = setting.partition("=")[0].strip()
    assert value_of(config, name) == value
    others = [field for field in FIELDS if field != name]
    assert [value_of(config, field) for field in others] == [
        value_of(Config(), field) for field in others
    ]


def test_overrides_are_applied_together_and_the_last_of_a_name_wins() -> None:
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
        (
            "training.steps",
            "--set training.steps: is not section.name=value; write it as",
        ),
        ("steps=10", "--set steps=10: is not section.name=value"),
        ("", "--set : is not section.name=value"),
        ("trainin.steps=10", "unknown setting trainin; did you mean training?"),
        ("training.step=10", "unknown setting training.step; did you mean training.steps?"),
        ("training.steps=1:00", "training.steps must be a whole number, got '1:00'"),
        ("inference.mirror=yes", "inference.mirror must be true or false, got 'yes'"),
        ("training.steps=ten", "training.steps must be a whole number, got 'ten'"),
        ("training.steps=", "training.steps must be a whole number, got None"),
        (
            "training.steps=[1",
            "--set training.steps=[1: the value cannot be read; write a",
        ),
        ("training.steps=" + "[" * 9999, "write a number, a name or a list such as [1, 2, 3]"),
    ],
)
def test_a_wrong_override_is_refused(setting: str, message: str) -> None:
    assert message in refusal([setting], call=Config().with_overrides)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_its_one_sentence_which_the_schema_shows(name: str) -> None:
    sentence = field_schema(name)["description"]
    assert sentence.endswith(".")
    assert sentence[0].isupper()


def test_the_schema_accepts_every_preset_and_refuses_what_the_configuration_refuses() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for name in PRESETS:
        values = json.loads(json.dumps(find_config(name).to_dict()))
        assert not list(validator.iter_errors(values))
    wrong = {"training": {"steps": 0, "stepz": 1}, "network": {"gate": "triple"}, "x": {}}
    assert len(list(validator.iter_errors(wrong))) == 4


# Values by name, and what changed.
def test_values_are_replaced_by_name_without_becoming_text() -> None:
    config = Config().replaced({"training.seed": 7, "training.patch_size": (96, 96, 64)})
    assert (config.training.seed, config.training.patch_size) == (7, (96, 96, 64))
    assert config.by_name()["training.seed"] == 7
    assert config.replaced(Config().by_name()) == Config()
    with pytest.raises(SettingsError, match=r"did you mean training\.seed"):
        Config().replaced({"training.sed": 1})


def test_changed_settings_are_those_that_differ_also_where_one_is_none() -> None:
    old = Config().replaced({"network.gate_bias": 3.0})
    assert changed_settings(old, old) == {}
    new = old.replaced({"network.gate_bias": None, "training.steps": 5})
    assert changed_settings(old, new) == {
        "network.gate_bias": (3.0, None),
        "training.steps": (50_000, 5),
    }


def test_configurations_of_equal_settings_are_equal_and_hash_alike() -> None:
    assert len({Config(), Config.from_dict({}), Config().replaced({"training.seed": 1})}) == 2


# A patch and the network's strides.
@pytest.mark.parametrize(
    ("patch", "cure"),
    [
        ("50,50,50", "got [50, 50, 50]; the nearest are [48, 48, 48] and [64, 64, 52]"),
        ("48,48,3", "got [48, 48, 3]; the nearest are [48, 48, 4] and [48, 48, 4]"),
    ],
)
def test_a_patch_that_the_strides_do_not_divide_is_refused_with_the_nearest_sizes(
    patch: str, cure: str
) -> None:
    strides = "network.strides=[[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]"
    Config().with_overrides([strides, "training.patch_size=48,48,4"])
    message = refusal([strides, f"training.patch_size={patch}"], call=Config().with_overrides)
    assert message.startswith("training.patch_size must be a multiple of [16, 16, 4], the product")
    assert message.endswith(cure)


def test_an_error_carries_its_value_its_cure_and_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training: {stepz: 1}")
    with pytest.raises(SettingsError) as caught:
        Config.load(tmp_path / "a.yaml")
    assert caught.value.path == tmp_path / "a.yaml"
    assert caught.value.value == "stepz"
    assert caught.value.cure == "did you mean training.steps?"


def test_labels_of_keep_largest_are_found_by_value_and_by_name() -> None:
    labels = {0: "background", 1: "pancreas", 3: "tumour"}
    assert label_values(("tumour", 1), labels) == (3, 1)
    for wrong in (2, 0, "background"):
        with pytest.raises(SettingsError, match=r"choose from 1, 3, pancreas, tumour"):
            label_values((wrong,), labels)
    with pytest.raises(SettingsError, match="did you mean pancreas"):
        label_values(("pancrea",), labels)
