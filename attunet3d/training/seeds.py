"""The spread between seeds: one training several times, with another seed each."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

from attunet3d.core import SettingsError, as_table, locked_folder, read_json, whole_file
from attunet3d.training import distributed
from attunet3d.training.run import TrainingCall, begin_or_go_on, refuse_wrong_folders
from attunet3d.training.run_folder import Cases


def train_seeds(call: TrainingCall, run_dir: Path, cases: Cases, count: int) -> None:
    """Train `count` times, into `run_dir/seed0` …, and tell how far the results lie apart.

    The seeds go up from `training.seed`. A call that was stopped is finished by the same call with
    `resume`. `run_dir/seeds.json` holds the best `dice_network_grid` of each, their mean and their
    standard deviation (of a sample, n − 1).

    Raises:
        SettingsError: `count` is below 2, or the number of steps would differ between seeds.
        UserError: As `train_run`.
    """
    if count < 2:
        raise SettingsError(f"--seeds {count}: must be 2 or more", value=count)
    if call.hours is not None:
        rule = "--seeds compares trainings of one length"
        raise SettingsError(rule, value=call.hours, cure="leave --hours out")
    names = [f"seed{number}" for number in range(count)]
    refuse_wrong_folders(call, run_dir, names)
    dices: dict[int, float | None] = {}
    with distributed.held_by_first(lambda: locked_folder(run_dir, "train")):
        call = replace(call, cache=call.cache or run_dir / "cache")
        for number, name in enumerate(names):
            seed = call.config.training.seed + number
            config = call.config.replaced({"training.seed": seed})
            begin_or_go_on(replace(call, config=config), run_dir / name, cases)
            dices[seed] = read_json(run_dir / name / "summary.json")["best_dice_network_grid"]
        _write(run_dir, dices)


@distributed.by_first
def _write(run_dir: Path, dices: dict[int, float | None]) -> None:
    """Write `seeds.json` and print the table."""
    known = [dice for dice in dices.values() if dice is not None]
    mean = statistics.fmean(known) if known else None
    spread = statistics.stdev(known) if len(known) > 1 else None
    content = {"dice_network_grid": dices, "mean": mean, "standard_deviation": spread}
    whole_file.write_text(run_dir / "seeds.json", json.dumps(content, indent=2) + "\n")
    rows = [(str(seed), "–" if d is None else f"{d:.3f}") for seed, d in dices.items()]
    if mean is not None and spread is not None:
        rows.append(("mean ± standard deviation", f"{mean:.3f} ± {spread:.3f}"))
    print(as_table([("seed", "best dice_network_grid"), *rows]))
