"""What a call of `infer` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from attunet3d.cohort import results
from attunet3d.core import SettingsError


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """Which series to read, what to write, and whether to redo what is done."""

    probabilities: bool = False
    attention: bool = False
    mask_files: bool = False
    """A mask per label as well: `CASE/LABEL.nii.gz`."""
    preview: bool = False
    """A picture per case as well."""
    overwrite: bool = False
    series: str | None = None
    """Which of several DICOM series in a folder; see `imaging.read_volume`."""
    orthogonal: bool = False
    """Write the label maps of sheared grids on grids without shear; see `imaging.straightened`."""

    def __post_init__(self) -> None:
        if self.orthogonal and self.kinds:
            rule = "--orthogonal is for label maps only: maps stay on the scan's grid"
            raise SettingsError(rule, cure=f"leave --save-{self.kinds[0]} out")

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "CohortOptions":
        """The options among a command's flags."""
        return cls(**{part.name: flags[part.name] for part in fields(cls)})

    @property
    def choices(self) -> dict[str, Any]:
        """What the label maps depend on, for the sidecars."""
        chosen = {"series": self.series, "orthogonal": self.orthogonal or None}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of maps that are asked for."""
        return tuple(kind for kind in results.KINDS if getattr(self, kind))
