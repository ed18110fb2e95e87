"""What a call of `infer` would do, without writing anything: memory, mode, precision and time.

Each scan is read and brought to the network's grid, as only then its size there is known. The
network runs over one window; the time of a scan follows from how many there are of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from attunet3d.cohort.call import CohortCall
from attunet3d.cohort.outcome import Outcome
from attunet3d.cohort.run import Tally
from attunet3d.cohort.scan_loop import ScanLoop
from attunet3d.core import GIGABYTE, available_bytes, progress
from attunet3d.imaging import NetworkImage, Volume, to_network_grid
from attunet3d.inference import Forecast, Predictor

BYTES_PER_VOXEL = 6  # of a scan: int16, its label map, and room to read and write


def dry_run(predictor: Predictor, call: CohortCall) -> Iterator[str]:
    """Tell what `segment_call` would do, a line per scan and one for all.

    Args:
        predictor: The model.
        call: Its output folder need not exist.

    Yields:
        Lines of text.

    Raises:
        UserError: The model cannot give what is asked for.
    """
    options = call.options
    options.require(predictor)
    found = call.own_scans()
    with progress(len(found), "infer --dry-run", "scan") as bar:
        tally = Tally(bar)
        loop = ScanLoop(predictor, call, tally)
        forecasts = []
        for one in loop.todo(found.items()):
            try:
                volume = predictor.read(one.scan, options.series)
                image = to_network_grid(volume, predictor.config.preprocessing, predictor.device)
                network = predictor.inferer.forecast(image.tensor, attention=options.attention)
                own = volume.array.size * BYTES_PER_VOXEL + 4 * image.tensor.numel()
                forecasts.append(replace(network, bytes=network.bytes + own))
                yield f"{one.files.case_id}: {_line(volume, image, forecasts[-1])}"
            except Exception as error:
                loop.fail(one.files.case_id, error)
            else:
                bar.update()
    yield _total(forecasts, tally.outcome, predictor)


def _line(volume: Volume, image: NetworkImage, found: Forecast) -> str:
    scan, grid = (" × ".join(map(str, grid.shape)) for grid in (volume.grid, image.grid))
    how = "one pass" if found.mode == "whole" else f"{found.windows} windows"
    return (
        f"{scan} voxels, {grid} for the network; {how} in {found.precision},"
        f" {found.bytes / GIGABYTE:.1f} GB, {found.seconds:.0f} s"
        f"{''.join(f'; {note}' for note in found.notes)}"
    )


def _total(forecasts: Sequence[Forecast], outcome: Outcome, predictor: Predictor) -> str:
    seconds = sum(case.seconds for case in forecasts)
    parts = [f"{len(forecasts)} to do in about {seconds / 60:.1f} min of network time"]
    parts += [f"{len(outcome.skipped)} already done"] * bool(outcome.skipped)
    parts += [f"{len(outcome.failures)} would fail"] * bool(outcome.failures)
    if forecasts:
        most, free = max(case.bytes for case in forecasts), available_bytes(predictor.device)
        parts.append(f"{most / GIGABYTE:.1f} GB at most, {free / GIGABYTE:.1f} GB are free")
    return "; ".join(parts) + "; nothing was written"
