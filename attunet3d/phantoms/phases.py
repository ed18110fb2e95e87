"""Phases of contrast: the HU of each tissue before the injection, early, and in the venous phase.

Phantoms are described in the portal venous phase. In another phase a tissue keeps its HU without
contrast and gains a share of what it gains in the venous phase:
HU = plain + uptake · (venous − plain). The numbers are round ones from general radiology.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from attunet3d.phantoms.tissue import Tissue

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


def in_phase(tissues: Iterable[Tissue], phase: str, rng: np.random.Generator) -> tuple[Tissue, ...]:
    """The same tissues in another phase; the dose and the timing vary from patient to patient.

    What contrast does not reach keeps its HU: fat, gas, fluid and bone.
    """
    dose = rng.uniform(0.75, 1.15) if phase != "venous" else rng.uniform(0.85, 1.1)
    uptake = UPTAKE[phase]

    def changed(tissue: Tissue) -> Tissue:
        plain = PLAIN_HU.get(tissue.name)
        if plain is None or tissue.hu <= plain:
            return tissue
        share = dose * uptake.get(tissue.name, uptake[""])
        return replace(tissue, hu=plain + share * (tissue.hu - plain))

    return tuple(changed(tissue) for tissue in tissues)
