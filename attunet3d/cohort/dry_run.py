"""What a call of `infer` would do, without writing anything: memory, mode, precision and time.

Each scan is read and brought to the network's grid, as only then its size there is known. The
network runs over one window; the time of a scan follows from how many there are of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attunet3d.cohort import scans
from attunet3d.cohort.call import CohortCall
from attunet3d.cohort.options import CohortOptions
from attunet3d.cohort.results import Outcome
from attunet3d.cohort.run import Tally
from attunet3d.cohort.scan_loop import ScanLoop
from attunet3d.cohort.scans import Scan
from attunet3d.core import GIGABYTE, Size, available_bytes, progress
from attunet3d.imaging import to_network_grid
from attunet3d.inference import Forecast, Predictor

BYTES_PER_VOXEL = 6  # of a scan: int16, its label map, and room to read and write


@dataclass(frozen=True, kw_only=True)
class CaseForecast:
    """What would be done with one scan.

    Args:
        case_id: The case.
        shape: Voxels of the scan.
        grid: Voxels of the network's grid.
        network: How the network would run over it.
        bytes: Peak memory, the scan included; with a locator, at most so much.
    """

    case_id: str
    shape: Size
    grid: Size
    network: Forecast
    bytes: int

    def __str__(self) -> str:
        scan, grid = (" × ".join(map(str, shape)) for shape in (self.shape, self.grid))
        how = "one pass" if self.network.mode == "whole" else f"{self.network.windows} windows"
        return (
            f"{self.case_id}: {scan} voxels, {grid} for the network; {how} in"
            f" {self.network.precision}, {self.bytes / GIGABYTE:.1f} GB,"
            f" {self.network.seconds:.0f} s{''.join(f'; {note}' for note in self.network.notes)}"
        )


def dry_run(
    predictor: Predictor, cases: Sequence[Scan], out_dir: Path, options: CohortOptions
) -> Iterator[str]:
    """Tell what `segment_cohort` would do, a line per scan and one for all.

    Args:
        predictor: The model.
        cases: Case ids and paths.
        out_dir: Only read; need not exist.
        options: What would be written.

    Yields:
        Lines of text.

    Raises:
        ModelError: Attention maps are asked for, and the model has no gates.
    """
    if options.attention:
        predictor.require_attention()
    with progress(len(cases), "infer --dry-run", "scan") as bar:
        tally = Tally(bar)
        call = CohortCall(cases=cases, out_dir=out_dir, options=options)
        loop = ScanLoop(predictor, call, tally)
        forecasts = []
        for job in loop.jobs(scans.by_id(cases).items()):
            try:
                forecasts.append(_forecast(predictor, job.files.case_id, job.scan, options))
                yield str(forecasts[-1])
            except Exception as error:
                loop.fail(job.files.case_id, error)
            else:
                bar.update()
    yield from _total(forecasts, tally.outcome, predictor)


def _forecast(
    predictor: Predictor, case_id: str, scan: Path, options: CohortOptions
) -> CaseForecast:
    volume = predictor.read(scan, options.series)
    image = to_network_grid(volume, predictor.config.preprocessing, predictor.device)
    network = predictor.inferer.forecast(image.tensor, attention=options.attention)
    own = volume.array.size * BYTES_PER_VOXEL
    return CaseForecast(
        case_id=case_id,
        shape=volume.grid.shape,
        grid=image.grid.shape,
        network=network,
        bytes=network.bytes + own + 4 * image.tensor.numel(),
    )


def _total(
    forecasts: Sequence[CaseForecast], outcome: Outcome, predictor: Predictor
) -> Iterator[str]:
    seconds = sum(case.network.seconds for case in forecasts)
    parts = [f"{len(forecasts)} to do in about {seconds / 60:.1f} min of network time"]
    parts += [f"{len(outcome.skipped)} done before"] * bool(outcome.skipped)
    parts += [f"{len(outcome.failures)} would fail"] * bool(outcome.failures)
    if forecasts:
        most, free = max(case.bytes for case in forecasts), available_bytes(predictor.device)
        parts.append(f"{most / GIGABYTE:.1f} GB at most, {free / GIGABYTE:.1f} GB are free")
    yield "; ".join(parts) + "; nothing was written"
