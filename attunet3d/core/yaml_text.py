"""Reads untrusted YAML within limits, as plain values in the types of YAML 1.2."""

import re
from typing import Any

import yaml

from attunet3d.core.text import MOST_DEPTH, refuse_twice


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2 in place of YAML 1.1's types."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own form)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        refuse_twice(self.construct_object(key) for key, _ in node.value)
        return mapping

    def construct_int(self, node: yaml.ScalarNode) -> int:
        digits = str(node.value)
        return int(digits, 0) if digits[:2] in ("0o", "0x") else int(digits)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
for _type, _pattern in (  # the first that matches counts
    ("null", r"null|Null|NULL|~|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
):
    _whole = re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", _whole, None)


def parse_yaml(text: str) -> Any:
    """The value of a YAML 1.2 text (core schema, which includes JSON).

    Tags are refused, so only plain values are created; aliases are refused, so a kilobyte cannot
    expand to a gigabyte. Infinity and NaN are read as text, since no setting can be either.

    Raises:
        ValueError: It is not YAML, or has a tag, an alias, a duplicate key, or nesting deeper
            than 64.

    Example:
        >>> parse_yaml("{steps: 010, at: 1:00, gate: no, patch_size: [96, 96, 64], rate: 1e-4}")
        {'steps': 10, 'at': '1:00', 'gate': 'no', 'patch_size': [96, 96, 64], 'rate': 0.0001}
    """
    depth = 0
    try:
        for event in yaml.parse(text, _Loader):  # before anything is built
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError("tags, anchors and aliases are not allowed; write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"nested deeper than {MOST_DEPTH}")
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
