"""What a call of `infer` asks for, and who hears what becomes of its scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attunet3d.cohort.options import CohortOptions
from attunet3d.cohort.scans import Scan
from attunet3d.cohort.shard import Shard
from attunet3d.datasets import Split


@dataclass(frozen=True, kw_only=True)
class CohortCall:
    """The scans of a call and where their results go; equal for all its workers."""

    cases: Sequence[Scan]
    """All scans, those of other shards too; an id that comes twice fails."""
    out_dir: Path
    options: CohortOptions = field(default_factory=CohortOptions)
    split: Split = field(default_factory=Split)
    """What the model has seen, for the sidecars and a warning."""
    shard: Shard | None = None
    """The part that this call does; None: all."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], cases: Sequence[Scan], split: Split) -> "CohortCall":
        """The call that a command's flags describe.

        Raises:
            SettingsError: Flags contradict each other, or name no shard.
        """
        shard = None if flags["shard"] is None else Shard.parse(flags["shard"])
        options = CohortOptions.of(flags)
        return cls(cases=cases, out_dir=flags["out_dir"], options=options, split=split, shard=shard)


class Events:
    """Hears what becomes of scans; this one does nothing with it."""

    def reached(self, case_id: str, share: float) -> None:
        """The share of a scan that is done, in [0, 1]."""

    def done(self, case_id: str) -> None:
        """The scan's results are written."""

    def skipped(self, case_id: str) -> None:
        """The scan was done before."""

    def failed(self, case_id: str, reason: str) -> None:
        """The scan cannot be segmented."""
