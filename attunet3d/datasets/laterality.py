"""Finds labels of one side of the body, which are wrong in a mirrored scan.

A name is split into words at spaces, punctuation and capitals ("KidneyLeft", "kidney_l"). The side
is a separate word, or the beginning of one such as "leftkidney".
"""

import re
from collections.abc import Mapping

# fmt: off
_SIDES = {
    "left", "lt", "lh", "l", "links", "linke", "linker", "linkes", "linken", "li", "gauche",
    "izquierda", "izquierdo", "sinistra", "sinistro", "sinister", "sinistrum", "sin",
    "right", "rt", "rh", "r", "rechts", "rechte", "rechter", "rechtes", "rechten", "re", "droite",
    "droit", "derecha", "derecho", "destra", "destro", "dexter", "dextra", "dextrum", "dex",
}
# fmt: on
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])")
_BEGINNING = re.compile("(left|right|links|rechts)(?=.)")


def labels_with_side(labels: Mapping[int, str]) -> tuple[int, ...]:
    """The label values whose names contain a side, whether or not the other side has a label.

    Example:
        >>> labels_with_side({1: "left lung", 2: "liver", 3: "vertebra L1", 4: "bright lesion"})
        (1,)
    """
    return tuple(value for value, name in labels.items() if _has_side(name))


def _has_side(name: str) -> bool:
    words = _WORD.findall(_BEGINNING.sub(r"\1 ", _CAMEL.sub(" ", name).lower()))
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in _SIDES and not (len(word) == 1 and following.isdigit()):  # "L1" is a vertebra
            return True
    return False
