"""Statistics of a training set for the plan: spacings, sizes, foreground HU, label volumes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from attunet3d.core import DataError, Triple, progress, side_by_side
from attunet3d.datasets.case import Case
from attunet3d.datasets.case_files import read_case_label, read_image
from attunet3d.imaging import Grid, body_box

SAMPLE = 10_000  # foreground voxels sampled per case
QUANTILES = 201  # 0, 0.5, 1, … 100 %


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """One training case; axes are R, A, S."""

    case_id: str
    spacing_mm: Triple
    extent_mm: Triple
    body_mm: Triple
    """Extent of the box around the body."""
    label_ml: dict[int, float]
    """Volume of each label value that occurs, background left out."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Statistics of a training set."""

    cases: tuple[CaseFacts, ...]
    hu_quantiles: tuple[float, ...]
    """Quantiles of the foreground's HU at 0, 0.5, 1, … 100 %; all cases have the same weight."""

    @property
    def spacing_mm(self) -> Triple:
        """Median spacing along each axis."""
        return _median([case.spacing_mm for case in self.cases])

    @property
    def body_mm(self) -> Triple:
        """Median extent of the body along each axis."""
        return _median([case.body_mm for case in self.cases])

    @property
    def values(self) -> tuple[int, ...]:
        """Label values that occur, background left out."""
        return tuple(sorted({value for case in self.cases for value in case.label_ml}))

    def hu_window(self) -> tuple[float, float]:
        """The 0.5th and 99.5th percentiles of the foreground, in whole HU, at least 1 apart."""
        low, high = (round(self.hu_quantiles[index]) for index in (1, -2))
        return float(low), float(max(high, low + 1))

    def mean_and_deviation(self, window: tuple[float, float]) -> tuple[float, float]:
        """Mean and standard deviation of the foreground's HU, clipped to `window`.

        Example:
            >>> even = Fingerprint(cases=(), hu_quantiles=tuple(np.linspace(0.0, 100.0, 201)))
            >>> mean, deviation = even.mean_and_deviation((0, 50))
            >>> round(mean, 1), round(deviation, 1)
            (37.5, 16.1)
        """
        clipped = np.clip(self.hu_quantiles, *window)
        middle = (clipped[1:] + clipped[:-1]) / 2  # each represents half a percent of the voxels
        return float(middle.mean()), float(max(middle.std(), 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_fingerprint(
    cases: Sequence[Case],
    labels: Mapping[int, str],
    workers: int | None = None,
    ignored: int | None = None,
) -> Fingerprint:
    """Read labelled cases and measure them.

    Args:
        cases: Labelled cases.
        labels: Names by label value.
        workers: Cases read at a time; None: up to four.
        ignored: The label value of unlabelled voxels.

    Raises:
        DataError: There is no case, or nothing is labelled in any of them.
        UserError: A file cannot be read.
    """
    workers = workers or side_by_side(len(cases))
    with (
        ThreadPoolExecutor(workers) as pool,
        progress(len(cases), "planning") as bar,
    ):
        measured = []
        for result in pool.map(partial(_measure, labels=labels, ignored=ignored), cases):
            measured.append(result)
            bar.update()
    samples = [hu for _, hu in measured if len(hu)]
    if not samples:
        raise DataError(
            f"{len(cases)} training cases: nothing is labelled in any of them",
            cure="check the manifest",
        )
    # Resampled to one length, so that every case has the same weight.
    even = np.linspace(0, 1, QUANTILES)
    pooled = np.concatenate([np.quantile(hu, np.linspace(0, 1, SAMPLE)) for hu in samples])
    quantiles = np.quantile(pooled, even)
    return Fingerprint(
        cases=tuple(facts for facts, _ in measured),
        hu_quantiles=tuple(round(float(value), 2) for value in quantiles),
    )


def _measure(
    case: Case, labels: Mapping[int, str], ignored: int | None
) -> tuple[CaseFacts, npt.NDArray[np.float32]]:
    """The facts of a case, and the HU of a sample of its labelled voxels."""
    image = read_image(case)
    label = read_case_label(case, image, labels)
    if label.array.shape != image.array.shape:
        raise DataError(
            f"case {case.id}: its label has shape {label.array.shape}, its scan"
            f" {image.array.shape}",
            path=case.label,
            cure="check the data set with attunet3d manifest",
        )
    flat = label.array.ravel(order="F")
    if ignored is not None:
        flat = np.where(flat == ignored, 0, flat)
    counts = np.bincount(flat, minlength=2)
    labelled = np.flatnonzero(flat)
    labelled = labelled[:: len(labelled) // SAMPLE + 1]
    place = np.unravel_index(labelled, label.array.shape, order="F")
    whole = image.grid.oriented("RAS")
    facts = CaseFacts(
        case_id=case.id,
        spacing_mm=whole.spacing_mm,
        extent_mm=_extent_mm(whole),
        body_mm=_extent_mm(image.grid.cropped(body_box(image)).oriented("RAS")),
        label_ml={
            int(value): round(float(counts[value] * image.grid.voxel_volume_ml), 3)
            for value in np.flatnonzero(counts)
            if value
        },
    )
    return facts, image.array[place].astype(np.float32)


def _extent_mm(grid: Grid) -> Triple:
    a, b, c = (size * step for size, step in zip(grid.shape, grid.spacing_mm, strict=True))
    return a, b, c


def _median(triples: Sequence[Triple]) -> Triple:
    a, b, c = (round(float(value), 4) for value in np.median(np.array(triples), axis=0))
    return a, b, c
