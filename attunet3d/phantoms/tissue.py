"""What a phantom is drawn from: tissues, the patient they make, and its random numbers."""

from dataclasses import dataclass

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
    """One patient: layers of the wall, then tissues, each drawn over those before it.

    Args:
        torso: Outline of the skin.
        wall: (depth below the skin in mm, HU) of skin, fat, muscle and cavity, outside in.
        tissues: Drawn in order; the pancreas and its tumour come last: nothing hides the answer.
        table: The couch, which lies outside the patient and is not deformed.
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

    @property
    def pancreas_ml(self) -> float:
        """Volume of the pancreas with its tumour, exact."""
        return self.pancreas.volume_ml


class Draw:
    """One patient's random numbers: sizes, places and values about those of a textbook."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.build = self.rng.uniform(0.93, 1.07, 3)  # this patient's width, depth, height

    def between(self, low: float, high: float) -> float:
        """A number between two."""
        return float(self.rng.uniform(low, high))

    def place(self, x: float, y: float, z: float, jitter: float = 4.0) -> Floats:
        """A point, scaled to the patient's build and moved by up to `jitter` mm."""
        moved: Floats = np.array([x, y, z]) * self.build + self.rng.uniform(-jitter, jitter, 3)
        return moved

    def ellipsoid(self, centre: Floats, radii: npt.ArrayLike, turn: float = 15.0) -> Ellipsoid:
        """An ellipsoid of about these half axes, turned by up to `turn` degrees about each axis."""
        half = np.asarray(radii) * self.rng.uniform(0.9, 1.12, 3)
        return Ellipsoid(centre, half, rotation(np.radians(self.rng.uniform(-turn, turn, 3))))

    def near(self, knots: npt.ArrayLike, jitter: float = 3.0) -> Floats:
        """Knots of a curve (m, 3), scaled to the build and each moved a little."""
        points = np.asarray(knots, np.float64)
        moved: Floats = points * self.build + self.rng.uniform(-jitter, jitter, points.shape)
        return moved


def rotation(angles: npt.ArrayLike) -> Floats:
    """3×3 matrix of turns about x, then y, then z, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.asarray(angles, np.float64)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
