"""Odd NIfTI files from `corpus.yaml`, and those that a table cannot hold: names, links, pairs.

`WRAPPINGS`, `BETWEEN` and `VOXELS` are what the table names: how a stream is packed, the bytes
between header and voxels, and voxels in place of the phantom's.
"""

import os
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from nibabel.quaternions import mat2quat

from benchmarks.reliability.corpus_damage import DAMAGED, NOT_SCANS
from benchmarks.reliability.corpus_files import LPS, Corpus, Entry, at
from benchmarks.reliability.nifti_bytes import (
    AIR,
    SPACING,
    Array,
    Scan,
    packed,
    packed_with_names,
    placed,
    qform,
    qform_affine,
    sform,
    stored,
)

TABLE = Path(__file__).with_name("corpus.yaml")
PATIENT = ("ROE^JANE", "PID-90210", "19610412")
NAME, NUMBER, BIRTH = (text.encode() for text in PATIENT)
QUATERNION = (0.11, -0.23, 0.31)
ENDINGS = (".nii", ".nii.gz")
STORED = ("slope", "inter", "version", "order")
WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda raw: raw,
    "level_0": lambda raw: packed(raw, 0),
    "level_9": lambda raw: packed(raw, 9),
    "members": lambda raw: packed(raw[:100]) + packed(raw[100:5000]) + packed(raw[5000:]),
    "member_of_nothing": lambda raw: packed(raw) + packed(b""),
    "padding_of_zeros": lambda raw: packed(raw) + bytes(700),
    "all_optional_parts": lambda raw: packed_with_names(raw, b"a.nii", b"hello"),
    "cut": lambda raw: packed(raw)[:-30],
    "patient": lambda raw: packed_with_names(raw, NAME + b".nii", NUMBER + BIRTH),
    "patient_text": lambda raw: NAME + NUMBER + b"\n",
}
COMMENT = bytes([1, 0, 0, 0, 32, 0, 0, 0, 6, 0, 0, 0])  # there is one; its size; "comment"
BETWEEN = {
    "comment": COMMENT + b"x" * 24,
    "nonsense": bytes([1, 0, 0, 0]) + b"\xff" * 8 + b"x" * 24,
    "patient": COMMENT + (NAME + NUMBER).ljust(24, b"\0")[:24],
    "zeros": bytes(17),
}


def _corner(hu: Array, value: float) -> Array:
    changed = hu.copy()
    changed[0, 0, 0] = value
    return changed


VOXELS: dict[str, Callable[[Array], Array]] = {
    "nan_around": lambda hu: np.where(hu == AIR, np.nan, hu),
    "inf_around": lambda hu: np.where(hu == AIR, np.inf, hu),
    "minus_inf_around": lambda hu: np.where(hu == AIR, -np.inf, hu),
    "nan_one": lambda hu: _corner(hu, np.nan),
    "huge_corner": lambda hu: _corner(hu, 1e300),
    "constant": lambda hu: np.full_like(hu, AIR),
    "from_0_to_1": lambda hu: (hu + 1000) / 1300,
    "from_0_to_255": lambda hu: (hu + 1000) / 1300 * 255,
    "plus_1024": lambda hu: hu + 1024,
    "minus_32768": lambda hu: np.where(hu == AIR, -32768, hu),
    "all_nan": lambda hu: np.full_like(hu, np.nan),
    "all_inf": lambda hu: np.full_like(hu, np.inf),
    "less_than_there_is": lambda hu: hu,  # its truth is a slice shorter
}


def turned(*degrees: float) -> Array:
    """LPS turned about x, then y, then z."""
    (a, b, c), (d, e, f) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x @ LPS)


def by_qform(
    name: str, quaternion: tuple[float, float, float] = QUATERNION, qfac: float = 1, code: int = 1
) -> Scan:
    """A phantom placed by a qform alone."""
    linear = qform_affine(quaternion, SPACING, -1 if qfac < 0 else 1)[:3, :3]
    affine = at(name, linear).affine
    return Scan(affine, fields=qform(quaternion, SPACING, affine[:3, 3], qfac, code))


