"""Tables as plain text with aligned columns."""

import re
from collections.abc import Sequence

NUMBERS = re.compile(r"[-+–±. 0-9]*")


def as_table(rows: Sequence[Sequence[object]]) -> str:
    """Format rows of cells in columns that are two spaces apart.

    A column that has only numbers below its first cell is aligned to the right.

    Example:
        >>> print(as_table([("layer", "weights"), ("head", 17), ("encoder", 448)]))
        layer    weights
        head          17
        encoder      448
    """
    columns = []
    for column in zip(*rows, strict=True):
        texts = [str(cell) for cell in column]
        width = max(map(len, texts))
        numbers = len(texts) > 1 and all(NUMBERS.fullmatch(text) for text in texts[1:])
        columns.append([text.rjust(width) if numbers else text.ljust(width) for text in texts])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
