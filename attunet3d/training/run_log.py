"""The numbers of a run as they come: metrics.csv and TensorBoard.

A row per validation, and one of the training loss alone every some steps between them.
"""

import csv
import io
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attunet3d.core import whole_file
from attunet3d.training import distributed
from attunet3d.training.components import Logger

NAME = "metrics.csv"
Row = dict[str, str | float | None]


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.csv`; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file)]


class Stopwatch:
    """Measures the time of a run and the share of it that was spent waiting for data.

    Attributes:
        waiting_seconds: In all.
    """

    def __init__(self) -> None:
        self.waiting_seconds = 0.0
        self._began = self._lap = time.monotonic()
        self._waited_before = 0.0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the block as waiting."""
        began = time.monotonic()
        yield
        self.waiting_seconds += time.monotonic() - began

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def waiting_share(self) -> float:
        """Share of the time that was spent waiting."""
        return self.waiting_seconds / max(self.seconds, 1e-9)

    def lap(self) -> dict[str, float]:
        """`seconds` since the last lap, and the share of them that was `waiting`."""
        now, waited = time.monotonic(), self.waiting_seconds - self._waited_before
        seconds, self._lap, self._waited_before = now - self._lap, now, self.waiting_seconds
        return {"seconds": round(seconds, 2), "waiting": round(waited / max(seconds, 1e-9), 3)}


class RunLog:
    """Writes a run's numbers; use it in a `with` statement.

    Args:
        run_dir: The run's folder.
        step: Where the run begins; rows of later steps, left by a run that was killed, go.
        logger: Gets each row, too.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with RunLog(Path(folder), 0) as log:
        ...         log.write({"step": 5, "loss": 0.25})
        ...     read_rows(Path(folder) / NAME)
        [{'step': '5', 'loss': '0.25'}]
    """

    def __init__(self, run_dir: Path, step: int, logger: Logger | None = None) -> None:
        self.run_dir, self.logger = run_dir, logger
        self.writer: Any = None
        found = read_rows(run_dir / NAME)
        self.rows = [row for row in found if int(float(row["step"] or 0)) <= step]
        self.step = step
        if len(self.rows) < len(found) and distributed.is_first():
            self._save()

    def __enter__(self) -> "RunLog":
        if not distributed.is_first():
            return self
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: events of later steps, left by a run that was killed, are hidden
        self.writer = SummaryWriter(str(self.run_dir), purge_step=self.step + 1)
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(
        self,
        row: Mapping[str, Any],
        by_scale: Sequence[Tensor] = (),
        pictures: Mapping[str, npt.NDArray[np.uint8]] = MappingProxyType({}),
    ) -> None:
        """Add a row; it has a `step`. A value of None is left blank. One process alone writes.

        Args:
            row: For metrics.csv, TensorBoard and the logger of one's own.
            by_scale: For TensorBoard, the loss of each scale, finest first.
            pictures: For TensorBoard, (rows, columns, 3) by name.
        """
        if self.writer is None:
            return
        self.rows.append(dict(row))
        self._save()
        scalars = {name: value for name, value in row.items() if name != "step"}
        if "waiting" in row:
            scalars["waiting_seconds"] = row["waiting"] * row["seconds"]
        if len(by_scale) > 1:
            scalars |= {f"loss_by_scale/{n}": float(loss) for n, loss in enumerate(by_scale, 1)}
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, int(row["step"]))
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, int(row["step"]), dataformats="HWC")
        self.writer.flush()
        if self.logger is not None:
            self.logger(dict(row))

    def _save(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        whole_file.write_text(self.run_dir / NAME, text.getvalue())
