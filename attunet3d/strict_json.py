"""JSON from elsewhere: read within bounds, and only what every reader understands alike."""

import json
from pathlib import Path
from typing import Any, NoReturn

from attunet3d.errors import UserError

MOST_BYTES = 64_000_000  # some 200,000 cases


class JsonError(UserError):
    """A file that is missing, too large, or no JSON."""


def read_json(path: Path) -> Any:
    """The value in a JSON file; a key that comes twice, NaN and Infinity are refused.

    Raises:
        JsonError: The file cannot be read or is no such JSON.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     _ = path.write_text('{"name": "phantoms"}')
        ...     read_json(path)
        {'name': 'phantoms'}
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise JsonError(f"{path}: larger than {MOST_BYTES} bytes; give a smaller list")
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except JsonError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:200]
        raise JsonError(f"{path}: no JSON can be read here ({reason})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} comes twice in one object")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
