"""The effects of a scanner: blur, sharp kernels, motion, metal, noise; and the grain of tissue.

All but the noise are functions of the point in the world, so a scan can be made slab by slab.
"""

from dataclasses import dataclass

import numpy as np

from attunet3d.core import Float32s, Floats
from attunet3d.phantoms.cohort import Cohort, happens

Points = tuple[Float32s, Float32s, Float32s]

METAL_HU = 2500.0
TEXTURE_WAVES = 24
SOFT_HU = (-200.0, 350.0)  # tissue between air and bone is uneven


@dataclass(frozen=True, eq=False)
class Metal:
    """A small dense rod along z, and the streaks it causes."""

    centre: Floats
    """(3,), mm."""
    radius_mm: float
    half_length_mm: float
    waves: Floats
    """(n, 2): number of streaks about the rod, phase."""
    streak_hu: float

    def add_(self, values: Float32s, points: Points) -> None:
        """Draw rod and streaks into `values` (K, J, I), in place."""
        x, y, z = (axis - np.float32(c) for axis, c in zip(points, self.centre, strict=True))
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        streaks = np.zeros_like(values)
        for count, phase in self.waves.astype(np.float32):
            streaks += np.cos(np.rint(count) * angle + phase)
        beyond = np.maximum(np.abs(z) - np.float32(self.half_length_mm), 0)
        fall = np.exp(-beyond / 4) / (1 + radius / 25)
        values += np.float32(self.streak_hu / len(self.waves) ** 0.5) * streaks * fall
        inside = (radius < self.radius_mm) & (np.abs(z) < self.half_length_mm)
        values[inside] = METAL_HU


@dataclass(frozen=True, eq=False)
class Scanner:
    """The settings of one scan.

    Args:
        blur_mm: Standard deviation of the point spread.
        noise_hu: Standard deviation of the noise.
        sharpness: Share of the high frequencies within a slice that is added once more.
        motion_mm: (3,) greatest shift to either side of the labelled position.
        waves: (n, 4) wave numbers in 1/mm and phase of the unevenness of tissue.
        texture_hu: Root mean square of the unevenness.
        metal: A dense object, or None.
    """

    blur_mm: float
    noise_hu: float
    sharpness: float
    motion_mm: Floats
    waves: Floats
    texture_hu: float
    metal: Metal | None


def draw_scanner(seed: int, cohort: Cohort, near_mm: Floats) -> Scanner:
    """The scanner of this seed; `near_mm` (3,) is the place about which metal lies."""
    rng = np.random.default_rng([seed, 3])
    blur, noise = rng.uniform(*cohort.blur_mm), rng.uniform(*cohort.noise_hu)
    sharpness = rng.uniform(*cohort.sharpness)
    motion = rng.uniform(*cohort.motion_mm) * rng.normal((0, 0.4, 0.9), 0.1)
    metal = _draw_metal(rng, near_mm) if happens(rng, cohort.metal_share) else None
    waves = _draw_waves(rng)
    return Scanner(blur, noise, sharpness, motion, waves, cohort.texture_hu, metal)


def _draw_waves(rng: np.random.Generator) -> Floats:
    """Plane waves 7 to 35 mm long in all directions: wave numbers and phase, (n, 4)."""
    number = rng.normal(size=(TEXTURE_WAVES, 3))
    number /= np.linalg.norm(number, axis=1, keepdims=True)
    number *= 2 * np.pi / rng.uniform(7, 35, (TEXTURE_WAVES, 1))
    return np.hstack([number, rng.uniform(0, 2 * np.pi, (TEXTURE_WAVES, 1))])


def _draw_metal(rng: np.random.Generator, near_mm: Floats) -> Metal:
    return Metal(
        centre=near_mm + rng.uniform((-45, -40, -40), (45, 25, 40)),
        radius_mm=rng.uniform(2, 4),
        half_length_mm=rng.uniform(5, 30),
        waves=np.column_stack([rng.integers(2, 40, 14), rng.uniform(0, 2 * np.pi, 14)]),
        streak_hu=rng.uniform(40, 130),
    )


def add_texture_(values: Float32s, points: Points, scanner: Scanner) -> None:
    """Make soft tissue uneven, in place: a sum of plane waves in the world."""
    if scanner.texture_hu == 0:
        return
    x, y, z = points
    total = np.zeros_like(values)
    for a, b, c, phase in scanner.waves.astype(np.float32):
        total += np.sin(a * x + b * y + c * z + phase)
    total *= np.float32(scanner.texture_hu * (2 / len(scanner.waves)) ** 0.5)
    soft = (values > SOFT_HU[0]) & (values < SOFT_HU[1])
    values += total * soft
