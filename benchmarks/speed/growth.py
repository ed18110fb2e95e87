"""How what a program takes grows with its work: exponents, their marks, a table and a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

LINEAR, FLAT = 1.1, 0.1  # exponents up to which these words hold


@dataclass(frozen=True)
class Point:
    """One size, what it took, and the peak memory."""

    size: float
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Question:
    """What grows, and how time and memory may grow with it (None: only told)."""

    unit: str
    time: float | None
    memory: float | None
    measure: Callable[[Path, bool, int], list[Point]]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the line through the logarithms; a value below a millionth counts as that."""
    logs = np.log(np.maximum(values, 1e-6))
    return float(np.polyfit(np.log(sizes), logs, 1)[0])


def judge(question: Question, points: list[Point]) -> dict[str, Any]:
    """Exponents of all sizes and of the two largest, against what the question allows."""
    result: dict[str, Any] = {"unit": question.unit, "points": [vars(point) for point in points]}
    sizes = [point.size for point in points]
    for name, values, most in (
        ("time", [point.seconds for point in points], question.time),
        ("memory", [point.peak_mb for point in points], question.memory),
    ):
        slope = exponent(sizes, values)
        result[name] = {
            "exponent": round(slope, 3),
            "exponent_of_the_largest": round(exponent(sizes[-2:], values[-2:]), 3),
            "at_most": most,
            "reached": most is None or slope <= most,
        }
    return result


def table(name: str, result: dict[str, Any]) -> str:
    lines = [
        measure.markdown(
            {
                result["unit"]: f"{point['size']:g}",
                "seconds": f"{point['seconds']:.4f}",
                "peak MB": f"{point['peak_mb']:.1f}",
            }
            for point in result["points"]
        )
    ]
    for kind in ("time", "memory"):
        told = result[kind]
        most = "only told" if told["at_most"] is None else f"at most {told['at_most']}"
        verdict = "" if told["reached"] else " **missed**"
        largest = told["exponent_of_the_largest"]
        lines.append(
            f"\n{name}, {kind}: exponent {told['exponent']}, of the two largest {largest} "
            f"({most}){verdict}"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Time above, memory below, one column a question, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = len(results)
    figure, axes = plt.subplots(2, columns, figsize=(3.6 * columns, 6.4), squeeze=False)
    for column, result in zip(axes.T, results.values(), strict=True):
        sizes = np.array([point["size"] for point in result["points"]])
        for axis, key, kind, label in zip(
            column, ("seconds", "peak_mb"), ("time", "memory"), ("s", "MB"), strict=True
        ):
            values = np.maximum([point[key] for point in result["points"]], 1e-6)
            slope, height = np.polyfit(np.log(sizes), np.log(values), 1)
            axis.loglog(sizes, np.exp(height) * sizes**slope, color="0.7")
            axis.loglog(sizes, values, "o", color="tab:blue" if kind == "time" else "tab:orange")
            spread = max(values.max() / values.min(), 10.0) ** 0.5 * 1.5
            middle = (values.max() * values.min()) ** 0.5
            axis.set(ylim=(middle / spread, middle * spread), xlabel=result["unit"])
            axis.set_ylabel(f"peak memory, {label}" if kind == "memory" else f"time, {label}")
            axis.set_title(f"exponent {round(slope, 2) + 0.0:.2f}", fontsize=10)
            shown = sizes[[0, len(sizes) // 2, -1]]
            names = [f"{size / 1e6:g} M" if size >= 1e6 else f"{size:g}" for size in shown]
            axis.set_xticks(shown, names)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            for minor in (axis.xaxis, axis.yaxis):
                minor.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.25, which="both")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
