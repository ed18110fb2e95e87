"""Finds CT series in folders of any depth, distinguishes and checks them, reads them in HU.

The frames of a stack form one volume: they share series, frame of reference, orientation and size.
Other objects in the folder (reports, contours, localisers, images of other modalities) are skipped
with a warning. A series whose voxels would get wrong positions or values is refused.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attunet3d.core import Array, DataError, Floats
from attunet3d.imaging.dicom_file import Frame, read_header
from attunet3d.imaging.dicom_pixels import hounsfield
from attunet3d.imaging.geometry import LPS_TO_RAS, Grid

MOST_SLICES = 10_000
MOST_FILES = 200_000
LARGEST_GAP_MM = 100.0
AGAIN = "export the whole series again"


@dataclass(frozen=True, eq=False)
class Stack:
    """The frames of one volume, bottom to top along the normal of the slices."""

    frames: tuple[Frame, ...]
    place: int = 1
    """Position in the list of a folder's stacks, from 1."""

    @property
    def number(self) -> int | None:
        """The series' number."""
        return self.frames[0].file.number

    @property
    def paths(self) -> list[Path]:
        """The files in the order of the slices."""
        return list(dict.fromkeys(frame.file.path for frame in self.frames))

    @property
    def normal(self) -> Floats:
        """Unit vector from slice to slice in LPS, perpendicular to their rows and columns."""
        orientation = np.array(self.frames[0].orientation)
        normal: Floats = np.cross(orientation[:3], orientation[3:])
        return normal

    def matches(self, wanted: str) -> bool:
        """Whether `wanted` selects this stack; see `find_series`."""
        file = self.frames[0].file
        described = bool(wanted) and wanted.casefold() in file.description.casefold()
        return wanted in (f"@{self.place}", str(file.number), file.series) or described

    def __str__(self) -> str:
        pixels = self.frames[0].file.pixels
        number = "" if self.number is None else f"number {self.number}, "
        return (
            f"@{self.place} ({number}{len(self.frames)} slices of {pixels.columns}×{pixels.rows})"
        )


def read_series(
    folder: Path, max_voxels: int, series: str | None = None
) -> tuple[Array, Grid, list[str]]:
    """Read one CT series.

    The third axis runs through the slices' positions, so a tilted gantry gives a sheared grid, not
    a shifted scan.

    Args:
        folder: The folder of the series, or one above it.
        max_voxels: Largest volume accepted.
        series: Selects one of several; see `find_series`.

    Returns:
        Voxels (I, J, K) in HU, Fortran order, int16 where exact, else float32; their grid in RAS;
        warnings.

    Raises:
        DataError: There is no CT series or several, slices are missing or doubled, a tag is missing
            or damaged, or the volume is too large.
    """
    stack, warnings = find_series(folder, series)
    pixels = stack.frames[0].file.pixels
    size = pixels.columns, pixels.rows, len(stack.frames)
    if size[0] * size[1] * size[2] > max_voxels:
        rule = f"{size[0]}×{size[1]}×{size[2]} voxels; at most {max_voxels} are read"
        raise DataError(rule, path=folder, value=size, cure="crop it")
    step, odd = _step(stack, folder)
    first = stack.frames[0]
    orientation = np.array(first.orientation).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = LPS_TO_RAS @ orientation[0] * first.spacing[1]
    affine[:3, 1] = LPS_TO_RAS @ orientation[1] * first.spacing[0]
    affine[:3, 2] = LPS_TO_RAS @ step
    affine[:3, 3] = LPS_TO_RAS @ np.array(first.position)
    if not all(frame.file.scaled for frame in stack.frames):
        odd.append("no RescaleSlope is given; stored values are taken as HU")
    return hounsfield(stack.frames), Grid(size, affine), [*warnings, *odd]


def find_series(folder: Path, series: str | None = None) -> tuple[Stack, list[str]]:
    """Find the CT series in a folder, or the one of several that `series` selects.

    Sub-folders of any depth are searched only if no file of the folder itself is a CT image. Series
    are told apart by SeriesInstanceUID, frame of reference, size and orientation, so that a series
    with two orientations counts as two.

    Args:
        folder: The folder.
        series: SeriesNumber, SeriesInstanceUID or a part of SeriesDescription, in any case; or the
            position in the list that the error message gives, as "@2". None: there is only one.

    Returns:
        The stack, sorted along its normal, and a warning that lists the files that were skipped.

    Raises:
        DataError: There is no CT image, none that `series` selects, or more than one; the message
            lists them by position, number and size, never by a text that may name a person.
    """
    stacks, others = _all_stacks(folder)
    passed = ", ".join(f"{count} × {kind}" for kind, count in sorted(others.items()))
    if not stacks:
        only = f"holds no CT image, only {passed}" if others else "holds no scan and no DICOM file"
        raise DataError(only, path=folder, cure="give the folder of a CT series, or scan files")
    warnings = [f"passed over: {passed}"] if others else []
    found = [stack for stack in stacks if series is None or stack.matches(series)]
    listed = ", ".join(map(str, stacks))
    if not found:
        rule = f"holds no series {series!r}; there is {listed}"
        raise DataError(rule, path=folder, value=series, cure="give --series the number of one")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        rule = f"holds {len(found)} CT series: {listed}"
        cure = "choose one by number or as --series @1, or keep one"
        raise DataError(rule, path=folder, value=len(found), cure=cure)
    return found[0], warnings


def series_files(folder: Path) -> list[list[Path]]:
    """The files of each CT series in a folder, in the order of `find_series`.

    Raises:
        DataError: A file cannot be read or is damaged.
    """
    return [stack.paths for stack in _all_stacks(folder)[0]]


