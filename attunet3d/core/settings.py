"""Checks groups of settings: types and ranges are annotated, errors take one line.

A field's annotation is its rule: `Annotated[float, Meta(ge=0, lt=1)]` is a number in [0, 1). It is
checked by msgspec whenever an instance is created. Error messages and the JSON schema for editors
are derived from the same annotation.
"""

import ast
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from attunet3d.core.errors import SettingsError

Count = Annotated[int, Meta(ge=0, le=10**9)]
PositiveCount = Annotated[int, Meta(ge=1, le=10**9)]
Share = Annotated[float, Meta(ge=0, le=1)]
ProperShare = Annotated[float, Meta(ge=0, lt=1)]
HU = Annotated[float, Meta(ge=-100_000, le=100_000)]
Voxels = Annotated[int, Meta(ge=1, le=10_000)]
VoxelSize = tuple[Voxels, Voxels, Voxels]

_rules: Callable[[type], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_KINDS |= {"array": "a list [a, b, …]", "str": "a name", "null": "null"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, frozen and checked when it is created.

    `TrainingConfig` is the section `training` in files. A subclass checks rules between its fields
    in `check`.
    """

    def __post_init__(self) -> None:
        for name, rule in _rules(type(self)).items():
            value = converted(f"{self.section()}.{name}", getattr(self, name), rule)
            object.__setattr__(self, name, value)
        self.check()

    @classmethod
    def section(cls) -> str:
        """The name of these settings in files and in `--set`."""
        return cls.__name__.removesuffix("Config").lower()

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Make the settings of plain values; missing ones keep their defaults.

        Raises:
            SettingsError: A name is unknown, or a value is of the wrong type or out of range.
        """
        return cls(**named(values, _rules(cls), cls.section()))

    def check(self) -> None:
        """Refuse fields that contradict each other."""

    def refuse(self, name: str, rule: str, cure: str | None = None) -> SettingsError:
        """The error for this group's setting `name`, which breaks `rule`."""
        return refusal(f"{self.section()}.{name}", getattr(self, name), rule, cure)


def refusal(name: str, value: object, rule: str, cure: str | None = None) -> SettingsError:
    """The error for a setting whose value breaks its rule.

    Example:
        >>> str(refusal("training.steps", -1, "a whole number >= 1"))
        'training.steps must be a whole number >= 1, got -1'
    """
    shown = list(value) if isinstance(value, tuple) else value
    return SettingsError(f"{name} must be {rule}, got {shown!r:.200}", value=value, cure=cure)


def named(values: object, known: Iterable[str], section: str = "") -> dict[str, Any]:
    """Return `values` as a dictionary if it maps known names to settings.

    Raises:
        SettingsError: It does not; for an unknown name the closest known one is suggested.

    Example:
        >>> named({"step": 10}, ["steps", "seed"], "training")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.SettingsError: unknown setting training.step; did you mean ...
    """
    if not isinstance(values, Mapping):
        raise refusal(section or "a configuration", values, "a mapping of settings by name")
    known, prefix = list(known), f"{section}." if section else ""
    for name in values:
        if name not in known:
            cure = suggestion(str(name)[:80], known, prefix)
            raise SettingsError(f"unknown setting {prefix}{str(name)[:80]}", value=name, cure=cure)
    return dict(values)


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Ask for the closest of the `known` names, or list all of them.

    Example:
        >>> suggestion("oktay2019", ["oktay2018", "demo_cpu"])
        'did you mean oktay2018?'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"choose from {', '.join(known)}"


def converted(name: str, value: object, rule: Any) -> Any:
    """Convert `value` to the type of its rule; whole floats become integers, lists tuples.

    Raises:
        SettingsError: The value is not of this type or out of range.
    """
    try:
        return msgspec.convert(_plain(value), rule)
    except msgspec.ValidationError as error:
        expected, _, place = str(error).partition(" - at `$")
        raise refusal(name + place.rstrip("`"), value, _in_words(expected, rule)) from None


def _plain(value: Any) -> Any:
    """A value without NumPy scalars and with whole floats, such as YAML's 1e5, as integers."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if hasattr(value, "dtype"):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _in_words(expected: str, rule: Any) -> str:
    """Rewrite msgspec's expectation, such as "Expected `int` >= 1", for an error message."""
    if get_origin(rule) is Literal:
        return "one of " + ", ".join(map(str, get_args(rule)))
    if not expected.startswith("Expected "):  # "Number out of range"
        return "a number in range"
    words = expected.removeprefix("Expected ").partition(", got")[0].replace(" | ", "` or `")
    for kind, name in _KINDS.items():
        words = words.replace(f"`{kind}`", name)
    return words


def schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a dataclass of settings, described by the text under each field."""
    found = msgspec.json.schema(cls)
    for part in found["$defs"].values():
        part["additionalProperties"] = False
    for hint in get_type_hints(cls).values():
        texts = descriptions(hint)
        for name, field in found["$defs"][hint.__name__]["properties"].items():
            field["description"] = texts[name]
    return found


def descriptions(cls: type) -> dict[str, str]:
    """The text under each field of a class, by the field's name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found
