"""Grids: where voxels lie in the patient, and how the voxel axes of two grids correspond.

World coordinates are RAS millimetres as in NIfTI and nibabel: x grows towards the patient's right,
y towards anterior, z towards superior. Reorienting, cropping and resampling keep voxel axes
parallel, so any invertible affine works, sheared ones included, and each change can be undone by
one more resampling along the voxel axes.
"""

from dataclasses import dataclass

import nibabel.orientations as orientations
import numpy as np
import numpy.typing as npt

from attunet3d.core import Box, DataError, Floats, Size, Triple

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM and ITK count towards left and posterior


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in the patient.

    Args:
        shape: Number of voxels along each voxel axis.
        affine: 4×4; voxel index (centre of the voxel) → RAS millimetres.

    Raises:
        DataError: The affine is not finite or not invertible, or an axis has no voxel.

    Example:
        >>> grid = Grid((4, 4, 2), np.diag([1.0, 1.0, 5.0, 1.0]))
        >>> grid.spacing_mm, round(grid.voxel_volume_ml, 6), grid.axis_codes
        ((1.0, 1.0, 5.0), 0.005, 'RAS')
    """

    shape: Size
    affine: Floats

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            rule = f"shape {self.shape}: a grid has three axes of at least one voxel"
            raise DataError(rule, value=self.shape)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise DataError("the affine must be 4×4 finite numbers", cure="correct the header")
        # Relative to the spacings, so that one threshold fits voxels of any size.
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise DataError(
                f"the affine is singular (spacings {lengths.round(6).tolist()} mm): voxel axes must"
                " have positive lengths and three independent directions",
                value=lengths,
                cure="correct the header",
            )

    @property
    def spacing_mm(self) -> Triple:
        """Distance between neighbouring voxel centres along each voxel axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres, also of a sheared one."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def axis_codes(self) -> str:
        """For each voxel axis the letter of R/L, A/P, S/I nearest to its direction."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def shear_deg(self) -> float:
        """How far the most oblique pair of voxel axes is from a right angle, in degrees.

        Example:
            >>> tilted = np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
            >>> round(Grid((512, 512, 100), tilted).shear_deg, 1)  # slices slide 1 mm per 2 mm
            26.6
        """
        axes = self.affine[:3, :3] / self.spacing_mm
        cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
        return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))

    @property
    def is_sheared(self) -> bool:
        """Whether a rotation with spacings, as a qform holds it, misses a corner by 0.1 voxel."""
        rotation, _, turn = np.linalg.svd(self.affine[:3, :3] / self.spacing_mm)
        affine = self.affine.copy()
        affine[:3, :3] = rotation @ turn * self.spacing_mm
        return self.distance_mm(Grid(self.shape, affine)) > 0.1 * min(self.spacing_mm)

    def corners_mm(self) -> Floats:
        """World positions of the centres of the eight corner voxels, (8, 3)."""
        last = np.array(self.shape) - 1
        index = np.stack(np.meshgrid(*[[0, n] for n in last], indexing="ij"), -1).reshape(-1, 3)
        return self.to_world(index)

    def to_world(self, index: npt.ArrayLike) -> Floats:
        """World millimetres (…, 3) of voxel indices (…, 3)."""
        points: Floats = (
            np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        )
        return points

    def to_index(self, world: npt.ArrayLike) -> Floats:
        """Voxel indices (…, 3) of world millimetres (…, 3)."""
        inverse = np.linalg.inv(self.affine)
        index: Floats = np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return index

    def distance_mm(self, other: "Grid") -> float:
        """Largest distance between matching corner voxels of two grids of one shape."""
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    def matches(self, other: "Grid", tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have one shape and no corner lies further apart than the tolerance."""
        return self.shape == other.shape and self.distance_mm(other) <= tolerance_mm

    def cropped(self, box: Box) -> "Grid":
        """The grid of `array[box]`; slices have a start, a stop and step 1.

        Example:
            >>> grid = Grid((10, 10, 10), np.diag([2.0, 2.0, 5.0, 1.0]))
            >>> part = grid.cropped((slice(3, 7), slice(0, 10), slice(1, 10)))
            >>> part.shape, part.affine[:3, 3].tolist()
            ((4, 10, 9), [6.0, 0.0, 5.0])
        """
        starts = [part.start for part in box]
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(starts)
        a, b, c = (part.stop - part.start for part in box)
        return Grid((a, b, c), affine)

    def oriented(self, codes: str = "RAS") -> "Grid":
        """The same voxels, axes permuted and flipped to run as nearly as possible along `codes`.

        Example:
            >>> grid = Grid((4, 5, 6), np.diag([-1.0, 1.0, 2.0, 1.0]))  # LAS
            >>> grid.oriented("RAS").affine[0].tolist()  # the first voxel is now the last along x
            [1.0, 0.0, 0.0, -3.0]
        """
        wanted = orientations.axcodes2ornt(codes)
        change = orientations.ornt_transform(orientations.io_orientation(self.affine), wanted)
        a, b, c = (self.shape[int(axis)] for axis in np.argsort(change[:, 0]))
        return Grid((a, b, c), self.affine @ orientations.inv_ornt_aff(change, self.shape))

    def straightened(self) -> "Grid":
        """A grid without shear that covers this one.

        The first axis keeps its direction and the second its plane; spacings along them are kept,
        and planes of the third axis stay where they are (QR decomposition of the affine).

        Example:
            >>> tilted = np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
            >>> straight = Grid((8, 8, 5), tilted).straightened()  # slices slide 4 mm in all
            >>> straight.shape, straight.spacing_mm
            ((8, 12, 5), (1.0, 1.0, 2.0))
        """
        rotation, triangle = np.linalg.qr(self.affine[:3, :3])
        affine = self.affine.copy()
        affine[:3, :3] = rotation * np.diag(triangle)  # QR may turn axes round; this turns back
        reached = Grid(self.shape, affine).to_index(self.corners_mm()).round(6)
        low, high = np.floor(reached.min(0)), np.ceil(reached.max(0))
        affine[:3, 3] = affine[:3, :3] @ low + affine[:3, 3]
        a, b, c = (int(n) for n in high - low + 1)
        return Grid((a, b, c), affine)

    def resized(self, shape: Size) -> "Grid":
        """The same extent divided into `shape` voxels.

        Extents (outer faces), not first centres, are kept: the new first centre lies
        (ratio − 1)/2 old voxels from the old one, as in `F.interpolate(align_corners=False)`.

        Example:
            >>> grid = Grid((4, 4, 4), np.eye(4)).resized((2, 2, 2))
            >>> grid.spacing_mm, grid.affine[:3, 3].tolist()
            ((2.0, 2.0, 2.0), [0.5, 0.5, 0.5])
        """
        ratio = np.array(self.shape) / np.array(shape)
        step = np.diag([*ratio, 1.0])
        step[:3, 3] = (ratio - 1) / 2
        return Grid(shape, self.affine @ step)

    def with_spacing(self, spacing_mm: Triple) -> "Grid":
        """The same extent in the whole number of voxels that comes nearest to `spacing_mm`.

        Example:
            >>> grid = Grid((100, 100, 33), np.diag([0.8, 0.8, 3.0, 1.0]))
            >>> grid.with_spacing((1.5, 1.5, 1.5)).shape  # 80 / 1.5 = 53.3; 99 / 1.5 = 66
            (53, 53, 66)
        """
        extent = np.array(self.shape) * self.spacing_mm
        a, b, c = (max(1, round(float(n))) for n in extent / np.array(spacing_mm))
        return self.resized((a, b, c))


