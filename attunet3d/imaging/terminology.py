"""Standard codes and colours of labels: SNOMED CT terms for DICOM and Slicer, sRGB for viewers.

The codes come from pydicom's copy of the SNOMED CT subset that DICOM licenses, by keyword: the
label `adrenal_gland_left` is looked up as `AdrenalGland`, with the side as a modifier. A name that
the subset does not hold is coded as an anatomical structure of no particular kind.
"""

import colorsys
import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SIDES = {
    **dict.fromkeys(("left", "l", "lt", "links", "gauche"), codes.SCT.Left),
    **dict.fromkeys(("right", "r", "rt", "rechts", "droite"), codes.SCT.Right),
}
SYNONYMS = {
    "cancer": "Neoplasm",
    "oesophagus": "Esophagus",
    "postcava": "InferiorVenaCava",
    "small_bowel": "SmallIntestine",
    "tumour": "Neoplasm",
    "urinary_bladder": "Bladder",
    "vertebrae": "Vertebra",
}
LESIONS = ("Neoplasm", "Tumor", "Lesion", "Mass", "Cyst")
GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class Term:
    """How a label is coded."""

    category: Code
    """What kind of thing it is, as DICOM's context group 7150 has it."""
    kind: Code
    """The organ or the abnormality."""
    side: Code | None = None
    region: Code | None = None
    """The organ in which an abnormality lies, if the name says so."""


def term_of(name: str) -> Term:
    """Code a label's name, such as `pancreas`, `kidney_left`, `Left kidney` or `pancreas tumour`.

    Example:
        >>> term = term_of("kidney_left")
        >>> term.kind.value, term.kind.meaning, term.side.meaning
        ('64033007', 'Kidney', 'Left')
        >>> term_of("pancreas tumour").region.meaning
        'Pancreas'
        >>> term_of("structure 7").kind.meaning
        'Anatomical Structure'
    """
    words = re.findall(r"[a-z]+[0-9]*|[0-9]+", _split_camel_case(name).lower())
    side = next((SIDES[word] for word in words if word in SIDES), None)
    rest = [word for word in words if word not in SIDES]
    if len(rest) == 2 and rest[0] in ("vertebra", "vertebrae"):
        rest = [rest[1], "vertebra"]  # "vertebrae_L3" is L3Vertebra in the dictionary
    structure = codes.SCT.AnatomicalStructure
    kind = _find(rest)
    if kind is not None and kind[0] in LESIONS:
        return Term(codes.SCT.MorphologicallyAbnormalStructure, kind[1], side)
    if kind is not None:
        return Term(structure, kind[1], side)
    if len(rest) > 1:  # an organ and what is wrong with it, in either order
        for organ, lesion in ((rest[:-1], rest[-1:]), (rest[1:], rest[:1])):
            where, what = _find(organ), _find(lesion)
            if where is not None and what is not None and what[0] in LESIONS:
                abnormal = codes.SCT.MorphologicallyAbnormalStructure
                return Term(abnormal, what[1], side, where[1])
    return Term(structure, structure, side)


def colour_of(value: int) -> tuple[int, int, int]:
    """A colour (sRGB, 0 to 255) for a label value, unlike those of its neighbours.

    Hues are spaced by the golden ratio, so that any number of labels can be distinguished.

    Example:
        >>> colour_of(1), colour_of(2)
        ((230, 96, 87), (87, 120, 230))
    """
    hue = (value - 1) * GOLDEN_RATIO % 1 + 0.01
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, 0.62, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _split_camel_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _find(words: list[str]) -> tuple[str, Code] | None:
    """The keyword and the code of a name; a plural is looked up without its s."""
    joined = "_".join(words)
    keywords = [SYNONYMS.get(joined, "".join(word.capitalize() for word in words))]
    keywords += [keywords[0].removesuffix("s"), keywords[0].removesuffix("Gland") + "Gland"]
    for keyword in keywords:
        code = getattr(codes.SCT, keyword, None)
        if code is not None:
            return keyword, code
    return None