def both(scan: Scan) -> Scan:
    """The same with a qform that agrees with the sform."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    linear = scan.affine[:3, :3] / spacing
    qfac = 1.0 if np.linalg.det(linear) > 0 else -1.0
    b, c, d = mat2quat(linear @ np.diag([1, 1, qfac]))[1:]
    offset = scan.affine[:3, 3] / scan.unit_mm
    return scan.with_fields(**qform((b, c, d), spacing / scan.unit_mm, offset, qfac))


def scan_of(name: str, spec: dict[str, Any]) -> Scan:
    """The phantom and header of an entry of the table."""
    options: dict[str, Any] = {key: spec[key] for key in ("unit_mm", "radius_mm") if key in spec}
    options |= {"shape": tuple(spec["shape"])} if "shape" in spec else {}
    linear = turned(*spec["turned"]) if "turned" in spec else np.array(spec.get("linear", LPS))
    scan = by_qform(name, **spec["qform"]) if "qform" in spec else at(name, linear, **options)
    if "centre" in spec:
        affine = placed(scan.affine, spec["centre"], scan.middle)
        scan = Scan(affine, fields=sform(affine))
    scan = both(scan) if spec.get("both") else scan
    fields = {
        key: value.encode() if isinstance(value, str) else value
        for key, value in spec.get("fields", {}).items()
    }
    scan = scan.with_fields(**fields)
    changed = spec.get("changed", {}).items()
    return scan.with_fields(**{key: scan.fields[key] * by + to for key, (by, to) in changed})


def add(corpus: Corpus, name: str, spec: dict[str, Any]) -> None:
    """Write one file of the table."""
    scan = scan_of(name, spec)
    options = {key: spec[key] for key in STORED if key in spec}
    if "voxels" in spec:
        options["voxels"] = VOXELS[spec["voxels"]](scan.voxels())
    if "between" in spec:
        options["between"] = BETWEEN[spec["between"]]
    raw, hu = stored(scan, spec.get("dtype", "i2"), **options)
    if spec.get("voxels") == "less_than_there_is":
        hu = hu[..., :-1]
    data = WRAPPINGS.get(spec.get("wrap", ""), packed)(raw + bytes(spec.get("more", 0)))
    expect, either = spec.get("expect", "accept"), spec.get("either", False)
    facts: dict[str, Any] = {"expect": expect, "either": either}
    facts |= {"no_scan": True} if spec.get("no_scan") else {}
    facts |= {"must_not_leak": PATIENT} if spec.get("leaks") else {}
    if expect != "refuse" or either:
        facts |= {"scan": scan, "hu": hu}
        facts |= {key: spec[key] for key in ("where", "ball") if key in spec}
    file = name if name.endswith(ENDINGS) else f"{name}.nii.gz"
    corpus.put(file, data, spec.get("why", name.replace("_", " ")), **facts)


def orientations() -> dict[str, dict[str, Any]]:
    """All 48 ways in which the voxel axes can run."""
    found = {}
    turns = product(permutations(range(3)), product([1, -1], repeat=3))
    for number, (axes, signs) in enumerate(turns):
        linear = np.zeros((3, 3))
        for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            linear[axis, column] = sign * SPACING[column]
        ends = zip(axes, signs, strict=True)
        codes = "".join("RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in ends)
        found[f"orientation_{codes}"] = {"linear": linear, "both": number % 2 == 1}
    return found


def number_types() -> dict[str, dict[str, Any]]:
    """Every number type that holds plain numbers, in both byte orders."""
    small = {"u1": (6.0, -1000.0), "i1": (6.0, -300.0)}
    small |= dict.fromkeys(("u2", "u4", "u8"), (1.0, -1024.0))
    found = {}
    for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        for order, word in (("<", "little"), (">", "big")):
            slope, inter = small.get(kind, (1.0, 0.0))
            how = {"dtype": kind, "order": order, "slope": slope, "inter": inter}
            found[f"{kind}_{word}"] = how
    return found


def pairs(corpus: Corpus) -> None:
    """Header and voxels in two files."""
    for name, end, how in (("pair", "", bytes), ("pair_packed", ".gz", packed)):
        scan = at(name).with_fields(magic=b"ni1\0", vox_offset=0)
        raw, hu = stored(scan)
        corpus.path(f"{name}.img{end}").write_bytes(how(raw[352:]))
        facts = {"expect": "accept", "scan": scan, "hu": hu}
        corpus.put(f"{name}.hdr{end}", how(raw[:348]), "NIfTI-1 as .hdr and .img", **facts)
    raw, _ = stored(at("alone").with_fields(magic=b"ni1\0", vox_offset=0))
    corpus.bad("pair_without_image.hdr", raw[:348], "a .hdr without its .img")
    corpus.path("pair_short.img").write_bytes(raw[352:20000])
    corpus.bad("pair_short.hdr", raw[:348], "the .img breaks off")
    analyze = at("analyze").with_fields(magic=b"", sform_code=0, vox_offset=0)
    raw, hu = stored(analyze)
    corpus.path("analyze.img").write_bytes(raw[352:])
    facts = {"expect": "accept-warn", "scan": analyze, "hu": hu, "where": False, "either": True}
    corpus.put("analyze.hdr", raw[:348], "Analyze 7.5: left and right unknown", **facts)


TAME: tuple[str, ...] = (
    "with space",
    "ünïcode 名前",
    "😀",
    "-dash",
    "--out",
    "a.b.c",
    "100%s",
    "$(id)",
    "[1]",
)
TAME += ("שלום", "UPPER", "#1", "a&b;c", "~", "{x}")
REFUSABLE: tuple[str, ...] = (
    "new\nline",
    "tab\there",
    "colon:",
    "back\\slash",
    "esc\x1b[31m",
    "n" * 240,
    "*",
)
REFUSABLE += ("q'u\"o",)  # no file names on every system


def names(corpus: Corpus) -> None:
    """Names that trip shells, terminals and parsers, and things that are not files."""
    for name in (*TAME, *REFUSABLE):
        add(corpus, f"{name}.nii.gz", {"either": name in REFUSABLE, "why": "an unusual name"})
    corpus.good("LOUD.NII.GZ", at("loud"), "upper case ending")
    for name, linked in (
        ("link", "with space.nii.gz"),
        ("dangling", "nowhere"),
        ("loop", "loop.nii.gz"),
    ):
        corpus.path(f"{name}.nii.gz").symlink_to(linked)
    whole = next(entry for entry in corpus.entries if entry.file.endswith("with space.nii.gz"))
    centre = whole.ball_centre_mm
    corpus.note("link.nii.gz", "a link to a scan", expect="accept", ball_centre_mm=centre)
    corpus.path("folder.nii").mkdir(exist_ok=True)
    os.mkfifo(corpus.path("pipe.nii.gz"))
    for name, why in (
        ("dangling.nii.gz", "a link to nowhere"),
        ("loop.nii.gz", "a link to itself"),
        ("folder.nii", "an empty folder called .nii"),
        ("pipe.nii.gz", "a named pipe that nobody writes to"),
    ):
        corpus.note(name, why, expect="refuse")


def damage(corpus: Corpus) -> None:
    """Copies that broke off, bits that changed, and bytes behind the end."""
    rng, scan = np.random.default_rng(3), at("damage")
    noisy = scan.voxels() + rng.integers(-20, 20, scan.shape)
    raw = stored(scan, voxels=noisy)[0]
    for name, spoil in DAMAGED.items():
        more: dict[str, Any] = {}
        if name.endswith("behind"):
            more = {"expect": "accept-warn", "either": True, "scan": scan, "hu": noisy}
        file = f"{name}.nii" if name.startswith("plain") else f"{name}.nii.gz"
        corpus.bad(file, spoil(raw), name.replace("_", " "), **more)


def no_nifti(corpus: Corpus) -> None:
    """Other files under a scan's name."""
    raw = stored(at("no"))[0]
    for name, make in NOT_SCANS.items():
        corpus.bad(f"is_{name}", make(raw), f"no scan: {name.split('.')[0].replace('_', ' ')}")


def make_corpus(folder: Path, small: bool = False) -> list[Entry]:
    """Write the corpus into `folder`; `small` keeps every sixth file, of every group some."""
    corpus = Corpus(folder)
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    table = {"orientation": orientations(), **table}
    table["number_types"] = number_types() | table["number_types"]
    for corpus.group, entries in table.items():
        for name, spec in entries.items():
            add(corpus, name, spec)
    for group in (pairs, damage, no_nifti, names):
        corpus.group = group.__name__
        group(corpus)
    if small:
        for entry in [e for i, e in enumerate(corpus.entries) if i % 6]:
            path = folder / entry.file
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        corpus.entries = corpus.entries[::6]
    corpus.save()
    return corpus.entries