@dataclass(frozen=True)
class AxisMap:
    """Which voxel axis of a source grid each axis of a target grid follows, and where it starts.

    Target axis t follows source axis `order[t]`: target index j is source index
    `scale[t] * j + offset[t]`. The scale is negative where the axes have opposite directions.
    """

    order: Size
    scale: Triple
    offset: Triple


def axis_map(source: Grid, target: Grid) -> AxisMap:
    """Match the voxel axes of `target` to those of `source`.

    Raises:
        DataError: The voxel axes of the two grids are not parallel.

    Example:
        >>> fine = Grid((8, 8, 8), np.eye(4))
        >>> axis_map(fine, fine.resized((4, 8, 8))).offset  # a coarse voxel's centre: 0.5 voxels in
        (0.5, 0.0, 0.0)
        >>> grid = Grid((4, 5, 6), np.diag([-2.0, 2.0, 3.0, 1.0]))
        >>> axis_map(grid, grid.oriented("RAS"))
        AxisMap(order=(0, 1, 2), scale=(-1.0, 1.0, 1.0), offset=(3.0, 0.0, 0.0))
    """
    relation = np.linalg.inv(source.affine) @ target.affine  # target index -> source index
    order = np.abs(relation[:3, :3]).argmax(axis=0)
    scale = relation[order, range(3)]
    rest = relation[:3, :3].copy()
    rest[order, range(3)] = 0
    drift = np.abs(rest) @ np.array(target.shape)  # voxels of drift from one end to the other
    if sorted(order) != [0, 1, 2] or drift.max() > 1e-3:
        raise DataError(
            "the voxel axes of the two grids are not parallel", cure="resample one of them"
        )
    (a, b, c), (p, q, r) = order, scale
    u, v, w = relation[order, 3]
    return AxisMap(
        (int(a), int(b), int(c)), (float(p), float(q), float(r)), (float(u), float(v), float(w))
    )
