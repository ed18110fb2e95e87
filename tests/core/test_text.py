"""Text and JSON are read within bounds, and only as every reader understands them."""

import os
from pathlib import Path

import pytest

from attunet3d.core import FileError
from attunet3d.core.text import parse_json, read_json, read_text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
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
def test_json_that_readers_would_understand_differently_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_of_64_levels_is_read() -> None:
    assert parse_json("[" * 64 + "]" * 64) != []
    assert parse_json(b'{"a": {"b": [1, "\xc3\xa9"]}}') == {"a": {"b": [1, "é"]}}


def test_text_comes_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbftext")
    assert read_text(tmp_path / "a", 7) == "text"
    with pytest.raises(ValueError, match="larger than 6 bytes"):
        read_text(tmp_path / "a", 6)


def test_what_is_not_a_readable_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text("[1, 2, 3]")
    (tmp_path / "latin1.json").write_bytes(b'"\xe9"')
    for name, reason in {
        "none.json": "No such file or directory",
        ".": "Is a directory",
        "large.json": "larger than 8 bytes",
        "latin1.json": "can't decode byte",
    }.items():
        with pytest.raises(
            FileError, match=f"cannot be read as JSON .*{reason}.*; correct"
        ) as caught:
            read_json(tmp_path / name, 8)
        assert caught.value.path == tmp_path / name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(FileError, match="not a regular file"):
        read_json(tmp_path / "pipe.json")
