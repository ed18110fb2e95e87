"""Reads untrusted text and JSON within limits.

Whatever a file holds, reading it takes bounded time and memory, runs no code, and gives plain
values that every other JSON reader agrees on.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from attunet3d.core.errors import FileError

JSON_BYTES = 32_000_000  # 100,000 cases with label, patient and checksums
MOST_DEPTH = 64


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: A regular file; pipes and devices are refused, as reading them may never end.
        most_bytes: Larger files are refused.

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
    """The value in a JSON file; see `read_text` and `parse_json`.

    Raises:
        FileError: The file cannot be read or is not such JSON.
    """
    try:
        return parse_json(read_text(path, most_bytes))
    except (OSError, ValueError) as error:
        rule, cure = (
            f"cannot be read as JSON ({reason(error)})",
            "correct the file, or write it anew",
        )
        raise FileError(rule, path=path, cure=cure) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or has a duplicate key, NaN or Infinity, an unpaired surrogate
            (which UTF-8 cannot encode), or nesting deeper than 64.

    Example:
        >>> parse_json('{"steps": 10, "steps": 20}')
        Traceback (most recent call last):
        ...
        ValueError: duplicate key 'steps'
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from None
    return value


def reason(error: OSError | ValueError) -> str:
    """Why reading failed, in short and without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:300]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    refuse_twice(key for key, _ in pairs)
    return dict(pairs)


def refuse_twice(keys: Iterable[Hashable]) -> None:
    """Refuse duplicate keys, since readers differ in which of the values counts.

    Raises:
        ValueError: A key is a duplicate.
    """
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"duplicate key {key!r:.80}")


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
