"""A small nnU-Net-like data set of scans and labels, most of them wrong in one way.

`manifest` must name every wrong pair in one call, and list the good ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.corpus_files import Entry, at
from benchmarks.reliability.nifti_bytes import BALL, Array, Scan, packed, sform, stored

LABELS = {"background": 0, "ball": 1}
Change = Callable[[Scan, Array], tuple[Scan, Array, dict[str, Any]]]


def _moved(scan: Scan, change: Array) -> Scan:
    affine = scan.affine @ change
    return Scan(affine, scan.shape, fields=sform(affine))


def _shift(voxels: float) -> Array:
    change = np.eye(4)
    change[0, 3] = voxels
    return change


def _mirror(scan: Scan) -> Array:
    change = np.diag([-1.0, 1, 1, 1])
    change[0, 3] = scan.shape[0] - 1
    return change


CHANGES: dict[str, tuple[str, str, Change]] = {
    "good": ("accept", "a good pair", lambda s, x: (s, x, {})),
    "int16": ("accept", "an int16 label", lambda s, x: (s, x, {"dtype": "i2"})),
    "float": ("accept", "whole numbers as float32", lambda s, x: (s, x, {"dtype": "f4"})),
    "rounding": ("accept", "1e-6 voxel off", lambda s, x: (_moved(s, _shift(1e-6)), x, {})),
    "none": ("accept-warn", "nothing labelled", lambda s, x: (s, x * 0, {})),
    "half_voxel": ("refuse", "half a voxel off", lambda s, x: (_moved(s, _shift(0.5)), x, {})),
    "mirrored": ("refuse", "mirrored in the header", lambda s, x: (_moved(s, _mirror(s)), x, {})),
    "identity": (
        "refuse",
        "an identity affine",
        lambda s, x: (Scan(np.eye(4), s.shape, fields=sform(np.eye(4))), x, {}),
    ),
    "short": (
        "refuse",
        "one slice short",
        lambda s, x: (
            Scan(s.affine, (*s.shape[:2], s.shape[2] - 1), fields=s.fields),
            x[..., 1:],
            {},
        ),
    ),
    "fraction": ("refuse", "values between 0 and 1", lambda s, x: (s, x / 2, {"dtype": "f4"})),
    "unknown": ("refuse", "value 7 is no label", lambda s, x: (s, x * 7, {})),
    "negative": ("refuse", "value -1", lambda s, x: (s, -x, {"dtype": "i2"})),
    "high": ("refuse", "value 300", lambda s, x: (s, x * 300, {"dtype": "i2"})),
    "nan": ("refuse", "NaN", lambda s, x: (s, np.where(x > 0, x, np.nan), {"dtype": "f4"})),
}


def make_pairs(folder: Path) -> list[Entry]:
    """Write the data set; the entries' files are the scans."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries = []

    def pair(name: str, expect: str, why: str, image: bytes, label: bytes | None) -> None:
        file = f"imagesTr/{name}.nii.gz"
        (folder / file).write_bytes(image)
        if label is not None:
            (folder / "labelsTr" / f"{name}.nii.gz").write_bytes(label)
        entries.append(Entry(file=file, expect=expect, why=why))

    for name, (expect, why, change) in CHANGES.items():
        scan = at(name)
        placed, label, options = change(scan, (scan.voxels() == BALL).astype(float))
        raw = stored(placed, **{"dtype": "u1", "voxels": label, **options})[0]
        pair(name, expect, why, packed(stored(scan)[0]), packed(raw))
    scan = at("others")
    image, hu = stored(scan)[0], scan.voxels()
    label_raw = stored(scan, "u1", voxels=(hu == BALL).astype(float))[0]
    holes = stored(scan, "f4", voxels=np.where(hu < -900, np.nan, hu))[0]
    pair("missing", "refuse", "no label file", packed(image), None)
    pair("cut_label", "refuse", "the label breaks off", packed(image), packed(label_raw)[:-40])
    pair("cut_image", "refuse", "the scan breaks off", packed(image)[:-40], packed(label_raw))
    pair("nan_image", "refuse", "NaN in a scan to learn from", packed(holes), packed(label_raw))
    about = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**about, "numTraining": len(entries)}))
    return entries


def load_pairs(folder: Path) -> list[Entry]:
    """The pairs of an `index.json`, their files relative to its `pairs` folder."""
    rows = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    pairs = [row for row in rows if row.get("pair")]
    names = [row["file"].removeprefix("pairs/") for row in pairs]
    return [
        Entry(file=name, expect=row["expect"], why=row["why"])
        for name, row in zip(names, pairs, strict=True)
    ]
