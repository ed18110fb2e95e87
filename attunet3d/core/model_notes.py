"""What a model says of its label maps, beside its weights: checked wherever it is read.

doubt           the rule that gives trust and a word (see `cohort.doubt`)
label_ranges    lowest and highest volume in ml and mean HU of each label in training
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from attunet3d.core.errors import ModelError


class _DoubtRule(msgspec.Struct):
    weights: dict[str, float]
    wrong: float
    look: float


_RULES: dict[str, tuple[Any, str]] = {
    "doubt": (_DoubtRule, 'weights by name, "wrong" and "look", all of them numbers'),
    "label_ranges": (
        dict[str, dict[str, tuple[float, float]]],
        "[lowest, highest] of ml and hu, by label name",
    ),
}


def known_notes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries among `values` that label maps are judged by; those that are null are left out.

    Raises:
        ModelError: One is not what it must be; the file is not named.

    Example:
        >>> known_notes({"label_ranges": {"liver": {"ml": [900, 2100]}}, "made": "today"})
        {'label_ranges': {'liver': {'ml': [900, 2100]}}}
    """
    found = {name: values[name] for name in _RULES if values.get(name) is not None}
    for name, value in found.items():
        kind, rule = _RULES[name]
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise ModelError(f"{name} must be {rule}", value=value) from None
    return found
