"""Tables and pictures of pieces: mean ± sd over seeds, differences paired by case."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import Floats
from attunet3d.evaluation import statistics

Piece = dict[str, Any]
COLUMNS = {
    "dice": "Dice",
    "nsd_1mm": "NSD 1 mm",
    "nsd_2mm": "NSD 2 mm",
    "hd95_mm": "HD95 mm",
    "recall": "recall",
    "false_positive_ml": "false positives ml",
}
COARSE = ("hd95_mm", "false_positive_ml")


def line(piece: Piece) -> str:
    """One piece in one line."""
    means = {organ: np.mean(list(values.values())) for organ, values in by_organ(piece).items()}
    organs = ", ".join(f"{organ} {mean:.3f}" for organ, mean in means.items())
    cost = piece["seconds"]["train"]["processor"]
    return f"{piece['recipe']['name']} seed {piece['seed']}: {organs} ({cost:.0f} s)"


def by_organ(piece: Piece, metric: str = "dice") -> dict[str, dict[str, float]]:
    """Organ → case → score, of cases that have the organ."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for case, organs in piece["cases"].items():
        for organ, scores in organs.items():
            if scores["present"] or metric == "false_positive_ml":
                found[organ][case] = float(scores[metric])
    return found


def tables(pieces: Sequence[Piece], reference: str) -> str:
    """One table an organ: every metric, then Dice less that of the reference recipe."""
    organs = list(by_organ(pieces[0]))
    return "\n".join(_table(pieces, reference, organ) for organ in organs)


def _table(pieces: Sequence[Piece], reference: str, organ: str) -> str:
    names = list(dict.fromkeys(piece["recipe"]["name"] for piece in pieces))
    head = ["recipe", "seeds", "steps", "train, s", *COLUMNS.values()]
    head += [f"Dice − {reference} (95 %), p", "commits"]
    rows = [head, ["---"] * len(head)]
    for name in names:
        own = [piece for piece in pieces if piece["recipe"]["name"] == name]
        row = [name, f"{len({piece['seed'] for piece in own})}"]
        row.append(f"{np.mean([piece['steps'] for piece in own]):.0f}")
        row.append(f"{np.mean([piece['seconds']['train']['processor'] for piece in own]):.0f}")
        for metric in COLUMNS:
            values, digits = _by_seed(own, organ, metric), 1 if metric in COARSE else 3
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            row.append(f"{values.mean():.{digits}f}{spread}")
        row.append(_difference(pieces, name, reference, organ))
        rows.append([*row, ", ".join(sorted({piece["commit"] for piece in own}))])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"\n### {organ}\n\n{text}\n"


def _by_seed(pieces: Sequence[Piece], organ: str, metric: str) -> Floats:
    """The cohort's mean for each seed; a missing distance is left out."""
    seeds: defaultdict[int, list[float]] = defaultdict(list)
    for piece in pieces:
        seeds[piece["seed"]] += list(by_organ(piece, metric)[organ].values())
    finite = [[value for value in values if np.isfinite(value)] for values in seeds.values()]
    return np.array([np.mean(values) if values else np.nan for values in finite])


def _by_case(pieces: Sequence[Piece], name: str, organ: str, seeds: set[int]) -> dict[str, float]:
    """Dice of each case, the mean over the seeds."""
    cases = defaultdict(list)
    for piece in pieces:
        if piece["recipe"]["name"] == name and piece["seed"] in seeds:
            for case, value in by_organ(piece)[organ].items():
                cases[case].append(value)
    return {case: float(np.mean(values)) for case, values in cases.items()}


def _difference(pieces: Sequence[Piece], name: str, reference: str, organ: str) -> str:
    """Mean difference of Dice, bootstrap interval over cases, Wilcoxon's p."""
    if name == reference:
        return ""
    seeds = [
        {piece["seed"] for piece in pieces if piece["recipe"]["name"] == one}
        for one in (name, reference)
    ]
    common = seeds[0] & seeds[1]
    ours, theirs = (_by_case(pieces, one, organ, common) for one in (name, reference))
    cases = [case for case in ours if case in theirs]
    if not cases:
        return ""
    found = statistics.paired_difference([theirs[c] for c in cases], [ours[c] for c in cases])
    p_value = f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001"
    numbers = f"{found.mean:+.3f} ({found.low:+.3f} … {found.high:+.3f})".replace("-", "−")
    return f"{numbers}, {p_value}"


def curves(pieces: Sequence[Piece], file: Path) -> None:
    """Dice of the validation cases against the step, one line a recipe, its seeds' mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(piece["recipe"]["name"] for piece in pieces):
        points = defaultdict(list)
        for piece in pieces:
            if piece["recipe"]["name"] == name:
                for point in piece["curve"]:
                    points[point["step"]].append(point["dice"])
        if points:
            steps = sorted(points)
            axes.plot(steps, [np.mean(points[step]) for step in steps], label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("Dice of the validation cases, network's grid")
    axes.set_ylim(0, 1)
    if axes.lines:
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)
    plt.close(figure)
