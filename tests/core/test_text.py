"""Text, JSON and YAML are read within bounds, and only as every reader understands them."""

import os

import pytest

from attunet3d.core import FileError
from attunet3d.core.text import parse_json, parse_yaml, read_json, read_text


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
def test_yaml_is_read_as_version_1_2_says(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "key 'a' comes twice"),
        ("{1: 2, 1: 3}", "key 1 comes twice"),
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
def test_yaml_that_settings_never_need_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_an_alias_that_would_stand_for_a_gigabyte_is_refused():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in ("ab", "bc", "cd", "de")]
    with pytest.raises(ValueError, match="aliases are not allowed"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "key 'a' comes twice"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        (r'"\ud800"', "surrogates not allowed"),
        (r'{"\ud800": 1}', "surrogates not allowed"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64"),
        ("9" * 5_000, "4300"),
        ("{", "Expecting"),
    ],
)
def test_json_that_readers_would_understand_differently_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_of_64_levels_is_read():
    assert parse_json("[" * 64 + "]" * 64) != []
    assert parse_json(b'{"a": {"b": [1, "\xc3\xa9"]}}') == {"a": {"b": [1, "é"]}}


def test_text_comes_without_its_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbftext")
    assert read_text(tmp_path / "a", 7) == "text"
    with pytest.raises(ValueError, match="larger than 6 bytes"):
        read_text(tmp_path / "a", 6)


def test_what_is_not_a_readable_file_is_refused_with_the_reason(tmp_path):
    (tmp_path / "large.json").write_text("[1, 2, 3]")
    (tmp_path / "latin1.json").write_bytes(b'"\xe9"')
    for name, reason in {
        "none.json": "No such file or directory",
        ".": "Is a directory",
        "large.json": "larger than 8 bytes",
        "latin1.json": "can't decode byte",
    }.items():
        with pytest.raises(FileError, match=f"cannot be read as JSON .*{reason}") as caught:
            read_json(tmp_path / name, 8)
        assert caught.value.path == tmp_path / name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(FileError, match="not a regular file"):
        read_json(tmp_path / "pipe.json")
