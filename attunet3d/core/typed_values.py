"""Plain values, as JSON, YAML and `--set` give them, made into frozen dataclasses; types checked.

The dataclass says what is wanted by its annotations; an error names the setting, the value and the
rule.
"""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from attunet3d.core.errors import SettingsError


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Refuse a setting that breaks its rule.

    Raises:
        SettingsError: `condition` is false.

    Example:
        >>> require(False, "training.steps", -1, "positive")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.SettingsError: training.steps must be positive, got -1
    """
    if not condition:
        raise SettingsError(f"{name} must be {rule}, got {value!r:.200}")


def unknown(name: object, known: Iterable[str], prefix: str = "") -> str:
    """What to say of a setting called `name` where only those `known` exist.

    Example:
        >>> unknown("step", ["steps", "seed"], "training.")
        'unknown setting training.step; did you mean training.steps?'
    """
    close = difflib.get_close_matches(str(name)[:80], list(known), n=1)
    cure = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}"
    return f"unknown setting {prefix}{str(name)[:80]}; {cure}"


def build(cls: Any, values: object, prefix: str = "") -> Any:
    """An instance of the dataclass `cls` from plain values; what is missing keeps its default.

    Args:
        cls: A dataclass; its fields may be dataclasses, too.
        values: By name.
        prefix: Put before the names in messages.

    Raises:
        SettingsError: A name is unknown, or a value is of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{prefix.rstrip('.')} must hold settings by name, got {values!r:.200}")
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise SettingsError(unknown(name, hints, prefix))
    return cls(
        **{name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    )


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` has it, or an error that names both."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name + ".")
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(get_args(hint)[0], value, name)
    if get_origin(hint) is Literal:
        require(
            value in get_args(hint), name, value, "one of " + ", ".join(map(str, get_args(hint)))
        )
        return value
    if get_origin(hint) is tuple:
        return _convert_tuple(get_args(hint), value, name)
    return _convert_scalar(hint, value, name)


def _convert_tuple(items: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    require(isinstance(value, list | tuple), name, value, "a list such as [1, 2, 3]")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    require(len(value) == len(items), name, value, f"a list of {len(items)}")
    return tuple(_convert(item, part, name) for item, part in zip(items, value, strict=True))


def _convert_scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            value = float(value)
        except ValueError:
            raise SettingsError(f"{name} must be a number, got {value!r:.200}") from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and abs(value) < 1e300  # neither NaN nor infinite, nor an int beyond float
    if hint is float:
        require(number, name, value, "a number")
        return float(value)
    if hint is int:
        require(number and value == int(value), name, value, "a whole number")
        return int(value)
    require(isinstance(value, hint), name, value, f"a {hint.__name__}")
    return value
