"""Train recipes on equal terms, score them on unseen cases, and write what differs how surely.

Usage: python -m benchmarks.accuracy RECIPE… [--out DIR] [--seeds 3] [--steps N | --minutes M]
       [--material hard|hard_fresh|hard_few|easy|anatomy|pancreas|patients] [--data DIR]

The first recipe is what the others are compared with, case by case. Pieces that are in DIR already
are not trained again. With --steps all recipes take the same number of steps; with --minutes the
same processor time, their steps counted from the cost of a step on this machine.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import SettingsError, command_line
from benchmarks import measure
from benchmarks.accuracy import report
from benchmarks.accuracy.material import MATERIALS, prepare
from benchmarks.accuracy.piece import Budget, run_piece
from benchmarks.accuracy.recipes import find_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score and compare; the exit status is 1 where a training failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "accuracy", metavar="DIR")
    parser.add_argument("--material", choices=MATERIALS, default="hard")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="of anatomy, pancreas and patients"
    )
    parser.add_argument("--seeds", type=int, default=3)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    arguments = parser.parse_args(argv)

    rules = {"seeds": "1 or more", "steps": "1 or more", "minutes": "finite, above 0"}
    for name, rule in rules.items():
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            refused = f"--{name} {value}: must be {rule}"
            raise SettingsError(refused, value=value, cure="correct it")
    recipes = [find_recipe(name) for name in arguments.recipes]
    folder = arguments.out / "material" / arguments.material
    material = prepare(arguments.material, folder, arguments.data)
    steps, minutes = arguments.steps or 0, arguments.minutes or 0.0
    budget = Budget(steps or (0 if minutes else 300), minutes)
    pieces, failed = [], False
    for seed in range(arguments.seeds):  # recipe after recipe, so that a stop leaves them level
        for recipe in recipes:
            for split in range(len(material.manifests)):
                try:
                    file = run_piece(recipe, material, split, seed, budget, arguments.out)
                except RuntimeError as error:  # the others go on; the next call tries it again
                    print(f"{recipe.name} seed {seed} failed: {error}", flush=True)
                    failed = True
                    continue
                pieces.append(json.loads(file.read_text()))
                print(report.line(pieces[-1]), flush=True)
    if not pieces:
        return 1
    text = report.tables(pieces, recipes[0].name)
    print(text)
    title = f"{material.name}-{budget}"
    (arguments.out / f"{title}.md").write_text(text)
    report.curves(pieces, arguments.out / f"{title}.png")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
