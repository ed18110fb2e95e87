"""Does a label lie on its scan, and if not, would a mirrored one?

Two witnesses are heard. The headers: two grids are the same, mirrored along some voxel axes, or
neither. And the tissue: organs lie on soft tissue, so labelled voxels in air or on bone speak
against a label. NIH's labels, for instance, come with rows in the reverse order of the scans'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from attunet3d.geometry import Grid
from attunet3d.volume import Volume

TISSUE_HU = (-200.0, 300.0)  # from fat to contrast-filled vessels; below air, above dense bone
FLIPS = tuple("".join(axes) for count in range(4) for axes in combinations("ijk", count))
SAMPLE = 20_000  # labelled voxels looked at
ENOUGH = 0.8  # share on tissue that speaks for a label; organs beside gas and bone have less than 1
LEAD = 0.1  # by which a mirrored label must do better to be called the right one
FEW = 0.5  # share on tissue below which a label is refused
_DIRECTIONS = dict.fromkeys("RL", "left-right") | dict.fromkeys("AP", "front-back")
_DIRECTIONS |= dict.fromkeys("SI", "head-foot")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a label's place; `flip` mends it, None: nothing known does."""

    text: str
    flip: str | None = None
    warning: bool = False


def judge(
    image: Volume, label: Volume, tissue_hu: tuple[float, float] = TISSUE_HU
) -> Verdict | None:
    """Whether a label of the scan's shape lies right, by the headers and by the tissue.

    Args:
        image: The scan in HU.
        label: Label values; of the scan's shape.
        tissue_hu: Lowest and highest HU of what is labelled.

    Returns:
        None where nothing speaks against the label.

    Example:
        >>> grid = Grid((8, 8, 8), np.eye(4))
        >>> scan, mask = np.full((8, 8, 8), -1000, np.int16), np.zeros((8, 8, 8), np.uint8)
        >>> scan[1:4], mask[5:7] = 40, 1
        >>> judge(Volume(scan, grid), Volume(mask, grid)).flip
        'i'
    """
    shares = tissue_shares(image.array, label.array, tissue_hu)
    header = header_flip(image.grid, label.grid)
    if header == "":
        return _by_tissue(image.grid, shares, tissue_hu)
    turned = _turned(image.grid, label.grid)
    if header is None and not turned:
        return Verdict(_elsewhere(image.grid, label.grid))
    flip = _trusted(header, shares)
    named = name_flip(image.grid, header or turned or "")
    text = f"its header is mirrored against the scan's along {named}"
    if header is None:
        text += " and lies elsewhere, too"
    if flip is None:
        return Verdict(f"{text}, and the tissue does not tell which is right; mend the header")
    right = f"its voxels fit when mirrored along {name_flip(image.grid, flip)}"
    text += f"; {right if flip else 'its voxels fit as they are stored'}; --mend-flips reads it so"
    return Verdict(text, flip)


def header_flip(image: Grid, label: Grid) -> str | None:
    """Voxel axes along which the label's grid is the scan's mirrored; "": the same, None: neither.

    The two may differ by 1e-3 mm at any corner.
    """
    return next((flip for flip in FLIPS if label.matches(_mirrored(image, flip))), None)


def tissue_shares(
    image: npt.NDArray[np.generic],
    label: npt.NDArray[np.generic],
    tissue_hu: tuple[float, float] = TISSUE_HU,
) -> dict[str, float]:
    """Share of the labelled voxels on tissue, by the mirroring of the label; {} for an empty one.

    Args:
        image: HU, (I, J, K).
        label: Of the same shape.
        tissue_hu: Lowest and highest HU that count as tissue.
    """
    labelled = np.flatnonzero(label.ravel(order="F"))  # a view of Fortran memory
    if not len(labelled):
        return {}
    labelled = labelled[:: len(labelled) // SAMPLE + 1]
    index = np.unravel_index(labelled, label.shape, order="F")
    shares = {}
    for flip in FLIPS:
        place = [
            size - 1 - part if axis in flip else part
            for axis, part, size in zip("ijk", index, label.shape, strict=True)
        ]
        values = image[tuple(place)]
        shares[flip] = float(np.mean((values >= tissue_hu[0]) & (values <= tissue_hu[1])))
    return shares


def name_flip(grid: Grid, flip: str) -> str:
    """Voxel axes in words.

    Example:
        >>> name_flip(Grid((2, 2, 2), np.eye(4)), "jk")
        'voxel axes j (front-back) and k (head-foot)'
    """
    names = [f"{axis} ({_DIRECTIONS[grid.axis_codes['ijk'.index(axis)]]})" for axis in flip]
    return f"voxel {'axis' if len(names) == 1 else 'axes'} {' and '.join(names)}"


def _by_tissue(
    grid: Grid, shares: Mapping[str, float], tissue_hu: tuple[float, float]
) -> Verdict | None:
    """The tissue's word on a label whose header fits."""
    if not shares or shares[""] >= ENOUGH:
        return None
    found = f"{shares['']:.0%} of the labelled voxels lie on tissue ({_span(tissue_hu)})"
    best = _winner(shares)
    if best:
        named = name_flip(grid, best)
        return Verdict(
            f"only {found}, {shares[best]:.0%} when mirrored along {named}; it looks mirrored:"
            " --mend-flips reads it so",
            best,
        )
    if shares[""] >= FEW:
        return Verdict(f"only {found}", warning=True)
    return Verdict(
        f"only {found}, the rest on air or bone, and no mirroring helps; give the scan's own label,"
        " or what counts as tissue with --tissue-hu"
    )


def _trusted(header: str | None, shares: Mapping[str, float]) -> str | None:
    """The mirroring to read a label by whose header differs; the header's own word goes first."""
    if header is not None and (not shares or shares[header] >= max(FEW, min(ENOUGH, shares[""]))):
        return header
    if header is not None and shares[""] >= ENOUGH:
        return ""
    return _winner(shares) if shares else None


def _winner(shares: Mapping[str, float]) -> str | None:
    """The mirroring that lies on tissue and does clearly better than all others."""
    second, first = sorted(shares, key=lambda flip: shares[flip])[-2:]
    clear = shares[first] >= ENOUGH and shares[first] - shares[second] >= LEAD / 2
    better = shares[first] - shares[""] >= LEAD or first == ""
    return first if clear and better else None


def _mirrored(grid: Grid, flip: str) -> Grid:
    change = np.eye(4)
    for axis in ("ijk".index(letter) for letter in flip):
        change[axis, axis], change[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ change)


def _turned(image: Grid, label: Grid) -> str | None:
    """Axes that run against the scan's, all else of the directions and spacings being equal."""
    reach = np.array(image.shape)
    for flip in FLIPS:
        signs = [-1 if axis in flip else 1 for axis in "ijk"]
        gap = np.abs(label.affine[:3, :3] - image.affine[:3, :3] * signs) * reach
        if gap.max() <= 1e-3:
            return flip
    return None


def _elsewhere(image: Grid, label: Grid) -> str:
    return (
        f"lies up to {label.distance_mm(image):.4g} mm off the scan (spacing"
        f" {_triple(label.spacing_mm)} against {_triple(image.spacing_mm)} mm, axes"
        f" {label.axis_codes} against {image.axis_codes}); both must lie on one grid within"
        " 0.001 mm: resample the label or mend its header"
    )


def _triple(values: tuple[float, float, float]) -> str:
    return "×".join(f"{value:.4g}" for value in values)


def _span(tissue_hu: tuple[float, float]) -> str:
    return f"{tissue_hu[0]:g} to {tissue_hu[1]:g} HU"
