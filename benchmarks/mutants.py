"""Mutation testing of ten core modules: does a test fail when one operator or number is changed?

    python -m benchmarks.mutants [--each N] [--seed N] [--only MODULE …] [--out FOLDER]

A sample is drawn from the changes that cosmic-ray can make to a module: first N places, each as
likely as any other, then one change for each. Every mutant is tried on a copy of the checkout with
the doctests of the module and the test files that belong to it; it is killed when one of them fails
or none ends in time. Mutants that behave as the module does (`EQUIVALENT` says why) do not count.

Results go to results/mutants.json after every mutant. Another call goes on from there, and tries
again the survivors and every mutant of a module that has changed meanwhile. The exit status is 1
when less than 90 % are killed.
"""

import argparse
import ast
import difflib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from benchmarks import measure

ROOT = Path(__file__).parents[1]
LEAST_KILLED = 0.9
MODULES = {  # and the test files beside tests/ROOM/test_MODULE.py
    "imaging/geometry": ["imaging/test_geometry_properties"],
    "imaging/nifti_header": ["imaging/test_nifti", "imaging/test_hostile_files"],
    "imaging/preprocessing": [],
    "models/attention_unet": [],
    "models/gate": [],
    "inference/decision": [],
    "inference/stitching": ["inference/test_sliding_window"],
    "evaluation/metrics": [],
    "training/loss": [],
    "training/step": ["training/test_trainer"],
}
# Annotations use `|`; the variable operators need arguments that name the variables.
LEFT_OUT = ("BinaryOperator_BitOr", "VariableReplacer", "VariableInserter")
# What a surviving change looks like without spaces, and why the module behaves as before.
EQUIVALENT = {
    "strict=False": "all callers give sequences of one length",
    "p==r>=0": "where two masks of one size share no voxel the ratio is 0 in either case",
    'ifnotdevice.type=="cpu"': "NumPy's zeros and torch's are the same",
    "SLAB_VALUES=": "how many planes are handed on at once changes no result",
}
SAID = "said.txt"  # what pytest says
COPIED = ("attunet3d", "benchmarks", "data_manifests", "docs", "pipelines", "tests")
LOADED: tuple[str, ...] = (
    "torch",
    "monai.losses",
    "monai.networks.nets",
    "scipy.ndimage",
    "nibabel",
    "SimpleITK",
)
LOADED += ("pytest", "monai.transforms", "monai.inferers", "scipy.spatial")


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    source: str  # checksum of the module
    line: int
    operator: str
    occurrence: int


