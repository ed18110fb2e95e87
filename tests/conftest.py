"""What tests of every room use."""

from typing import TypeVar

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """A value that could be None by its type, but is not here."""
    assert value is not None
    return value
