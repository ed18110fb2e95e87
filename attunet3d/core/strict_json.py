"""JSON from elsewhere: read within bounds, and only what every reader understands alike."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from attunet3d.core.errors import FileError
from attunet3d.core.strict_text import read_text

MOST_BYTES = 32_000_000  # 100,000 cases with label, patient and checksums
MOST_DEPTH = 64


def read_json(path: Path, most_bytes: int | None = None) -> Any:
    """The value in a JSON file; see `parse_json`.

    Args:
        path: A regular file.
        most_bytes: Larger ones are not read; None: 32 MB.

    Raises:
        FileError: The file cannot be read or is no such JSON.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     _ = path.write_text('{"name": "phantoms"}')
        ...     read_json(path)
        {'name': 'phantoms'}
    """
    try:
        return parse_json(read_text(path, MOST_BYTES if most_bytes is None else most_bytes))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:200]
        raise FileError(f"{path}: no JSON can be read here ({reason})") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    A key that comes twice, NaN and Infinity, half a surrogate pair (which UTF-8 cannot hold) and
    nesting beyond 64 are refused.

    Raises:
        ValueError: It is no such JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from None
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key {counts.most_common(1)[0][0]!r:.80} comes twice in one object")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any) -> None:
    """Walk the value level by level, so that no depth is too much for the walk itself."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH}")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                item.encode()  # raises UnicodeEncodeError, a ValueError
        level = below
