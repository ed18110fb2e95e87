"""Tables and pictures of pieces: mean ± sd over seeds, differences paired by case.

The interval of a difference resamples the cases, the same for both recipes, and the seeds of each
recipe by themselves, since one training says little of the next. With one seed it knows the cases
only, and with three it is coarse. p is Wilcoxon's over the cases, whose Dice is the seeds' mean: it
asks whether these models differ on other cases of the kind.
"""

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
    "volume": "volume, × true",
}
RESAMPLES = 10_000
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
                found[organ][case] = _score(scores, metric)
    return found


def _score(scores: dict[str, float], metric: str) -> float:
    if metric != "volume":
        return float(scores[metric])
    # Dice = 2 TP / (P + T) and recall = TP / T, so P / T = 2 recall / Dice − 1
    return 2 * scores["recall"] / scores["dice"] - 1 if scores["dice"] else float("nan")


def tables(pieces: Sequence[Piece], reference: str) -> str:
    """One table an organ: every metric, then Dice less that of the reference recipe."""
    organs = list(by_organ(pieces[0]))
    return "\n".join(_table(pieces, reference, organ) for organ in organs)


def _table(pieces: Sequence[Piece], reference: str, organ: str) -> str:
    names = list(dict.fromkeys(piece["recipe"]["name"] for piece in pieces))
    head = ["recipe", "seeds", "steps", "train, s", *COLUMNS.values()]
    head += [f"Dice − {reference} (95 %), p, cases ahead", "commits"]
    rows = [head, ["---"] * len(head)]
    for name in names:
        own = [piece for piece in pieces if piece["recipe"]["name"] == name]
        row = [name, f"{len({piece['seed'] for piece in own})}"]
        row.append(f"{np.mean([piece['steps'] for piece in own]):.0f}")
        row.append(f"{np.mean([piece['seconds']['train']['processor'] for piece in own]):.0f}")
        for metric in COLUMNS:
            row.append(_mean(own, organ, metric))
        row.append(_difference(pieces, name, reference, organ))
        rows.append([*row, ", ".join(sorted({piece["commit"] for piece in own}))])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"\n### {organ}\n\n{text}\n"


def _mean(pieces: Sequence[Piece], organ: str, metric: str) -> str:
    """The cohort's mean, and its sd over seeds; how many are meant where some have no distance."""
    seeds: defaultdict[int, list[float]] = defaultdict(list)
    for piece in pieces:
        seeds[piece["seed"]] += list(by_organ(piece, metric)[organ].values())
    finite = [[value for value in values if np.isfinite(value)] for values in seeds.values()]
    means, digits = [np.mean(values) for values in finite if values], 1 if metric in COARSE else 3
    if not means:
        return "–"
    count, all_count = sum(map(len, finite)), sum(map(len, seeds.values()))
    spread = f" ± {np.std(means, ddof=1):.{digits}f}" if len(means) > 1 else ""
    note = f" ({count} of {all_count})" if count < all_count else ""
    return f"{np.mean(means):.{digits}f}{spread}{note}"


def _dice(pieces: Sequence[Piece], name: str, organ: str) -> dict[int, dict[str, float]]:
    """Seed → case → Dice of a recipe; splits hold different cases."""
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for piece in pieces:
        if piece["recipe"]["name"] == name:
            found[piece["seed"]] |= by_organ(piece)[organ]
    return found


def _difference(pieces: Sequence[Piece], name: str, reference: str, organ: str) -> str:
    """Mean difference of Dice, its interval over cases and seeds, Wilcoxon's p over cases."""
    if name == reference:
        return ""
    ours, theirs = (_dice(pieces, one, organ) for one in (name, reference))
    cases = sorted(set.intersection(*map(set, [*ours.values(), *theirs.values()])))
    common = sorted(set(ours) & set(theirs))
    if not cases or not common:
        return ""
    a, b = (np.array([[of[seed][c] for c in cases] for seed in common]) for of in (ours, theirs))
    random = np.random.default_rng(0)

    def shares(count: int) -> Floats:
        return random.multinomial(count, [1 / count] * count, RESAMPLES) / count

    weights = shares(len(cases))
    drawn = ((shares(len(a)) @ a - shares(len(b)) @ b) * weights).sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = statistics.paired_difference(b.mean(axis=0), a.mean(axis=0)).p_value
    ahead = int((a.mean(axis=0) > b.mean(axis=0)).sum())
    numbers = f"{(a - b).mean():+.3f} ({low:+.3f} … {high:+.3f})".replace("-", "−")
    p_value = f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return f"{numbers}, {p_value}, {ahead} of {len(cases)}"


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
