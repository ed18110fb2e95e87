"""Text, JSON and YAML from elsewhere, read within bounds.

Whatever a file holds, reading it takes bounded time and memory, runs no code, and gives plain
values that every other reader understands in the same way.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attunet3d.core.errors import FileError

JSON_BYTES = 32_000_000  # 100,000 cases with label, patient and checksums
MOST_DEPTH = 64


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: A regular file; pipes and devices are not opened, as reading them may never end.
        most_bytes: Larger files are not read.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: It is not a regular file, is too large, or is not UTF-8.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.txt")
        ...     _ = path.write_text("steps: 10")
        ...     read_text(path, 100)
        'steps: 10'
    """
    # Opening a named pipe that nobody writes to must not hang.
    flag = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | flag)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a regular file")
        if state.st_size > most_bytes:
            raise ValueError(f"larger than {most_bytes} bytes")
        return file.read(most_bytes).decode("utf-8-sig")


def read_json(path: Path, most_bytes: int = JSON_BYTES) -> Any:
    """The value in a JSON file; see `parse_json`.

    Args:
        path: A regular file.
        most_bytes: Larger files are not read.

    Raises:
        FileError: The file cannot be read or is not such JSON.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     _ = path.write_text('{"name": "phantoms"}')
        ...     read_json(path)
        {'name': 'phantoms'}
    """
    try:
        return parse_json(read_text(path, most_bytes))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read as JSON ({reason(error)})", path=path) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or has a duplicate key, NaN or Infinity, half a surrogate pair
            (which UTF-8 cannot hold), or nesting deeper than 64.

    Example:
        >>> parse_json('{"steps": 10, "steps": 20}')
        Traceback (most recent call last):
        ...
        ValueError: key 'steps' comes twice
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from None
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML 1.2 text (core schema, of which JSON is a part).

    Tags are refused, so only plain values are made; aliases are refused, so a kilobyte cannot
    stand for a gigabyte. Infinity and NaN are read as text, as no setting can be either.

    Raises:
        ValueError: It is not YAML, or has a tag, an alias, a duplicate key, or nesting deeper
            than 64.

    Example:
        >>> parse_yaml("{steps: 010, at: 1:00, gate: no, patch_size: [96, 96, 64], rate: 1e-4}")
        {'steps': 10, 'at': '1:00', 'gate': 'no', 'patch_size': [96, 96, 64], 'rate': 0.0001}
    """
    depth = 0
    try:
        for event in yaml.parse(text, _Loader):  # before anything is built
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError("tags, anchors and aliases are not allowed; write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"nested deeper than {MOST_DEPTH}")
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def reason(error: OSError | ValueError) -> str:
    """The reason of a failed reading, short and without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:300]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice(key for key, _ in pairs)
    return dict(pairs)


def _refuse_twice(keys: Iterable[Hashable]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"key {key!r:.80} comes twice")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check(value: Any, depth: int = 1) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"nested deeper than {MOST_DEPTH}")
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError
    elif isinstance(value, list | dict):
        for part in value:
            _check(part, depth + 1)
    if isinstance(value, dict):
        for part in value.values():
            _check(part, depth + 1)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2 in place of YAML 1.1's types."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own form)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        _refuse_twice(self.construct_object(key) for key, _ in node.value)
        return mapping

    def construct_int(self, node: yaml.ScalarNode) -> int:
        digits = str(node.value)
        return int(digits, 0) if digits[:2] in ("0o", "0x") else int(digits)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
for _type, _pattern in (  # the first that matches counts
    ("null", r"null|Null|NULL|~|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
):
    _whole = re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", _whole, None)
