"""A folder of scans through `attunet3d infer` while a fault strikes, against known answers."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.cohort import results
from attunet3d.imaging import read_label
from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import Command, ForkServer, Hook, wait

COUNT = 4
CASES = [f"scan_{number}" for number in range(COUNT)]


@dataclass
class CohortCheck:
    """A model, some scans and their right label maps."""

    server: ForkServer
    folder: Path
    model: Path
    scans: Path
    answers: dict[str, Any]

    def copy(self, name: str) -> tuple[Path, Path]:
        """A fresh copy of the scans, and the path of an output folder that is not there yet."""
        scans = self.folder / name / "scans"
        shutil.copytree(self.scans, scans)
        return scans, self.folder / name / "out"

    @property
    def said(self) -> Path:
        """Where what a command says goes."""
        return self.folder / "said.txt"

    def start(
        self, scans: Path, out: Path, *more: str, said: Path | None = None, hook: Hook | None = None
    ) -> Command:
        """Start to segment."""
        arguments = ["infer", self.model, scans, out, "--device", "cpu", *more]
        return self.server.start(arguments, said or self.said, hook)

    def call(
        self, scans: Path, out: Path, *more: str, hook: Hook | None = None
    ) -> tuple[int | None, str]:
        """Segment; the exit status, None for a hang, and what was said."""
        status = wait(self.start(scans, out, *more, hook=hook))
        return status, self.said.read_text(encoding="utf-8", errors="replace")

    def troubles(
        self, outcome: tuple[int | None, str], out: Path, bad: Mapping[str, str]
    ) -> list[str]:
        """What is not as it must be when just the cases `bad` fail, with these words."""
        status, said = outcome
        found = [] if status == (1 if bad else 0) else [f"status {status}: {said[-300:]}"]
        found += ["a traceback"] if "Traceback" in said else []
        path = out / "failures.json"
        failures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        lines = dict(re.findall(r"^(\S+): error: (.*)$", said, re.MULTILINE))
        lines.pop("failures.json", None)  # cannot be written either where nothing can
        if set(failures or lines) != set(bad):
            found.append(f"failed: {sorted(failures or lines)}, not {sorted(bad)}")
        for case, words in bad.items():
            if not re.search(words, lines.get(case, "")):
                found.append(f"{case}: said {lines.get(case)!r}, not {words!r}")
        return found + self.wrong(out, [case for case in self.answers if case not in bad])

    def refused(self, outcome: tuple[int | None, str], words: str) -> list[str]:
        """What is not as it must be when the whole call is refused in one line with these words."""
        status, said = outcome
        right = status == 2 and len(said.splitlines()) == 1 and re.search(words, said)
        return [] if right else [f"status {status}: {said[-300:]}"]

    def wrong(self, out: Path, cases: Sequence[str]) -> list[str]:
        """What is not whole, of these cases that must be done and of leftovers."""
        found = [f"{path.name} is left" for path in out.rglob("*.tmp")]
        for case in cases:
            files = results.case_files(out, case)
            try:
                same = np.array_equal(read_label(files.mask).array, self.answers[case])
                content = results.read_sidecar(files.sidecar)
                whole = results.intact(files, content, [files.mask])
                found += [] if same and whole else [f"{case}: another label map"]
            except Exception as error:
                found.append(f"{case}: {error}")
        return found


def prepare(server: ForkServer, folder: Path) -> CohortCheck:
    """The scans, and what comes of them when nothing strikes."""
    model, scans = inputs.infer_inputs(server, folder, COUNT, 32)
    cohort = CohortCheck(server, folder, model, scans, {})
    status, said = cohort.call(scans, folder / "answers")
    assert status == 0, said
    cohort.answers = {c: read_label(folder / "answers" / f"{c}.nii.gz").array for c in CASES}
    return cohort
