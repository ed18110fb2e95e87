"""When a pool gives up: workers that end while they load the model, with and without others."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attunet3d.cohort.pool import Pool, PoolWorker
from attunet3d.core import DeviceError


class Scripted(PoolWorker):
    """Ends while it loads the model, but for the first, which is asked when it did a scan."""

    def hear(self) -> list[tuple[Any, ...]]:
        if self.number:
            raise EOFError
        return [("take", True), ("done", "case")]

    def answer(self, item: object) -> None:
        pass

    def kill(self) -> None:
        pass


def run(order: Sequence[int], folder: Path) -> list[str]:
    """The cases settled, where the workers of these numbers tell something or end in turn."""
    settled: list[str] = []
    turns = iter(order)

    class Scans:
        events = SimpleNamespace(done=lambda case: None)

        @property
        def finished(self) -> bool:
            return len(settled) == order.count(0)

        def take(self, name: str, *, idle: bool) -> None: ...

        def lost(self, name: str) -> None: ...

        def settled(self, name: str, case: str) -> None:
            settled.append(case)

    scans: Any = Scans()
    pool = Pool(2, lambda n: Scripted(n, "cpu"), lambda w: [w[next(turns)]], scans, folder)
    pool.run()
    return settled


def test_others_go_on_where_a_worker_ends_again_and_again_as_it_loads(tmp_path: Path) -> None:
    assert run([1, 1, 0, 1, 1, 0, 1, 1, 0], tmp_path) == ["case"] * 3


def test_three_ends_in_a_row_while_nothing_is_done_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="processes end while they load the model"):
        run([1, 1, 1, 0], tmp_path)
