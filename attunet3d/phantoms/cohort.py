"""Cohorts of phantoms: their patients, phases of contrast and scanners.

`easy` is for a quick demonstration, `hard` for evaluation. `hard_elsewhere` has patients like those
of `hard` and other scanners: training on one and testing on the other shows how a model does at
another hospital.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from attunet3d.core import SettingsError

Interval = tuple[float, float]  # least and greatest of a uniform draw


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """How patients and scanners are drawn; a `*_share` is the probability for one patient."""

    phases: Mapping[str, float] = field(default_factory=lambda: {"venous": 1.0})
    """Phases of contrast (see `phases`) and how often each occurs."""
    tumour_share: float = 0.0
    """A mass in the pancreas, usually darker than it."""
    tumour_label: bool = False
    """Give the mass the label 2; otherwise it counts as pancreas."""
    resected_share: float = 0.0
    """The tail or the head of the pancreas has been removed."""
    missing_share: float = 0.0
    """Spleen, gallbladder or left kidney has been removed (each with this probability)."""
    atrophy_share: float = 0.0
    """A pancreas of half the size, interspersed with fat."""
    ascites_share: float = 0.0
    """Fluid instead of fat between the organs."""
    texture_hu: float = 0.0
    """Root mean square of the unevenness within tissue."""
    slice_mm: Interval = (2.0, 4.0)
    oblique_degrees: float = 6.0
    """Largest turn of the grid about each axis."""
    noise_hu: Interval = (8.0, 16.0)
    blur_mm: Interval = (0.6, 1.0)
    sharpness: Interval = (0.0, 0.0)
    """Share of the high frequencies within a slice that the kernel adds once more."""
    motion_mm: Interval = (0.0, 0.0)
    """How far breathing moves the patient, to each side of the labelled position."""
    metal_share: float = 0.0
    """A stent, clip or screw, with streaks in its slices."""

    def draw_phase(self, rng: np.random.Generator) -> str:
        """Draw a phase of contrast."""
        return str(rng.choice(list(self.phases), p=list(self.phases.values())))


EASY = Cohort()
HARD = Cohort(
    phases={"venous": 0.6, "arterial": 0.25, "none": 0.15},
    tumour_share=0.35,
    resected_share=0.15,
    missing_share=0.08,
    atrophy_share=0.2,
    ascites_share=0.12,
    texture_hu=7.0,
    slice_mm=(1.5, 5.0),
    oblique_degrees=10.0,
    noise_hu=(10.0, 30.0),
    blur_mm=(0.6, 1.2),
    motion_mm=(0.0, 3.0),
    metal_share=0.15,
)
HARD_ELSEWHERE = replace(
    HARD,
    phases={"venous": 0.4, "arterial": 0.3, "none": 0.3},
    slice_mm=(1.0, 8.0),
    oblique_degrees=15.0,
    noise_hu=(6.0, 40.0),
    blur_mm=(0.4, 1.6),
    sharpness=(0.0, 0.8),
    motion_mm=(0.0, 5.0),
    metal_share=0.25,
)
COHORTS = {"easy": EASY, "hard": HARD, "hard_elsewhere": HARD_ELSEWHERE}


def find_cohort(cohort: "str | Cohort") -> Cohort:
    """Return the cohort of this name, or the one given.

    Raises:
        SettingsError: There is no cohort of this name.

    Example:
        >>> find_cohort("hard").tumour_share
        0.35
    """
    if isinstance(cohort, Cohort):
        return cohort
    if cohort not in COHORTS:
        names = ", ".join(COHORTS)
        raise SettingsError(
            f"there is no cohort {cohort!r}", value=cohort, cure=f"choose one of {names}"
        )
    return COHORTS[cohort]


def happens(rng: np.random.Generator, share: float) -> bool:
    """True with probability `share`; takes one number whatever the answer."""
    return bool(rng.uniform() < share)
