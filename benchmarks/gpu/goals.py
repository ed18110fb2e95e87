"""What the GPU benchmark is to reach on an H200, beside what it found."""

from collections.abc import Mapping
from typing import Any

from benchmarks import measure

Found = Mapping[str, Any]
LAYOUTS = ("contiguous", "channels_last")
PRESET = "oktay2018"


def goals(found: Found) -> list[dict[str, Any]]:
    """A row a goal; `found` is None where a section gave no number."""
    ours = least_ms(found, "ours")
    fit = "learning", "fit"
    rows = [
        ("training steps/s, 2×160×160×96, patch on the GPU", per_second(ours), ">=", 50),
        ("training steps/s by Trainer.fit", number(found, *fit, "steps_a_second"), ">=", 50),
        ("share of training lost to data", number(found, *fit, "share_lost_to_data"), "<=", 0.05),
        ("times MONAI AttentionUnet", ratio(least_ms(found, "AttentionUnet"), ours), ">=", 2),
        ("times MONAI DynUNet", ratio(least_ms(found, "DynUNet"), ours), ">=", None),
        (
            "share of the convolutions' ceiling, training",
            ratio(number(found, f"ceiling {PRESET}", "convolutions", "ms"), ours),
            ">=",
            0.6,
        ),
        (
            "share of the convolutions' ceiling, inference at 2 mm",
            ratio(
                number(found, "trials", "ceiling 2 mm", "ms"),
                number(found, "passes", "whole 2 mm", "ms"),
            ),
            ">=",
            0.75,
        ),
        ("network pass at 2 mm, ms", number(found, "passes", "whole 2 mm", "ms"), "<=", 10),
        ("scan, file to file, ms", number(found, "cohort", "one scan, whole", "ms"), "<=", 500),
        ("cohort, scans/s", number(found, "cohort", "cohort, whole", "scans_a_second"), ">=", 10),
        (
            "share of time the GPU is busy in the cohort",
            number(found, "cohort", "cohort, whole", "gpu_busy_share_by_nvidia_smi"),
            ">=",
            None,
        ),
    ]
    return [
        {"what": what, "found": value, "goal": goal and f"{sign} {goal}", "reached": reached}
        for what, value, sign, goal in rows
        for reached in [_reached(value, sign, goal)]
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The same as markdown."""
    reached = {True: "yes", False: "no", None: None}
    return measure.markdown(
        {
            "what": row["what"],
            "found": None if row["found"] is None else f"{row['found']:.3g}",
            "goal on an H200": row["goal"] or None,
            "reached": reached[row["reached"]],
        }
        for row in rows
    )


def least_ms(found: Found, network: str) -> float | None:
    """A step of a network in its best mode."""
    plain = [number(found, f"train {PRESET} {network}", layout, "ms") for layout in LAYOUTS]
    return min((ms for ms in plain if ms), default=None)


def number(found: Found, *path: str) -> float | None:
    """The number that lies there, if one does."""
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def per_second(ms: float | None) -> float | None:
    return 1e3 / ms if ms else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _reached(value: float | None, sign: str, goal: float | None) -> bool | None:
    if value is None or goal is None:
        return None
    return value >= goal if sign == ">=" else value <= goal
