"""Shapes as signed distances in mm: negative inside, positive outside, near the surface exact.

A shape is known exactly at every point of the world, so it can be drawn on any grid: oblique,
flipped, coarse or fine. Points come as three float32 arrays x, y, z of one shape (RAS mm).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from attunet3d.core import Float32s, Floats

TABLE_STEP_MM = 0.1


class Shape(Protocol):
    """Has a signed distance, and a box that contains every point where it is negative."""

    @property
    def bounds_mm(self) -> Floats:
        """Lowest and highest corner, (2, 3)."""

    def distance(self, x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        """Signed distance in mm; the sign is exact, the size accurate near the surface only."""


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """An ellipsoid; `rotation` is 3×3, its columns the directions of the half axes.

    Example:
        >>> ball = Ellipsoid(np.zeros(3), np.full(3, 10.0))
        >>> point = np.array([[12.0], [0.0], [0.0]], np.float32)
        >>> ball.distance(*point).tolist()
        [2.0]
    """

    centre: Floats
    radii: Floats
    rotation: Floats | None = None

    @property
    def bounds_mm(self) -> Floats:
        """Lowest and highest corner, (2, 3)."""
        axes = np.diag(self.radii) if self.rotation is None else self.rotation * self.radii
        half = np.linalg.norm(axes, axis=1)
        return np.stack([self.centre - half, self.centre + half])

    def distance(self, x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        """Signed distance of first order: k (k - 1) / |∇k| with k the normalised radius."""
        along = (np.eye(3) if self.rotation is None else self.rotation).T / self.radii[:, None]
        shift = along @ self.centre
        squares, gradient = np.zeros_like(x), np.zeros_like(x)
        for row, offset, radius in zip(along, shift, self.radii, strict=True):
            a, b, c = row.astype(np.float32)
            part: Float32s = x * a
            part += y * b
            part += z * c - np.float32(offset)
            part *= part
            squares += part
            part *= np.float32(radius**-2)
            gradient += part
        return _ratio(squares - np.sqrt(squares), np.sqrt(gradient))


def _ratio(numerator: Float32s, denominator: Float32s) -> Float32s:
    quotient: Float32s = np.divide(numerator, np.maximum(denominator, np.float32(1e-3)))
    return quotient


@dataclass(frozen=True, eq=False)
class Tube:
    """An ellipse swept along a curve that never turns back on its axis.

    Cross-sections are cut at right angles to `axis` (0, 1 or 2), not to the curve, so the
    volume is exactly the integral of their area, ∫ π r₁ r₂ dt (Cavalieri). The tables hold the
    section from half a step before to half a step after each position.

    Args:
        axis: World axis along which the curve runs.
        at: Positions t along the axis, (n,), rising in equal steps.
        centre: Curve on the two other axes, in their order, (n, 2).
        radii: Half axes of the ellipse along the two other axes, (n, 2), positive.
        profile: Factor of both radii, (n,); 0 where the tube ends.

    Example:
        >>> t = np.array([0.0, 100.0])
        >>> rod = Tube(2, t, np.zeros((2, 2)), np.full((2, 2), 10.0), np.ones(2))
        >>> round(rod.volume_ml, 3)
        31.416
    """

    axis: int
    at: Floats
    centre: Floats
    radii: Floats
    profile: Floats

    @classmethod
    def through(
        cls, axis: int, knots: npt.ArrayLike, radii: npt.ArrayLike, cap_mm: float = 8.0
    ) -> "Tube":
        """A smooth tube through `knots` (m, 3) with `radii` (m, 2) there and rounded ends."""
        points = np.asarray(knots, np.float64)
        order = np.argsort(points[:, axis])
        points, half = points[order], np.broadcast_to(radii, (len(points), 2))[order]
        start, stop = points[0, axis], points[-1, axis]
        at = np.linspace(start, stop, max(2, round((stop - start) / TABLE_STEP_MM) + 1))
        others = np.delete(points, axis, axis=1)
        centre = PchipInterpolator(points[:, axis], others)(at)
        width = PchipInterpolator(points[:, axis], half)(at)
        from_end = np.clip(np.minimum(at - start, stop - at) / cap_mm, 0, 1)
        return cls(axis, at, centre, width, np.sqrt(1 - (1 - from_end) ** 2))

    @property
    def volume_ml(self) -> float:
        """∫ π r₁ r₂ dt in ml; the first and last section count half a step each."""
        area = np.pi * self.radii.prod(axis=1) * self.profile**2
        return float(np.trapezoid(area, self.at)) / 1000

    @property
    def bounds_mm(self) -> Floats:
        """Lowest and highest corner, (2, 3)."""
        half = self.radii * self.profile[:, None]
        low, high = (self.centre - half).min(axis=0), (self.centre + half).max(axis=0)
        return np.stack(
            [np.insert(low, self.axis, self.at[0]), np.insert(high, self.axis, self.at[-1])]
        )

    def scaled(self, factor: float) -> "Tube":
        """Return the tube with both radii multiplied by `factor`."""
        return replace(self, radii=self.radii * factor)

    def cut(self, low: float, high: float, cap_mm: float = 4.0) -> "Tube":
        """Return the part between two positions along the axis, with rounded ends."""
        kept = (self.at >= low) & (self.at <= high)
        at = self.at[kept]
        from_cut = np.clip(np.minimum(at - low, high - at) / cap_mm, 0, 1)
        profile = self.profile[kept] * np.sqrt(1 - (1 - from_cut) ** 2)
        return Tube(self.axis, at, self.centre[kept], self.radii[kept], profile)

    def shrunk(self, wall_mm: float) -> "Tube":
        """Return the lumen inside a wall of this thickness."""
        profile = np.maximum(self.profile - wall_mm / self.radii.min(axis=1), 0)
        return replace(self, profile=profile)

    def distance(self, x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        """Signed distance across the section, times the cosine of the curve's slope."""
        points = [x, y, z]
        t = points.pop(self.axis)
        step = (self.at[-1] - self.at[0]) / (len(self.at) - 1)
        row = np.rint((t - np.float32(self.at[0])) * np.float32(1 / step)).astype(np.int32)
        np.clip(row, 0, len(self.at) - 1, out=row)
        cosine = 1 / np.sqrt(1 + (np.gradient(self.centre, self.at, axis=0) ** 2).sum(axis=1))
        smaller = self.radii.min(axis=1)
        aspect = smaller[:, None] / self.radii  # makes a circle of radius `smaller` of the ellipse
        columns = (self.centre[:, 0], aspect[:, 0], self.centre[:, 1], aspect[:, 1])
        a, stretch_a, b, stretch_b = (column.astype(np.float32)[row] for column in columns)
        across = np.hypot((points[0] - a) * stretch_a, (points[1] - b) * stretch_b)
        across -= (smaller * self.profile).astype(np.float32)[row]
        across *= cosine.astype(np.float32)[row]
        beyond = np.maximum(np.float32(self.at[0]) - t, t - np.float32(self.at[-1]))
        inside: Float32s = np.maximum(across, beyond)
        return inside


