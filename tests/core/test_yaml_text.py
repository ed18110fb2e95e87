"""YAML is read as version 1.2 says, within bounds."""

from typing import Any

import pytest

from attunet3d.core.yaml_text import parse_yaml


# YAML 1.2, core schema (https://yaml.org/spec/1.2.2, chapter 10.3).
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("+3", 3),
        ("1:00", "1:00"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        (".5", 0.5),
        ("2.", 2.0),
        (".nan", ".nan"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ('"010"', "010"),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("[1, x, [2.5]]", [1, "x", [2.5]]),
        ('{"a": [1, null, true]}', {"a": [1, None, True]}),
    ],
)
def test_yaml_is_read_as_version_1_2_says(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("{1: 2, 1: 3}", "duplicate key 1"),
        ("[[1]: 2]", "unhashable key"),
        ("a: &x 1", "tags, anchors and aliases"),
        ("!!int 3", "tags, anchors and aliases"),
        ("! text", "tags, anchors and aliases"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 50_000, "nested deeper than 64"),
        ("9" * 5_000, "4300"),
        ("a: [", "expected"),
    ],
)
def test_yaml_that_settings_never_need_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_an_alias_that_would_stand_for_a_gigabyte_is_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in ("ab", "bc", "cd", "de")]
    with pytest.raises(ValueError, match="aliases are not allowed"):
        parse_yaml("\n".join(lines))
