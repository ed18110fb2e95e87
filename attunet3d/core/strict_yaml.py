"""YAML as settings need it: names, numbers, text and lists, within bounds.

Tags are refused, so nothing is made that is not plain; aliases are refused, so a kilobyte cannot
stand for a gigabyte; a key that comes twice is refused, as readers differ on which one counts.
"""

from typing import Any

import yaml

MOST_DEPTH = 20
LONGEST = 1000  # characters of one value


def parse_yaml(text: str) -> Any:
    """The value that a YAML (or JSON) text holds.

    Raises:
        ValueError: It is no YAML, or goes beyond what is said above.

    Example:
        >>> parse_yaml("training: {steps: 10, patch_size: [96, 96, 64]}")
        {'training': {'steps': 10, 'patch_size': [96, 96, 64]}}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)) from None


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, unless it holds what settings never need."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"an alias in line {_line(event)}; write the value out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"a tag in line {_line(event)}; write a plain value")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            raise yaml.YAMLError(f"a value of over {LONGEST} characters in line {_line(event)}")
        if self.depth == MOST_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MOST_DEPTH} in line {_line(event)}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            _require_different_keys(node)
        return node


def _require_different_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen:
            raise yaml.YAMLError(f"{str(key.value)[:80]!r} comes twice in line {_line(key)}")
        seen.add(name)


def _line(place: Any) -> int:
    return int(place.start_mark.line) + 1
