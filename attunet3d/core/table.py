"""Tables as plain text, in columns as wide as what they hold."""

import re
from collections.abc import Sequence

NUMBERS = re.compile(r"[-+–±. 0-9]*")


def as_table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as lines of aligned columns, two spaces apart.

    Columns that hold nothing but numbers below their first cell are aligned to the right.

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
