"""A row of the table in `reliability.md`."""

from typing import Any


def row(what: str, tried: int, bad: int, note: str = "") -> dict[str, Any]:
    """What was tried, how often, and how often it went wrong."""
    return {"what": what, "tried": tried, "good": tried - bad, "bad": bad, "note": note}
