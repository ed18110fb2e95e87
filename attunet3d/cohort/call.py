"""What a call of `infer` asks for, and who hears what becomes of its scans."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.cohort.results import KINDS, case_files
from attunet3d.cohort.scans import Scan, by_id, find_cases
from attunet3d.core import SettingsError, case_names, parse_memory
from attunet3d.datasets import Split

if TYPE_CHECKING:
    from attunet3d.inference import Predictor


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model of a call, by the arguments of `Predictor.load`; no torch comes with them."""

    models: Sequence[str]
    device: str | None = None
    settings: Sequence[str] = ()
    locator: str | None = None
    memory: int | None = None

    @property
    def devices(self) -> list[str]:
        """The devices that are listed; empty: the one that is found."""
        return [] if self.device is None else self.device.split(",")

    def load(self) -> "Predictor":
        """Load the model, on the first of several devices.

        Raises:
            UserError: It cannot be loaded.
        """
        from attunet3d.inference import Predictor

        device = next(iter(self.devices), None)
        return Predictor.load(list(self.models), device, self.settings, self.locator, self.memory)


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """Which series to read, what to write, and whether to redo what is done."""

    probabilities: bool = False
    attention: bool = False
    mask_files: bool = False
    """A mask per label as well: `CASE/LABEL.nii.gz`."""
    preview: bool = False
    """A picture per case as well."""
    dicom_seg: bool = False
    """A DICOM Segmentation of each series as well."""
    overwrite: bool = False
    series: str | None = None
    """Which of several DICOM series in a folder; see `imaging.read_volume`."""
    orthogonal: bool = False
    """Write the label maps of sheared grids on grids without shear; see `imaging.straightened`."""

    def __post_init__(self) -> None:
        if self.orthogonal and self.kinds:
            rule = "--orthogonal is for label maps only: maps stay on the scan's grid"
            raise SettingsError(rule, cure=f"leave --save-{self.kinds[0]} out")
        if self.orthogonal and self.dicom_seg:
            rule = "--dicom-seg refers to the series' own slices, not to the grid of --orthogonal"
            raise SettingsError(rule, cure="leave --orthogonal out")

    def require(self, predictor: "Predictor") -> None:
        """Refuse what a model cannot give, before its first scan.

        Raises:
            ModelError: Attention maps are asked for, and the model has no gates.
            WriteError: Masks are asked for, and a label's name cannot be that of a file.
        """
        if self.attention:
            predictor.require_attention()
        if self.mask_files:
            case_files(Path(), "any").label_masks(predictor.labels)

    @property
    def choices(self) -> dict[str, Any]:
        """What the label maps depend on, for the sidecars."""
        chosen = {"series": self.series, "orthogonal": self.orthogonal or None}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of maps that are asked for."""
        return tuple(kind for kind in KINDS if getattr(self, kind))


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1: which scans it has is a function of their ids alone.

    So parts that are done at different times or on different machines are disjoint, and together
    they have every scan.

    Example:
        >>> parts = [Shard(1, 2), Shard(2, 2)]
        >>> [[case_id for case_id in "abcdef" if part.has(case_id)] for part in parts]
        [['a', 'b', 'c', 'e', 'f'], ['d']]
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The part that a text such as "2/8" names.

        Raises:
            SettingsError: It names none.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise SettingsError(
                f"--shard {text}: must be I/N with I from 1 to N",
                value=text,
                cure="write the second of eight parts as 2/8",
            )
        return cls(number, count)

    def has(self, case_id: str) -> bool:
        """Whether a case is in this part; ids that some file systems take for one are together."""
        digest = hashlib.sha256(case_names.folded(case_id).encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()[:8]) % self.count == self.number - 1


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

    def own_scans(self) -> dict[str, list[Path]]:
        """The scans that this call does, by case id."""
        found = by_id(self.cases)
        if self.shard is None:
            return found
        return {case_id: paths for case_id, paths in found.items() if self.shard.has(case_id)}


class Events:
    """Hears what becomes of scans; this one does nothing with it."""

    def reached(self, case_id: str, share: float) -> None:
        """The share of a scan that is done, in [0, 1]."""

    def done(self, case_id: str) -> None:
        """The scan's results are written."""

    def skipped(self, case_id: str) -> None:
        """The scan was already done."""

    def failed(self, case_id: str, reason: str) -> None:
        """The scan cannot be segmented."""


class Relay(Events):
    """Passes what it hears on to `events`; what a subclass overrides is heard by it alone."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def reached(self, case_id: str, share: float) -> None:
        """Pass it on."""
        self.events.reached(case_id, share)

    def done(self, case_id: str) -> None:
        """Pass it on."""
        self.events.done(case_id)

    def skipped(self, case_id: str) -> None:
        """Pass it on."""
        self.events.skipped(case_id)

    def failed(self, case_id: str, reason: str) -> None:
        """Pass it on."""
        self.events.failed(case_id, reason)


def split_of(flags: Mapping[str, Any]) -> Split:
    """What the models that a command's flags name have seen."""
    return Split.of_models([*flags["model"], *filter(None, [flags["locator"]])])


def read_flags(flags: Mapping[str, Any], workspace: Path) -> tuple[ModelOptions, CohortCall]:
    """The model and the call that a command's flags describe.

    Args:
        flags: By name.
        workspace: See `imaging.find_scans`.

    Raises:
        SettingsError: Flags contradict each other, or name no shard or amount of memory.
        UserError: No scan was found.
    """
    options = CohortOptions(**{part.name: flags[part.name] for part in fields(CohortOptions)})
    shard = None if flags["shard"] is None else Shard.parse(flags["shard"])
    if shard is not None and flags["report"]:
        cure = "run `attunet3d report OUT_DIR` when all shards are done"
        raise SettingsError("--report: a shard does not know of the others", cure=cure)
    model = ModelOptions(
        models=flags["model"],
        device=flags["device"],
        settings=flags["set"],
        locator=flags["locator"],
        memory=parse_memory(flags["memory"]),
    )
    split = split_of(flags)
    cases = find_cases(
        flags["input"],
        flags["root"],
        flags["fold"],
        everything=flags["all"],
        split=split,
        workspace=workspace,
        apart=options.series is None,
    )
    out_dir = flags["out_dir"]
    return model, CohortCall(
        cases=cases, out_dir=out_dir, options=options, split=split, shard=shard
    )
