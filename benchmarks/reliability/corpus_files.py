"""A corpus of odd, damaged and hostile NIfTI files, each with what must become of it.

The expectations are those of the NIfTI-1/2 standards and of the rules in
`attunet3d.imaging.nifti_header`; none was taken from what a reader does. An entry says

    expect          accept | accept-warn | refuse
    either          the other is right as well, when clear: a mask that is right, or a refusal
    ball_centre_mm  where the bright ball (300 HU) lies, RAS mm
    truth           a .npz with the voxels in HU and, where the header tells it, the affine in mm
    must_not_leak   strings that no output and no message may hold
    no_scan         sound NIfTI, but no scan: a general reader may take it
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.nifti_bytes import (
    SPACING,
    Array,
    Scan,
    packed,
    placed,
    sform,
    stored,
)

LPS = np.diag([-1.0, -1.0, 1.0]) @ np.diag(SPACING)  # as most CT comes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a corpus; see above."""

    file: str
    expect: str
    why: str
    group: str = "others"
    either: bool = False
    ball_centre_mm: list[float] | None = None
    truth: str | None = None
    must_not_leak: tuple[str, ...] = ()
    no_scan: bool = False


def at(name: str, linear: Array = LPS, **options: Any) -> Scan:
    """A phantom somewhere in the scanner, placed by a sform; `name` seeds the place."""
    scan = Scan(np.eye(4), **options)
    affine = np.eye(4)
    affine[:3, :3] = linear
    place = np.random.default_rng(zlib.crc32(name.encode())).uniform(-120, 120, 3)
    affine = placed(affine, place, scan.middle)
    return Scan(affine, **{**options, "fields": sform(affine, scan.unit_mm)})


class Corpus:
    """Files are added one by one; `save` writes the list of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.group = "others"
        for part in ("scans", "truth"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a scan called `name` lies."""
        return self.folder / "scans" / name

    def good(self, name: str, scan: Scan, why: str, **options: Any) -> bytes:
        """Add a sound file; `facts` go to the entry, `how` packs it, the rest to `stored`."""
        facts, how = options.pop("facts", {}), options.pop("how", packed)
        raw, hu = stored(scan, options.pop("dtype", "i2"), **options)
        self.put(name, how(raw), why, expect="accept", scan=scan, hu=hu, **facts)
        return raw

    def bad(self, name: str, data: bytes, why: str, **facts: Any) -> None:
        """Add a file that must be refused."""
        self.put(name, data, why, **{"expect": "refuse", **facts})

    def put(self, name: str, data: bytes, why: str, **facts: Any) -> None:
        """Write a file and note what is known of it."""
        self.path(name).write_bytes(data)
        self.note(name, why, **facts)

    def note(self, name: str, why: str, **facts: Any) -> None:
        """Note what is known of a file that stands: an `Entry`'s facts, and for a truth `hu`.

        `scan` places it; `where=False`: the header does not tell where the voxels lie.
        """
        scan, hu, where = facts.pop("scan", None), facts.pop("hu", None), facts.pop("where", True)
        replaced = [i for i, entry in enumerate(self.entries) if entry.file == f"scans/{name}"]
        number = replaced[0] if replaced else len(self.entries)
        truth = None
        if scan is not None and hu is not None:
            truth = f"truth/{number:03d}.npz"
            np.savez_compressed(
                self.folder / truth,
                hu=hu,
                affine=scan.affine if where else np.full((4, 4), np.nan),
                spacing=np.linalg.norm(scan.affine[:3, :3], axis=0),
            )
            if where and facts.pop("ball", True):
                facts["ball_centre_mm"] = scan.centre_mm
        facts.pop("ball", None)
        entry = Entry(file=f"scans/{name}", why=why, truth=truth, **{"group": self.group, **facts})
        self.entries[number : number + 1] = [entry]

    def save(self) -> Path:
        """Write `index.json`."""
        path = self.folder / "index.json"
        rows = [asdict(entry) for entry in self.entries]
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return path


def load_index(folder: Path) -> list[Entry]:
    """The entries of a corpus folder; pairs of image and label are left out."""
    known = set(Entry.__dataclass_fields__)
    rows = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    entries = []
    for row in rows:
        if not row.get("pair"):
            facts = {name: value for name, value in row.items() if name in known}
            facts["must_not_leak"] = tuple(facts.get("must_not_leak", ()))
            entries.append(Entry(**facts))
    return entries