class _Places(Visitor):  # type: ignore[misc]
    """Collects where an operator can change a module, in the order in which it counts."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator
        self.found: list[tuple[int, int]] = []

    def visit(self, node: Any) -> Any:
        places = self.operator.mutation_positions(node)
        self.found += [tuple(start) for start, _ in places]
        return node


def sample(module: str, count: int, seed: int) -> list[Mutant]:
    """Draw `count` mutants of a module, at different places."""
    source = (ROOT / "attunet3d" / f"{module}.py").read_text(encoding="utf-8")
    tree, checksum = get_ast(source), hashlib.sha256(source.encode()).hexdigest()[:12]
    choices: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in sorted(operator_names()):
        if any(part in name for part in LEFT_OUT):
            continue
        places = _Places(get_operator(name)())
        places.walk(tree)
        for occurrence, place in enumerate(places.found):
            choices.setdefault(place, []).append((name, occurrence))
    rng = random.Random(f"{seed} {module}")
    drawn: list[Mutant] = []
    for place in rng.sample(sorted(choices), len(choices)):
        name, occurrence = rng.choice(choices[place])
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        if mutated is not None and _differs(source, mutated):
            drawn.append(Mutant(module, checksum, place[0], name, occurrence))
        if len(drawn) == count:
            break
    return drawn


def _differs(source: str, mutated: str) -> bool:
    """Whether the change is valid Python, and not in a comment or a type only."""
    try:
        return ast.dump(ast.parse(source)) != ast.dump(ast.parse(mutated))
    except SyntaxError:
        return False


def changed_lines(source: str, mutated: str) -> tuple[str, str]:
    """The lines that a mutant changes, before and after."""
    lines = list(difflib.ndiff(source.splitlines(), mutated.splitlines()))
    before, after = (" ".join(x[2:].strip() for x in lines if x[0] == sign) for sign in "-+")
    return before, after


class Checkout:
    """A copy of the checkout in which one module at a time is changed and tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def outcome(self, mutant: Mutant) -> dict[str, Any]:
        """Try a mutant; the tests must pass on the module as it is."""
        path = self.folder / "attunet3d" / f"{mutant.module}.py"
        if mutant.module not in self.seconds:
            self.seconds[mutant.module] = self._passes(mutant.module)
        source = path.read_text(encoding="utf-8")
        mutated = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
        try:
            path.write_text(mutated, encoding="utf-8")
            status = self._status(mutant.module, 60 + 5 * self.seconds[mutant.module])
        finally:
            path.write_text(source, encoding="utf-8")
        before, after = changed_lines(source, mutated)
        how = {0: "survived", None: "killed by time"}.get(status, "killed")
        return {**asdict(mutant), "before": before, "after": after, "outcome": how}

    def _passes(self, module: str) -> float:
        began = time.perf_counter()
        status = self._status(module, 3600)
        if status != 0:
            said = (self.folder / SAID).read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"{said[-3000:]}\n{module}: its tests do not pass as it is")
        return time.perf_counter() - began

    def _status(self, module: str, seconds: float) -> int | None:
        """The exit status of pytest in a forked process; None when time was up."""
        room, name = module.split("/")
        tests = [f"{room}/test_{name}", *MODULES[module]]
        files = [self.folder / "tests" / f"{test}.py" for test in tests]
        paths = [self.folder / "attunet3d" / f"{module}.py", *(f for f in files if f.exists())]
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_run_tests, args=(self.folder, [*map(str, paths)]))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        return process.exitcode


def _run_tests(folder: Path, paths: list[str]) -> None:
    said = os.open(folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    for name in [n for n in sys.modules if n.split(".")[0] in ("attunet3d", "benchmarks")]:
        del sys.modules[name]  # of the checkout that is copied
    import pytest

    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *paths])
    os._exit(int(status))


def run(mutants: Sequence[Mutant], known: dict[Mutant, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The outcome of each mutant; what was killed before is not tried again."""
    for name in LOADED:
        __import__(name)
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        checkout = Checkout(Path(folder, "checkout"))
        for mutant in mutants:
            row = known.get(mutant)
            if row is None or row["outcome"] == "survived":
                row = checkout.outcome(mutant)
            why = _equivalent(row) if row["outcome"] == "survived" else None
            yield {**row, **({"outcome": "equivalent", "why": why} if why else {})}


def _equivalent(row: dict[str, Any]) -> str | None:
    after, before = ("".join(row[name].split()) for name in ("after", "before"))
    new = [part for part in EQUIVALENT if part in after and (part[-1] == "=" or part not in before)]
    return EQUIVALENT[new[0]] if new else None


def _known(path: Path) -> dict[Mutant, dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))["mutants"] if path.exists() else []
    names = Mutant.__dataclass_fields__
    return {Mutant(**{name: row[name] for name in names}): row for row in rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # two mutants of one second and size would share a file
    known = _known(options.out / "mutants.json")
    mutants = [m for name in options.only for m in sample(name, options.each, options.seed)]
    rows: list[dict[str, Any]] = []
    for row in run(mutants, known):
        rows.append(row)
        print(f"{row['outcome']}: {row['module']}:{row['line']}: {row['after']}", flush=True)
        counted = [row for row in rows if row["outcome"] != "equivalent"]
        killed = sum(row["outcome"].startswith("killed") for row in counted)
        about = {"tried": len(counted), "killed": killed, "equivalent": len(rows) - len(counted)}
        unseen = [row for mutant, row in known.items() if mutant not in mutants[: len(rows)]]
        content = {"seed": options.seed, **about, "mutants": [*rows, *unseen]}
        measure.save("mutants", content, options.out)
    share = killed / max(1, len(counted))
    print(f"{killed} of {len(counted)} killed ({share:.0%}); {about['equivalent']} equivalent")
    return 0 if share >= LEAST_KILLED else 1


if __name__ == "__main__":
    raise SystemExit(main())
