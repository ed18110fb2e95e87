"""Phases of contrast: the HU of each tissue before the injection, early, and in the venous phase.

Phantoms are described in the portal venous phase. In another phase a tissue keeps its HU without
contrast and gains a share of what it gains in the venous phase:
HU = plain + uptake · (venous − plain). The numbers are round ones from general radiology.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from attunet3d.core import Float32s
from attunet3d.phantoms.tissue import Tissue

Hounsfield = TypeVar("Hounsfield", float, Float32s)  # one number, or one for each voxel

PLAIN_HU = {
    "pancreas": 40.0,
    "liver": 55.0,
    "liver vein": 42.0,
    "spleen": 47.0,
    "kidney": 33.0,
    "stomach": 40.0,
    "duodenum": 38.0,
    "jejunum": 36.0,
    "colon": 38.0,
    "aorta": 42.0,
    "artery": 42.0,
    "vein": 42.0,
    "cava": 42.0,
    "tumour": 38.0,
}
UPTAKE = {  # share of the venous gain, by phase; "": of a tissue that is not named
    "venous": {"": 1.0},
    "none": {"": 0.0},
    "arterial": {
        "": 0.6,
        "aorta": 2.3,
        "artery": 2.3,
        "pancreas": 1.2,
        "spleen": 1.3,
        "kidney": 0.9,
        "jejunum": 1.2,
        "liver": 0.35,
        "liver vein": 0.05,
        "vein": 0.5,
        "cava": 0.25,
        "tumour": 0.5,
    },
}


def draw_dose(phase: str, rng: np.random.Generator) -> float:
    """How strong the contrast is: dose and timing vary from patient to patient."""
    return float(rng.uniform(0.85, 1.1) if phase == "venous" else rng.uniform(0.75, 1.15))


def hu_in_phase(name: str, hu: Hounsfield, phase: str, dose: float = 1.0) -> Hounsfield:
    """HU of a tissue in a phase, from those in the venous phase; one number or an array.

    What contrast does not reach keeps its HU: fat, gas, fluid and bone.

    Example:
        >>> [float(hu_in_phase(name, 160.0, "none")) for name in ("aorta", "bone")]
        [42.0, 160.0]
    """
    plain = PLAIN_HU.get(name)
    if plain is None:
        return hu
    uptake = dose * UPTAKE[phase].get(name, UPTAKE[phase][""])
    gain = np.maximum(hu - plain, 0)
    changed: Hounsfield = hu + gain * (uptake - 1)
    return changed


def in_phase(tissues: Iterable[Tissue], phase: str, dose: float) -> tuple[Tissue, ...]:
    """The same tissues in another phase."""
    return tuple(replace(t, hu=float(hu_in_phase(t.name, t.hu, phase, dose))) for t in tissues)
