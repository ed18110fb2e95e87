"""Who segments which scan: a queue from which workers take, and what happens when one is lost.

The rules are here and the processes elsewhere (`devices` has those of one machine). A worker asks
for scans and tells what became of them. When it is lost, the scans that it held go back. Such a
scan is done again by a worker that holds no other, so a scan that kills its workers is known, and
is listed as failed at its third attempt; scans that were only read beside it lose nothing.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from attunet3d.cohort.call import Events
from attunet3d.cohort.scan_loop import Item

MOST_ATTEMPTS = 3


class Dispatcher:
    """Hands out scans, and keeps account of them; `events` hears once what became of each.

    Example:
        >>> dispatcher = Dispatcher({"a": [Path("a.nii.gz")]}, Events())
        >>> dispatcher.take("worker 1", idle=True)
        ('a', [PosixPath('a.nii.gz')])
        >>> dispatcher.lost("worker 1")
        >>> dispatcher.take("worker 2", idle=True)
        ('a', [PosixPath('a.nii.gz')])
        >>> dispatcher.finished
        False
    """

    def __init__(self, scans: Mapping[str, list[Path]], events: Events) -> None:
        self.events = events
        self._fresh, self._again = deque(scans.items()), deque[Item]()
        self._held: dict[str, dict[str, Item]] = {}  # by worker and case
        self._attempts: dict[str, int] = {}  # of scans whose worker was lost

    @property
    def finished(self) -> bool:
        """Whether nothing is left and no worker holds anything."""
        return not (self._fresh or self._again or any(self._held.values()))

    def take(self, worker: str, *, idle: bool) -> Item | None:
        """The next scan for a worker, which is idle if it holds none; None: there is none now."""
        held = self._held.setdefault(worker, {})
        if any(case_id in self._attempts for case_id in held):
            return None  # it has one to itself
        if self._fresh:
            item = self._fresh.popleft()
        elif self._again and idle:
            item = self._again.popleft()
        else:
            return None
        held[item[0]] = item
        return item

    def settled(self, worker: str, case_id: str) -> None:
        """Note that a worker is through with a scan."""
        self._held.get(worker, {}).pop(case_id, None)

    def lost(self, worker: str) -> None:
        """Take back the scans of a worker that ended."""
        for case_id, item in self._held.pop(worker, {}).items():
            self._attempts[case_id] = self._attempts.get(case_id, 0) + 1
            if self._attempts[case_id] < MOST_ATTEMPTS:
                self._again.append(item)
            else:
                self.events.failed(
                    case_id,
                    f"the process that segmented it ended {MOST_ATTEMPTS} times; it may have run"
                    " out of memory",
                )
