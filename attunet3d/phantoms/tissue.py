"""Tissues, the patient that they make up, and the random numbers that describe a patient."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from attunet3d.core import Floats
from attunet3d.phantoms.shapes import Ellipsoid, Shape, Torso, Tube, Warp

TOP_MM, BOTTOM_MM = 190.0, -190.0  # where structures without ends are cut off


@dataclass(frozen=True, eq=False)
class Tissue:
    """A shape and its value; `in_cavity` keeps it inside the abdominal wall."""

    name: str
    shape: Shape
    hu: float
    in_cavity: bool = True


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient: the layers of the wall, then tissues, each painted over those before it.

    Args:
        torso: Outline of the skin.
        wall: (depth below the skin in mm, HU) of skin, fat, muscle and cavity, outside in.
        tissues: Painted in order; the pancreas and its tumour come last: nothing hides the answer.
        table: The scanner's table, outside the patient and not deformed.
        warp: Deformation of the whole patient.
        pancreas: Its shape before the deformation, which keeps its volume.
        tumour: A part of the pancreas with a label of its own, or None.
    """

    torso: Torso
    wall: tuple[tuple[float, float], ...]
    tissues: tuple[Tissue, ...]
    table: Tissue
    warp: Warp
    pancreas: Tube
    tumour: Shape | None = None

    def with_cavity(self, hu: float) -> "Anatomy":
        """The same patient with this HU between the organs."""
        return replace(self, wall=(*self.wall[:-1], (self.wall[-1][0], hu)))

    @property
    def pancreas_ml(self) -> float:
        """Exact volume of the pancreas, tumour included."""
        return self.pancreas.volume_ml


class PatientSampler:
    """Draws sizes, positions and HU of one patient around textbook values."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.build = self.rng.uniform(0.93, 1.07, 3)  # this patient's width, depth, height

    def uniform(self, low: float, high: float) -> float:
        """Draw a number between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def position(self, x: float, y: float, z: float, jitter: float = 4.0) -> Floats:
        """Scale a point to the patient's build and move it by up to `jitter` mm."""
        moved: Floats = np.array([x, y, z]) * self.build + self.rng.uniform(-jitter, jitter, 3)
        return moved

    def ellipsoid(self, centre: Floats, radii: npt.ArrayLike, turn: float = 15.0) -> Ellipsoid:
        """Draw an ellipsoid near these half axes, turned by up to `turn` degrees per axis."""
        half = np.asarray(radii) * self.rng.uniform(0.9, 1.12, 3)
        return Ellipsoid(centre, half, rotation(np.radians(self.rng.uniform(-turn, turn, 3))))

    def jittered(self, knots: npt.ArrayLike, jitter: float = 3.0) -> Floats:
        """Scale the knots of a curve (m, 3) to the build and move each by up to `jitter` mm."""
        points = np.asarray(knots, np.float64)
        moved: Floats = points * self.build + self.rng.uniform(-jitter, jitter, points.shape)
        return moved


def rotation(angles: npt.ArrayLike) -> Floats:
    """The 3×3 matrix that rotates about x, then y, then z, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.asarray(angles, np.float64)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