def series_folders(folder: Path) -> list[Path]:
    """The folders at or below `folder` that contain a CT series, one for each series.

    Only the first CT image of each folder is read. Folders that contain parts of one series, as on
    discs with few files per folder, are replaced by their common parent.

    Raises:
        DataError: A folder cannot be read.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or not path.is_file():  # opening a named pipe may never end
                continue
            try:
                frames, _ = read_header(path)
            except (DataError, OSError):  # reading it as a series will give the reason
                found[place].append(Path(place))
                break
            if frames:
                found[frames[0].file.series].append(Path(place))
                break
    return sorted({Path(os.path.commonpath(places)) for places in found.values()})


def _files(folder: Path, *, deep: bool) -> Iterator[Path]:
    """Regular files that are not hidden in a folder, or also in all below it, sorted."""
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _refuse(error: OSError) -> None:
    raise DataError(
        f"cannot be read ({error.strerror})", path=error.filename, cure="check its permissions"
    )


def _all_stacks(folder: Path) -> tuple[list[Stack], Counter[str]]:
    """The stacks of a folder, or if it has none itself, of all folders below."""
    stacks, others = _stacks(_files(folder, deep=False), folder)
    return (stacks, others) if stacks else _stacks(_files(folder, deep=True), folder)


def _stacks(files: Iterable[Path], folder: Path) -> tuple[list[Stack], Counter[str]]:
    """The CT stacks in some files, and the number of other objects by kind."""
    groups: dict[object, list[Frame]] = defaultdict(list)
    others: Counter[str] = Counter()
    count = 0
    for number, path in enumerate(files):
        try:
            frames, kind = read_header(path)
        except OSError as error:
            _refuse(error)
        if kind:
            others[kind] += 1
        for frame in frames:
            pixels, orientation = frame.file.pixels, np.round(frame.orientation, 3) + 0.0
            key = frame.file.series, frame.file.frame_of_reference, pixels.rows, pixels.columns
            groups[*key, *orientation].append(frame)
        count += len(frames)
        if count > MOST_SLICES or number > MOST_FILES:
            rule = f"more than {MOST_SLICES} slices or {MOST_FILES} files"
            raise DataError(rule, path=folder, cure="give the folder of one series")
    stacks = [_sorted(frames) for frames in groups.values()]
    stacks.sort(key=lambda stack: (stack.number or 0, -len(stack.frames)))
    return [replace(stack, place=place) for place, stack in enumerate(stacks, 1)], others


def _sorted(frames: list[Frame]) -> Stack:
    normal = Stack(tuple(frames)).normal
    heights = np.array([frame.position for frame in frames]) @ normal
    return Stack(tuple(frames[index] for index in np.argsort(heights, kind="stable")))


def _step(stack: Stack, folder: Path) -> tuple[Floats, list[str]]:
    """The vector from slice to slice in LPS mm, and warnings about the slices."""
    frames = stack.frames
    spacings = np.array([frame.spacing for frame in frames])
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        low, high = spacings.min(), spacings.max()
        rule = f"its slices differ in PixelSpacing ({low:g} to {high:g} mm)"
        raise DataError(rule, path=folder, value=(low, high), cure=AGAIN)
    if len(frames) == 1:
        height = frames[0].gap or frames[0].thickness
        if not height:
            rule = "one DICOM slice that does not give its SliceThickness"
            raise DataError(rule, path=folder, cure="give a series of slices")
        warning = f"one DICOM slice; its thickness is the header's ({abs(height):g} mm)"
        return stack.normal * abs(height), [warning]
    positions = np.array([frame.position for frame in frames])
    steps = np.diff(positions, axis=0)
    mean: Floats = (positions[-1] - positions[0]) / (len(positions) - 1)
    gap = float(np.linalg.norm(mean))
    doubled = int((steps @ stack.normal < 1e-3).sum())
    if doubled:
        rule = f"{doubled} of its {len(frames)} slices lie where others lie"
        cure = "it is exported twice or holds several phases; keep one slice for each position"
        raise DataError(rule, path=folder, value=doubled, cure=cure)
    apart = float(np.linalg.norm(steps - mean, axis=1).max())
    if apart > max(0.1 * gap, 0.05):
        rule = f"DICOM slices are missing or uneven (up to {apart:.2f} mm off)"
        raise DataError(rule, path=folder, value=apart, cure=AGAIN)
    _check_gap(gap, frames, folder)
    return mean, _ends(frames)


def _check_gap(gap: float, frames: tuple[Frame, ...], folder: Path) -> None:
    if gap > LARGEST_GAP_MM:
        rule = f"slices lie {gap:g} mm apart: at most {LARGEST_GAP_MM:g} mm"
        cure = "positions may be in micrometres; export the series again"
        raise DataError(rule, path=folder, value=gap, cure=cure)
    said = max(abs(frame.gap or 0.0) for frame in frames)
    if said and gap > 1.5 * said:
        rule = f"slices are missing: they lie {gap:g} mm apart, SpacingBetweenSlices is {said:g}"
        raise DataError(rule, path=folder, value=gap, cure=AGAIN)


def _ends(frames: tuple[Frame, ...]) -> list[str]:
    """Warnings by the tags of slices that are missing at the ends."""
    expected = max((frame.file.expected or 0 for frame in frames), default=0)
    if expected > len(frames):
        return [f"{len(frames)} slices of the {expected} that ImagesInAcquisition gives"]
    numbers = sorted({frame.file.instance for frame in frames if frame.file.instance is not None})
    consecutive = len(numbers) == len(frames) and numbers[-1] - numbers[0] == len(frames) - 1
    if consecutive and numbers[0] > 1:
        return [f"instance numbers begin at {numbers[0]}: slices may be missing at an end"]
    return []
