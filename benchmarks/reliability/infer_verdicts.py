"""A corpus through `attunet3d infer`: one call over the folder, then every file judged."""

import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.reliability.command import Result, attunet3d
from benchmarks.reliability.corpus_files import Entry
from benchmarks.reliability.nifti_bytes import Array, raw_header
from benchmarks.reliability.verdicts import (
    BAD_ACCEPTED,
    OVER,
    RIGHT,
    UNNAMED,
    WRONG,
    Verdict,
    ball_fault,
    refused,
)

PLACE = (
    *("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr")


def run_infer(scans: Path, model: Path, out: Path, seconds: float = 400) -> Result:
    """Call `attunet3d infer MODEL SCANS OUT`."""
    return attunet3d("infer", model, scans, out, "--device", "cpu", seconds=seconds)


def judge(entries: list[Entry], folder: Path, out: Path, called: Result) -> list[Verdict]:
    """The verdict on each file of a corpus after a call over its `scans` folder."""
    failures = {} if called.crashed else failures_of(out)
    return [_judge(entry, folder, out, failures, called) for entry in entries]


def case_id(file: str) -> str:
    """The case's name of a file of a corpus."""
    name = Path(file).name
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _judge(
    entry: Entry, folder: Path, out: Path, failures: dict[str, str], called: Result
) -> Verdict:
    name = case_id(entry.file)
    mask = out / f"{name}.nii.gz"
    if name in failures:
        if mask.exists():
            return Verdict(entry.file, WRONG, "failed, but a mask is there")
        line = f"{name}: error: {' '.join(failures[name].split())}"
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        said = [text for text in called.errors.splitlines() if text == line]
        if len(said) != 1:
            return Verdict(entry.file, UNNAMED, f"{len(said)} lines on stderr")
        reason = failures[name]
        by_id = reason.startswith("case id")  # the name itself is at fault: the line begins with it
        return refused(entry, f"{line} ({Path(entry.file).name})" if by_id else reason)
    if not mask.exists():
        detail = "the call broke down" if called.crashed else "passed over without a word"
        return Verdict(entry.file, OVER if called.crashed else UNNAMED, detail)
    if entry.expect == "refuse" and not entry.either:
        return Verdict(entry.file, BAD_ACCEPTED)
    detail = _mask_fault(entry, folder, mask) or _unwarned(entry, out / f"{name}.json", called)
    return Verdict(entry.file, WRONG if detail else RIGHT, detail)


def _mask_fault(entry: Entry, folder: Path, mask: Path) -> str:
    """What is wrong with a label map, by its bytes and its content."""
    source, header = raw_header((folder / entry.file).resolve()), raw_header(mask)
    if source["magic"].tobytes().startswith(b"n"):  # Analyze has other fields in these places
        for field in PLACE:
            if header[field].tobytes() != source[field].tobytes():
                return f"{field} is not the source's, bit for bit"
    shape = [int(n) for n in source["dim"][1:4]]
    data = gzip.decompress(mask.read_bytes())[int(header["vox_offset"]) :]
    if [int(n) for n in header["dim"][1:4]] != shape or len(data) != np.prod(shape):
        return f"{header['dim']}, {len(data)} bytes for {shape}"
    if entry.ball_centre_mm is None:
        return ""
    array = np.frombuffer(data, np.uint8).reshape(shape, order="F")
    affine = _affine(entry, folder, mask)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ball_fault(array == 1, affine, entry.ball_centre_mm, spacing)


def _affine(entry: Entry, folder: Path, mask: Path) -> Array:
    """Voxel → RAS mm of a label map: the truth, its header being the source's bit for bit."""
    if entry.truth is not None:
        with np.load(folder / entry.truth) as truth:
            return np.array(truth["affine"])
    image = nib.load(mask)
    affine = np.array(image.affine)
    affine[:3] *= UNIT_MM[int(image.header["xyzt_units"]) & 7]
    return affine


def _unwarned(entry: Entry, sidecar: Path, called: Result) -> str:
    if entry.expect != "accept-warn":
        return ""
    name = case_id(entry.file)
    warned = json.loads(sidecar.read_text(encoding="utf-8"))["warnings"]
    if not warned:
        return "no warning in the sidecar"
    return "" if f"{name}: warning: {warned[0]}" in called.errors else "no warning on stderr"


def leaks(entries: list[Entry], out: Path, called: Result) -> list[str]:
    """Strings of patients that reached an output or a message, each with where."""
    secrets = {secret for entry in entries for secret in entry.must_not_leak}
    texts: dict[str, str] = {"stdout": called.output, "stderr": called.errors}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            packed = data[:2] == b"\x1f\x8b"
            shown = data[:256] + gzip.decompress(data)[:600] if packed else data
            texts[str(path.relative_to(out))] = shown.decode("latin-1")
    found = []
    for place, text in texts.items():
        text = re.sub(r"[0-9a-f]{32,}", "", text)  # checksums may hold any four digits
        found += [f"{secret!r} in {place}" for secret in sorted(secrets) if secret in text]
    return found


def without_cure(failures: dict[str, str]) -> list[str]:
    """Messages that name no rule and no cure: nothing after a semicolon."""
    return sorted(text for text in failures.values() if not re.search(r"; \w", text))


def failures_of(out: Path) -> dict[str, str]:
    """`failures.json` of a call; empty when there is none."""
    path = out / "failures.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
