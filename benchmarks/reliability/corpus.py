"""The corpus and, where it is at hand, a second one, through our command line and two peers.

`attunet3d infer` is called once over each folder of scans, `attunet3d manifest` once over each
folder of pairs; MONAI's `LoadImage` and SimpleITK's `ReadImage` read the scans in children.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.reliability import infer_verdicts
from benchmarks.reliability.command import ROOT, attunet3d
from benchmarks.reliability.corpus_files import Entry, load_index
from benchmarks.reliability.corpus_recipes import make_corpus
from benchmarks.reliability.model import make_model
from benchmarks.reliability.pair_files import load_pairs, make_pairs
from benchmarks.reliability.peers import PEERS, load_rows
from benchmarks.reliability.rows import row
from benchmarks.reliability.verdicts import (
    BAD_ACCEPTED,
    GOOD_REFUSED,
    RIGHT,
    UNNAMED,
    VERDICTS,
    Verdict,
)

OURS = "attunet3d"


def run(folder: Path, small: bool, adversarial: Path | None = None) -> dict[str, Any]:
    """Run the corpora in `folder`; `adversarial` is a folder with an `index.json`, or None."""
    model = make_model(folder / "model")
    own = folder / "corpus"
    make_corpus(own, small)
    corpora, pair_sets = {"own": own}, {"own": (own / "pairs", make_pairs(own / "pairs"))}
    if adversarial is None:
        print("corpus: no second corpus given (--adversarial DIR); skipped")
    else:
        corpora["adversarial"] = adversarial
        pair_sets["adversarial"] = (adversarial / "pairs", load_pairs(adversarial))
    results = {name: _readers(name, path, model, folder) for name, path in corpora.items()}
    pairs = {name: _pairs(name, *found, folder) for name, found in pair_sets.items()}
    return {
        "files": results,
        "pairs": pairs,
        "rows": [
            *(_row(f"scans, {name} corpus", result[OURS]) for name, result in results.items()),
            *(_row(f"pairs for training, {name} corpus", result) for name, result in pairs.items()),
        ],
    }


def _readers(name: str, corpus: Path, model: Path, folder: Path) -> dict[str, Any]:
    """The results of us and of each peer on one corpus."""
    entries = load_index(corpus)
    found: dict[str, Any] = {OURS: _ours(entries, corpus, model, folder / f"out_{name}")}
    print(f"corpus: {name}: {OURS}: {found[OURS]['counts']}", flush=True)
    files = {peer: folder / f"{peer}_{name}.json" for peer in PEERS}
    module = [sys.executable, "-m", "benchmarks.reliability.peers"]
    running = {p: subprocess.Popen([*module, p, corpus, f], cwd=ROOT) for p, f in files.items()}
    for peer, process in running.items():
        if process.wait() != 0:
            raise SystemExit(f"{peer}: status {process.returncode}")
    for peer, file in files.items():
        found[peer] = _summary(load_rows(file))
        print(f"corpus: {name}: {peer}: {found[peer]['counts']}", flush=True)
    return found


def _ours(entries: list[Entry], corpus: Path, model: Path, out: Path) -> dict[str, Any]:
    called = infer_verdicts.run_infer(corpus / "scans", model, out)
    verdicts = infer_verdicts.judge(entries, corpus, out, called)
    faults = [f"leaked: {leak}" for leak in infer_verdicts.leaks(entries, out, called)]
    faults += [
        f"no cure: {text}" for text in infer_verdicts.without_cure(infer_verdicts.failures_of(out))
    ]
    expected = 1 if infer_verdicts.failures_of(out) else 0
    if called.status != expected or called.crashed:
        faults.append(f"status {called.status}, {'traceback or killed' if called.crashed else ''}")
    return {
        **_summary([verdict.to_dict() for verdict in verdicts]),
        "faults": faults,
        "seconds": round(called.seconds, 1),
        "peak_mb": round(called.peak_mb),
        "status": called.status,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["verdict"] for row in rows)
    not_right = [row for row in rows if row["verdict"] != RIGHT]
    taken = [row for row in not_right if row["verdict"] == BAD_ACCEPTED and row["no_scan"]]
    return {
        "tried": len(rows),
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "bad_accepted_but_sound_nifti": len(taken),
        "not_right": not_right,
    }


def _row(what: str, result: dict[str, Any]) -> dict[str, Any]:
    bad = result["tried"] - result["counts"][RIGHT] + len(result["faults"])
    note = "; ".join(result["faults"][:3])
    note = note or f"{result['seconds']:.0f} s, peak {result['peak_mb']} MB"
    return row(what, result["tried"], bad, note)


def _pairs(name: str, pairs: Path, entries: list[Entry], folder: Path) -> dict[str, Any]:
    """One call of `manifest` over a folder of pairs; every bad one must be named by it."""
    out = folder / f"pairs_{name}.json"
    called = attunet3d("manifest", pairs, "--out", out, "--folds", "2")
    content = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    listed = {case["id"] for case in content.get("training", [])}
    verdicts = [_judge_pair(entry, listed, called.errors.splitlines()) for entry in entries]
    faults = [] if called.status == 1 and not called.crashed else [f"status {called.status}"]
    result = {
        **_summary([verdict.to_dict() for verdict in verdicts]),
        "faults": faults,
        "seconds": round(called.seconds, 1),
        "peak_mb": round(called.peak_mb),
    }
    print(f"corpus: {name}: pairs: {result['counts']}", flush=True)
    return result


def _judge_pair(entry: Entry, listed: set[str], lines: list[str]) -> Verdict:
    case = infer_verdicts.case_id(entry.file)
    errors = [line for line in lines if line.startswith(f"{case}: error: ")]
    warned = [line for line in lines if line.startswith(f"{case}: warning: ")]
    if entry.expect == "refuse":
        if case in listed:
            return Verdict(entry.file, BAD_ACCEPTED)
        return Verdict(entry.file, RIGHT if errors else UNNAMED, " ".join(errors))
    if errors or case not in listed:
        return Verdict(entry.file, GOOD_REFUSED, " ".join(errors))
    unwarned = entry.expect == "accept-warn" and not warned
    return Verdict(entry.file, UNNAMED if unwarned else RIGHT, "no warning" if unwarned else "")
