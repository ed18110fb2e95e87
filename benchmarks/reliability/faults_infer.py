"""Faults that strike `attunet3d infer`; each function lets one strike and returns its troubles.

The first line of a function's docstring is its row in the table. None: not possible here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from attunet3d.cohort import results
from attunet3d.models import checkpoint
from benchmarks.reliability.cohort_check import CASES, COUNT, CohortCheck
from benchmarks.reliability.fork_server import POLL, Hook, wait
from benchmarks.reliability.small_disk import remount, small_disk

MAPS = ("--save-probabilities", "--save-attention")


def full_disk(cohort: CohortCheck) -> list[str] | None:
    """infer: the disk is full (tmpfs); enlarged, the same call finishes."""
    scans, out = cohort.copy("full")
    with small_disk(out, 520) as mounted:  # enough for one case's maps
        if not mounted:
            return None
        status, said = cohort.call(scans, out, *MAPS)
        failed = re.findall(r"^(\w+): error: .*No space left on device", said, re.MULTILINE)
        found = [] if status == 1 and failed else [f"status {status}: {said[-300:]}"]
        found += cohort.wrong(out, [case for case in CASES if case not in failed])
        remount(out, "size=20000k")
        return found + cohort.troubles(cohort.call(scans, out, *MAPS), out, {})


def file_limit(cohort: CohortCheck) -> list[str]:
    """infer: writes end in their middle (limit on file size); without it the same call finishes."""
    scans, out = cohort.copy("limit")
    outcome = cohort.call(scans, out, *MAPS, hook=("fault_injection", "limit_files", [30_000]))
    found = cohort.troubles(outcome, out, dict.fromkeys(CASES, "File too large"))
    return found + cohort.troubles(cohort.call(scans, out, *MAPS), out, {})


def memory_runs_out(cohort: CohortCheck) -> list[str]:
    """infer: GPU memory runs out at a window (simulated): fewer windows per pass, then the CPU."""
    found = []
    for calls, on_gpu, words in (
        ([3], False, ["windows one at a time"]),
        ([3, 4], True, ["windows one at a time", "stitched in the CPU's memory"]),
    ):
        scans, out = cohort.copy(f"memory_{len(words)}")
        hook: Hook = ("fault_injection", "run_out_of_memory", [calls, on_gpu])
        found += cohort.troubles(cohort.call(scans, out, hook=hook), out, {})
        told = [results.read_sidecar(out / f"{case}.json")["fallbacks"] for case in CASES]
        hit = [texts for texts in told if texts]
        right = len(hit) == 1 and len(hit[0]) == len(words)
        if not right or not all(word in text for word, text in zip(words, hit[0], strict=True)):
            found.append(f"the sidecars say {told}, not {words} of one case")
    return found


def memory_fails_one(cohort: CohortCheck) -> list[str]:
    """infer: memory runs out for one case whatever is tried: that case fails."""
    scans, out = cohort.copy("memory_one")
    hook: Hook = ("fault_injection", "run_out_of_memory", [[0, 1], False])
    return cohort.troubles(cohort.call(scans, out, hook=hook), out, {CASES[0]: "out of memory"})


def vanished(cohort: CohortCheck) -> list[str]:
    """infer: a scan vanishes after it was listed, or a folder, pipe or half stands there."""

    def half(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1000])

    def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
        def replace_by(path: Path) -> None:
            path.unlink()
            make(path)

        return replace_by

    changes: dict[str, tuple[Callable[[Path], None], str]] = {
        "gone": (Path.unlink, "No such file"),
        "folder": (replaced(Path.mkdir), "scan_3.nii.gz: "),
        "pipe": (replaced(os.mkfifo), "not a regular file"),
        "half": (half, "is truncated|damaged"),
    }
    found = []
    for name, (change, words) in changes.items():
        for attempt in range(3):  # the scan may be read before it is changed
            scans, out = cohort.copy(f"vanished_{name}_{attempt}")
            command = cohort.start(scans, out)
            while not out.exists() and command.poll() is None:  # listed by then
                time.sleep(POLL)
            change(scans / "scan_3.nii.gz")
            outcome = wait(command), cohort.said.read_text(encoding="utf-8")
            if outcome[0] != 0:
                break
        trouble = cohort.troubles(outcome, out, {"scan_3": words})
        found += [f"{name}: {text}" for text in trouble]
    return found


def pipes(cohort: CohortCheck) -> list[str]:
    """infer: named pipes among the scans and in place of a sidecar: no hang."""
    scans, out = cohort.copy("pipes")
    out.mkdir()
    os.mkfifo(out / "scan_0.json")
    for name in ("a.nii.gz", "b.nii", "c.nrrd", "d.mha"):
        os.mkfifo(scans / name)
    found = cohort.troubles(cohort.call(scans, out), out, dict.fromkeys("abcd", "pipe|regular"))
    series = scans.parent / "series"
    series.mkdir()
    os.mkfifo(series / "1.dcm")
    status, said = cohort.call(series, out)
    return found + ([] if status in (1, 2) else [f"DICOM folder: {status}: {said[-200:]}"])


def read_only(cohort: CohortCheck) -> list[str] | None:
    """infer: the output folder is read-only (tmpfs); writable again, the same call finishes."""
    scans, out = cohort.copy("read_only")
    with small_disk(out, 20_000) as mounted:
        if not mounted:
            return None
        remount(out, "ro")
        found = cohort.refused(cohort.call(scans, out), "Read-only file system")
        remount(out, "rw")
        return found + cohort.troubles(cohort.call(scans, out), out, {})


def no_rights(cohort: CohortCheck) -> list[str] | None:
    """infer: a scan and the output folder that the user may not read or write."""
    if os.geteuid() != 0:
        return None
    scans, out = cohort.copy("rights")
    hook: Hook = ("fault_injection", "become_nobody", [])
    for path in (*cohort.folder.parents, cohort.folder, scans.parent):
        path.chmod(path.stat().st_mode | 0o111)
    cohort.said.chmod(0o666)
    (scans / "scan_1.nii.gz").chmod(0o000)
    out.mkdir()
    found = cohort.refused(cohort.call(scans, out, hook=hook), "Permission denied")
    out.chmod(0o777)
    unread = {"scan_1": "cannot be read .*Permission denied"}
    return found + cohort.troubles(cohort.call(scans, out, hook=hook), out, unread)


def output_is_input(cohort: CohortCheck) -> list[str]:
    """infer: results would overwrite scans: refused, the scans untouched."""
    scans, _ = cohort.copy("onto_itself")
    before = {path: path.read_bytes() for path in scans.iterdir()}
    found = []
    status, said = cohort.call(scans, scans)
    lines = re.findall("overwritten by its own result", said)
    found += [] if (status, len(lines)) == (1, COUNT) else [f"status {status}: {said[-300:]}"]
    (scans / "failures.json").unlink()
    entries = [{"id": f"scan_{n}", "image": f"scans/scan_{(n + 1) % COUNT}.nii.gz"} for n in (0, 1)]
    manifest = scans.parent / "swapped.json"
    content = {"name": "n", "labels": {"0": "background", "1": "noise"}, "training": []}
    manifest.write_text(json.dumps({**content, "test": entries}))
    status, said = cohort.call(manifest, scans)
    right = status == 1 and "overwritten by" in said and "already exists" in said
    found += [] if right else [f"swapped: {status}: {said}"]
    found += [f"{p.name}: changed" for p, data in before.items() if p.read_bytes() != data]
    return found


def output_is_precious(cohort: CohortCheck) -> list[str]:
    """infer: label maps of others stand in the output folder: kept unless --overwrite."""
    scans, out = cohort.copy("precious")
    shutil.copytree(cohort.folder / "answers", out)
    for path in out.glob("*.json"):
        path.unlink()
    other = out / "scan_2.nii.gz"
    shutil.copy(out / "scan_1.nii.gz", other)
    before = other.read_bytes()
    found = cohort.troubles(cohort.call(scans, out), out, {"scan_2": "already exists"})
    found += [] if other.read_bytes() == before else ["the label map was overwritten"]
    return found + cohort.troubles(cohort.call(scans, out, "--overwrite"), out, {})


def links(cohort: CohortCheck) -> list[str]:
    """infer: links where results go: what they point to is never written."""
    scans, out = cohort.copy("links")
    out.mkdir()
    precious = scans.parent / "precious"
    precious.write_text("precious")
    (out / "scan_0.nii.gz").symlink_to(precious)
    (out / "scan_1.json").symlink_to(precious)
    (out / "scan_2.nii.gz").symlink_to("nowhere")
    (out / "scan_3.nii.gz").symlink_to(scans / "scan_0.nii.gz")
    bad = {"scan_0": "already exists", "scan_3": "is a scan and would be overwritten"}
    found = cohort.troubles(cohort.call(scans, out), out, bad)
    found += [] if precious.read_text() == "precious" else ["what a link points to was changed"]
    return found + ([] if not (out / "nowhere").exists() else ["written through a link"])


def blocked(cohort: CohortCheck) -> list[str]:
    """infer: a folder, or a file that may not be replaced (chattr +i), where a result goes."""
    scans, out = cohort.copy("blocked")
    shutil.copytree(cohort.folder / "answers", out)
    for path in out.glob("scan_0*"):
        path.unlink()
    (out / "scan_0.nii.gz").mkdir()
    stuck = out / "scan_1.nii.gz"
    stuck.write_bytes(b"torn")
    fixed = subprocess.run(["chattr", "+i", stuck], capture_output=True).returncode == 0
    try:
        bad = {"scan_0": "scan_0.nii.gz: already exists"}
        bad |= {"scan_1": "scan_1.nii.gz: cannot be written"} if fixed else {}
        return cohort.troubles(cohort.call(scans, out), out, bad)
    finally:
        if fixed:
            subprocess.run(["chattr", "-i", stuck], check=True)


def broken_weights(cohort: CohortCheck) -> list[str]:
    """infer: weights that are NaN are refused; weights that give infinities fail their cases."""
    scans, out = cohort.copy("weights")
    found, loaded = [], checkpoint.load_model(cohort.model)
    for name, value in (("nan", float("nan")), ("huge", 1e38)):
        weights = {key: part.clone() for key, part in loaded.network.state_dict().items()}
        weights[next(iter(weights))].fill_(value)
        path = scans.parent / f"{name}.safetensors"
        checkpoint.save_model(path, weights, loaded.config, loaded.labels)
        assert torch.isfinite(next(iter(weights.values()))).all() == (name == "huge")
        here = replace(cohort, model=path)
        outcome = here.call(scans, out)
        if name == "nan":
            found += here.refused(outcome, "NaN")
        else:
            found += here.troubles(outcome, out, dict.fromkeys(CASES, "NaN or infinity"))
    return found


def deaf_stderr(cohort: CohortCheck) -> list[str]:
    """infer: what it says goes to a full disk: the cases are done and failures.json is written."""
    scans, out = cohort.copy("deaf")
    (scans / "bad.nii.gz").write_text("no scan")
    status = wait(cohort.start(scans, out, said=Path("/dev/full")))
    failures = json.loads((out / "failures.json").read_text(encoding="utf-8"))
    found = [] if status and list(failures) == ["bad"] else [f"status {status}: {failures}"]
    return found + cohort.wrong(out, CASES)


def stopped_twice(cohort: CohortCheck) -> list[str]:
    """infer: Ctrl-C again while it waits for the last write: whole files, and the rest later."""
    scans, out = cohort.copy("twice")
    command = cohort.start(scans, out, *MAPS)
    while not list(out.glob("*.nii.gz")) and command.poll() is None:
        time.sleep(POLL)
    for _ in range(3):
        os.kill(command.pid, signal.SIGINT)
        time.sleep(0.01)
    status = wait(command, 20)
    found = [] if status in (130, -signal.SIGINT) else [f"status {status}"]
    return found + cohort.troubles(cohort.call(scans, out, *MAPS), out, {})


FAULTS: list[Callable[[CohortCheck], list[str] | None]] = [
    *(full_disk, file_limit, memory_runs_out, memory_fails_one, output_is_input, pipes, vanished),
    *(read_only, no_rights, output_is_precious, links, blocked, broken_weights),
    *(deaf_stderr, stopped_twice),
]
