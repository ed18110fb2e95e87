"""Label names that say left or right: a mirrored scan turns such labels into their partners.

A name is split into words at spaces, punctuation and capitals ("KidneyLeft", "kidney_l"). The side
is a word of its own; in a word such as "leftkidney" it may also be the beginning.
"""

import re
from collections.abc import Mapping

# fmt: off
_LEFT = (
    "left", "lt", "lh", "l", "links", "linke", "linker", "linkes", "linken", "li", "gauche",
    "izquierda", "izquierdo", "sinistra", "sinistro", "sinister", "sinistrum", "sin",
)
_RIGHT = (
    "right", "rt", "rh", "r", "rechts", "rechte", "rechter", "rechtes", "rechten", "re", "droite",
    "droit", "derecha", "derecho", "destra", "destro", "dexter", "dextra", "dextrum", "dex",
)
# fmt: on
_SIDES = dict.fromkeys(_LEFT, "l") | dict.fromkeys(_RIGHT, "r")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])")
_BEGINNING = re.compile("(left|right|links|rechts)(?=.)")


def left_right_pairs(labels: Mapping[int, str]) -> list[tuple[int, int]]:
    """Find the labels whose names differ only in the side.

    Args:
        labels: Label names by value.

    Returns:
        The values (left, right) of each pair, in the order of the left ones.

    Example:
        >>> left_right_pairs({1: "kidney_right", 2: "kidney_left", 3: "liver", 4: "lung L"})
        [(2, 1)]
        >>> left_right_pairs({1: "linke Niere", 2: "rechte Niere"})
        [(1, 2)]
    """
    sides: dict[str, dict[tuple[str, ...], int]] = {"l": {}, "r": {}}
    for value, name in labels.items():
        if found := _side(name):
            side, rest = found
            sides[side].setdefault(rest, value)
    return sorted(
        (value, sides["r"][rest]) for rest, value in sides["l"].items() if rest in sides["r"]
    )


def labels_with_side(labels: Mapping[int, str]) -> tuple[int, ...]:
    """The values whose names say left or right, with or without a partner of the other side.

    Example:
        >>> labels_with_side({1: "left lung", 2: "liver", 3: "vertebra L1", 4: "bright lesion"})
        (1,)
    """
    return tuple(value for value, name in labels.items() if _side(name))


def _side(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The side ("l" or "r") that a name says, and its words with the side's word left blank."""
    words = _WORD.findall(_BEGINNING.sub(r"\1 ", _CAMEL.sub(" ", name).lower()))
    for index, word in enumerate(words):
        numbered = index + 1 < len(words) and words[index + 1].isdigit() and len(word) == 1
        if word in _SIDES and not numbered:  # "L1" is a vertebra
            return _SIDES[word], (*words[:index], "", *words[index + 1 :])
    return None