@dataclass(frozen=True, eq=False)
class Blend:
    """A union of shapes whose seams are rounded over about `blend_mm`."""

    shapes: tuple[Shape, ...]
    blend_mm: float = 12.0

    @property
    def bounds_mm(self) -> Floats:
        """Lowest and highest corner, (2, 3)."""
        boxes = np.stack([shape.bounds_mm for shape in self.shapes])
        low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
        return np.stack([low - self.blend_mm / 4, high + self.blend_mm / 4])

    def distance(self, x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        """The smallest distance, lowered by up to `blend_mm` / 4 where two are similar."""
        blended, *others = (shape.distance(x, y, z) for shape in self.shapes)
        width = np.float32(self.blend_mm)
        for other in others:
            overlap = np.maximum(width - np.abs(blended - other), 0)
            blended = np.minimum(blended, other) - overlap * overlap / (4 * width)
        return blended


@dataclass(frozen=True, eq=False)
class Region:
    """The points inside `within` at which a function of x, y, z is negative."""

    bounds_mm: Floats
    function: Callable[[Float32s, Float32s, Float32s], Float32s]
    within: Shape | None = None

    def distance(self, x: Float32s, y: Float32s, z: Float32s) -> Float32s:
        """The greater of the two distances."""
        own = self.function(x, y, z)
        if self.within is None:
            return own
        cut: Float32s = np.maximum(own, self.within.distance(x, y, z))
        return cut


@dataclass(frozen=True)
class Torso:
    """The outline of the body, endless along z: a rounded rectangle given by its half widths."""

    half_width_mm: float
    half_depth_mm: float
    squareness: float = 0.6

    @property
    def bounds_mm(self) -> Floats:
        """Lowest and highest corner, (2, 3); the body has no ends along z."""
        half = np.array([self.half_width_mm, self.half_depth_mm, 1e4])
        return np.stack([-half, half])

    def outline(self, x: Float32s, y: Float32s) -> Float32s:
        """Distance beyond the skin along the ray from the middle (Fernández-Guasti's squircle)."""
        u = (x / np.float32(self.half_width_mm)) ** 2
        v = (y / np.float32(self.half_depth_mm)) ** 2
        total = u + v
        root = np.sqrt(total * total - np.float32(4 * self.squareness**2) * u * v)
        radius = np.sqrt((total + root) / 2)  # 1 on the outline, grows linearly along each ray
        length = np.hypot(x, y)
        beyond: Float32s = length - _ratio(length, radius)
        return beyond


@dataclass(frozen=True, eq=False)
class Warp:
    """A smooth displacement that keeps every volume exactly.

    Three shears in turn, x += f(y, z), y += g(x, z), z += h(x, y): each has determinant 1.
    `waves` is (3, n, 4): amplitude in mm, two wave numbers in 1/mm and a phase.
    """

    waves: Floats

    @property
    def reach_mm(self) -> float:
        """Largest displacement of any point along any axis."""
        return float(np.abs(self.waves[:, :, 0]).sum(axis=1).max())

    def __call__(
        self, x: Float32s, y: Float32s, z: Float32s
    ) -> tuple[Float32s, Float32s, Float32s]:
        """Map points of the world to the undeformed anatomy that is seen there."""
        x = x + _wave_sum(self.waves[0], y, z)
        y = y + _wave_sum(self.waves[1], x, z)
        z = z + _wave_sum(self.waves[2], x, y)
        return x, y, z


def _wave_sum(waves: Floats, first: Float32s, second: Float32s) -> Float32s:
    total = np.zeros(np.broadcast_shapes(first.shape, second.shape), np.float32)
    for amplitude, a, b, phase in waves.astype(np.float32):
        total += amplitude * np.sin(a * first + b * second + phase)
    return total
