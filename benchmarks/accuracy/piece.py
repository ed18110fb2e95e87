"""One piece of the evidence: one recipe trained with one seed on one split, and scored.

A piece is a JSON file. It is written once, when it is whole, so a killed benchmark goes on with
the pieces that are missing.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attunet3d.core import whole_file
from benchmarks import measure
from benchmarks.accuracy.material import Material
from benchmarks.accuracy.recipes import Recipe
from benchmarks.accuracy.scores import score_cases

ROOT = Path(__file__).parents[2]
PEERS = {
    "monai": "benchmarks.accuracy.monai_peer",
    "nnunet": "benchmarks.accuracy.nnunet_peer",
}
CALIBRATION_STEPS = (10, 70)


@dataclass(frozen=True)
class Budget:
    """How long to train: the same number of steps, or the same processor time."""

    steps: int = 0
    minutes: float = 0.0

    def __str__(self) -> str:
        return f"{self.steps}steps" if self.steps else f"{self.minutes:g}min"


def run_piece(
    recipe: Recipe, material: Material, split: int, seed: int, budget: Budget, out: Path
) -> Path:
    """Train, segment the test cases, score them and write the piece, unless it is there.

    A piece of the same name but another recipe, because the file of recipes has changed since, is
    made again.
    """
    name = f"{material.name}_{split}-{recipe.name}-{budget}-{seed}"
    file = out / "pieces" / f"{name}.json"
    described = json.loads(json.dumps(asdict(recipe)))
    if file.exists() and json.loads(file.read_text())["recipe"] == described:
        return file
    manifest = material.manifests[split]
    trained_as = f"{material.trained_as}_{split}"
    run, trained = train(recipe.training, manifest, trained_as, seed, budget, out)
    predictions = out / "runs" / name / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)
    predictions.parent.mkdir(parents=True, exist_ok=True)
    inferring = _spent(_inference(recipe, manifest, run, predictions))
    piece = {
        "recipe": described,
        "material": material.name,
        "split": split,
        "seed": seed,
        "budget": str(budget),
        "steps": trained["steps"],
        "seconds": {"train": trained["seconds"], "infer": inferring},
        "curve": _curve(run),
        "calibration": _calibration(run),
        "cases": score_cases(manifest, predictions, material.labels),
        "commit": trained["commit"],
        "machine": measure.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }
    whole_file.write_text(whole_file.make_folder(file.parent) / file.name, json.dumps(piece))
    return file


def train(
    recipe: Recipe, manifest: Path, split: str, seed: int, budget: Budget, out: Path
) -> tuple[Path, dict[str, Any]]:
    """The run of a recipe with its steps, seconds and commit; trained unless it is there."""
    one = f"{split}-{_digest(recipe)}"
    work = out / "trained" / f"{one}-{budget}-{seed}"
    file = work / "trained.json"
    if not file.exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        costs = out / "costs" / one
        steps = budget.steps or int(60 * budget.minutes / _step_cost(recipe, manifest, costs)) or 1
        spent = _spent(_training(recipe, manifest, work / "run", steps, seed))
        trained = {"steps": steps, "seconds": spent, "commit": _commit()}
        whole_file.write_text(file, json.dumps(trained))
    return work / "run", json.loads(file.read_text())


def _training(recipe: Recipe, manifest: Path, run: Path, steps: int, seed: int) -> list[str]:
    if recipe.system in PEERS:
        return _peer("train", recipe, manifest, run, {"steps": steps, "seed": seed})
    values = {**recipe.settings, "training.steps": steps, "training.seed": seed}
    sets = [part for name, value in values.items() for part in _set(name, value)]
    own = ["--cache", str(manifest.parent / "cache"), "--plan", f"{run}.plan.json"]
    return _attunet3d("train", str(manifest), recipe.preset, str(run), *own, *sets)


def _inference(recipe: Recipe, manifest: Path, run: Path, predictions: Path) -> list[str]:
    if recipe.system in PEERS:
        return _peer("infer", recipe, manifest, run, {"predictions": str(predictions)})
    answer = [part for name, value in recipe.answer.items() for part in _set(name, value)]
    return _attunet3d("infer", str(run), str(manifest), str(predictions), *answer)


def _attunet3d(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "attunet3d", *arguments, "--device", "cpu"]


def _peer(what: str, recipe: Recipe, manifest: Path, run: Path, more: dict[str, Any]) -> list[str]:
    job = {"network": recipe.network, "manifest": str(manifest), "run": str(run)}
    job |= {**recipe.settings, **more}
    return [sys.executable, "-W", "ignore", "-m", PEERS[recipe.system], what, json.dumps(job)]


def _set(name: str, value: object) -> tuple[str, str]:
    return "--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _spent(command: Sequence[str]) -> dict[str, float]:
    """Run a command; its seconds by the clock and of processor time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": round(time.monotonic() - began, 1), "processor": round(processor, 1)}


def _step_cost(recipe: Recipe, manifest: Path, work: Path) -> float:
    """Processor seconds of a training step on this machine; measured once for all seeds."""
    machine = {key: measure.machine()[key] for key in ("processor", "instructions")}
    file = work / "cost.json"
    if file.exists() and (known := json.loads(file.read_text()))["machine"] == machine:
        return float(known["seconds"])
    few, more = CALIBRATION_STEPS
    spent = []
    for steps in (few, few, more):  # the first call also fills the cache
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        spent.append(_spent(_training(recipe, manifest, work / "run", steps, 0))["processor"])
    seconds = max((spent[2] - spent[1]) / (more - few), 1e-3)
    whole_file.write_text(file, json.dumps({"machine": machine, "seconds": seconds}))
    return seconds


def _digest(recipe: Recipe) -> str:
    described = json.dumps(asdict(recipe), sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _curve(run: Path) -> list[dict[str, float]]:
    """Step and Dice of the validation cases, as training went on."""
    file = run / "metrics.csv"
    if not file.exists():
        return []
    head, *rows = [line.split(",") for line in file.read_text().splitlines()]
    table = [dict(zip(head, row, strict=True)) for row in rows]
    return [
        {"step": int(row["step"]), "dice": float(row["dice_network_grid"])}
        for row in table
        if row.get("dice_network_grid")
    ]


def _calibration(run: Path) -> dict[str, Any] | None:
    """The temperature fitted on the validation cases and the reliability before and after it."""
    file = run / "calibration.json"
    return json.loads(file.read_text()) if file.exists() else None


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    changed = git(
        "status", "--porcelain", "--", "attunet3d", "pipelines", "benchmarks/accuracy/*.py"
    )
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
