"""Many scans and a folder of results: the order of events that all engines share.

An engine is what segments the scans: this process (`here`), or others (see `devices` and
`ray_engine`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from attunet3d.cohort import outcome, results
from attunet3d.cohort.call import CohortCall, CohortOptions, Events
from attunet3d.cohort.outcome import Outcome
from attunet3d.cohort.scan_loop import ScanLoop
from attunet3d.cohort.scans import Scan
from attunet3d.cohort.statistics_table import StatisticsTable
from attunet3d.core import Progress, UserError, lock, locked_folder, progress
from attunet3d.datasets import Split
from attunet3d.inference import Predictor

Engine = Callable[[Mapping[str, list[Path]], Events], None]
"""Segments scans, by case id, and tells what becomes of them."""
_log = logging.getLogger(__name__)


class Tally(Events):
    """Counts what becomes of the scans, says which failed, and moves the bar."""

    def __init__(self, bar: Progress, table: StatisticsTable | None = None) -> None:
        self.outcome, self._bar, self._table = Outcome(), bar, table
        self._reached: dict[str, float] = {}

    def reached(self, case_id: str, share: float) -> None:
        """Move the bar; a scan that is begun again moves it when it is beyond where it was."""
        before, share = self._reached.get(case_id, 0.0), min(1.0, share)
        if share > before:
            self._reached[case_id] = share
            self._bar.update(share - before)

    def done(self, case_id: str) -> None:
        """Count it, and take it into the table."""
        self.outcome.done.append(case_id)
        self._end(case_id)
        if self._table is not None:
            with _told("statistics.csv"):
                self._table.add(case_id)

    def skipped(self, case_id: str) -> None:
        """Count it."""
        self.outcome.skipped.append(case_id)
        self._end(case_id)

    def failed(self, case_id: str, reason: str) -> None:
        """Count it, and say why."""
        self.outcome.fail(case_id, reason)
        self._end(case_id)

    def _end(self, case_id: str) -> None:
        self.reached(case_id, 1.0)
        self._reached.pop(case_id, None)


def segment_cohort(
    predictor: Predictor,
    cases: Sequence[Scan],
    out_dir: Path,
    options: CohortOptions | None = None,
    split: Split | None = None,
) -> Outcome:
    """Segment scans into `out_dir`; see `results` for what lies there afterwards.

    Args:
        predictor: The model.
        cases: Case ids and paths; an id that comes twice fails.
        out_dir: Made when missing; no other process may write to it meanwhile.
        options: What else to write.
        split: What the model has seen, for the sidecars and a warning.

    Returns:
        What was done now, what was done already, and what failed and why.

    Raises:
        ModelError: Attention maps are asked for, and the model has no gates.
        WriteError: `out_dir` cannot be made, another process writes to it, or masks are asked for
            and a label's name cannot be that of a file.
    """
    call = CohortCall(
        cases=cases,
        out_dir=Path(out_dir),
        options=options or CohortOptions(),
        split=split or Split(),
    )
    return segment_call(call, here(predictor, call))


def here(predictor: Predictor, call: CohortCall) -> Engine:
    """The engine that is this process.

    Raises:
        ModelError: Attention maps are asked for, and the model has no gates.
        WriteError: Masks are asked for, and a label's name cannot be that of a file.
    """
    call.options.require(predictor)

    def run(found: Mapping[str, list[Path]], events: Events) -> None:
        ScanLoop(predictor, call, events).run(found.items())

    return run


def segment_call(call: CohortCall, engine: Engine) -> Outcome:
    """Segment the scans of a call by an engine, one call at a time per folder (and shard).

    Raises:
        WriteError: The folder cannot be made, or another process writes to it.
        UserError: The engine cannot begin.
    """
    found = call.own_scans()
    if call.split.seen(list(found)):
        _log.warning("%s", call.split.remark(list(found)))
    with _held(call) as write_tables:
        results.sweep(call.out_dir)
        table = StatisticsTable(call.out_dir) if call.shard is None else None
        with progress(len(found), "infer", "scan") as bar:
            tally = Tally(bar, table)
            engine(found, tally)
        write_tables(found, tally.outcome.failures)
    return tally.outcome


WriteTables = Callable[[Mapping[str, list[Path]], Mapping[str, str]], None]


@contextmanager
def _held(call: CohortCall) -> Iterator[WriteTables]:
    """Hold the output folder; give what writes failures and statistics of the cases tried."""
    out_dir = call.out_dir

    def write(tried: Mapping[str, list[Path]], failures: Mapping[str, str]) -> None:
        """Write both tables, under the folder's lock where shards share it."""
        with brief():
            with _told("failures.json"):
                if call.shard is None:
                    outcome.write_failures(out_dir, failures)
                else:
                    outcome.merge_failures(out_dir, tried, failures)
            with _told("statistics.csv"):
                StatisticsTable(out_dir).write()

    if call.shard is None:
        brief: Callable[[], AbstractContextManager[None]] = nullcontext
        with locked_folder(out_dir, "infer"):
            yield write
        return
    command = f"infer --shard {call.shard}"
    with lock.locked_part(out_dir, command, str(call.shard)) as brief:
        yield write


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Log that a file of the folder cannot be written: a full disk fails no case that is done."""
    try:
        yield
    except (UserError, OSError) as error:
        _log.error("%s", outcome.failure_reason(error), extra={"case": name})
