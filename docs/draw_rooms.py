"""Draw docs/rooms.svg: the rooms of the package and who uses whom, from the real imports.

A room stands as high as its users let it. An arrow means "imports from"; one that follows from two
others is left out. `make rooms` writes the file, and a test compares it with the imports.
"""

import ast
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
COMMANDS = "pipelines"
COLUMNS = {  # so that no arrow crosses a box
    **{"pipelines": 1.5, "packaging": 0.0, "training": 1.0, "serving": 2.0, "phantoms": 3.0},
    **{
        "evaluation": 1.5,
        "cohort": 1.5,
        "inference": 1.0,
        "models": 0.5,
        "datasets": 1.5,
        "imaging": 2.0,
    },
    "core": 1.25,
}
WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 240, 78, 264, 122, 20

Graph = dict[str, set[str]]


def direct_imports() -> Graph:
    """The rooms that each room's files, and the commands, import from."""
    rooms = {path.parent.name for path in (ROOT / "attunet3d").glob("*/__init__.py")}
    files = {room: sorted((ROOT / "attunet3d" / room).glob("*.py")) for room in rooms}
    files[COMMANDS] = [*sorted((ROOT / COMMANDS).glob("*.py")), *(ROOT / "attunet3d").glob("*.py")]
    return {
        name: {room for path in paths for room in _imported(path)} & rooms - {name}
        for name, paths in files.items()
    }


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others.

    Example:
        >>> reduced({"c": {"a", "b"}, "b": {"a"}, "a": set()})["c"]
        {'b'}
    """
    return {
        name: {room for room in used if not any(room in _below(graph, o) for o in used - {room})}
        for name, used in graph.items()
    }


def rows(graph: Graph) -> dict[str, int]:
    """The row of each room, 0 at the top: one below the lowest of its users."""
    found: dict[str, int] = {}
    waiting = set(graph)
    while waiting:
        free = {name for name in waiting if not any(name in graph[user] for user in waiting)}
        for name in free:
            users = [found[user] for user in found if name in graph[user]]
            found[name] = max(users, default=-1) + 1
        waiting -= free
    return found


def picture() -> str:
    """The drawing as SVG."""
    graph = direct_imports()
    places = {
        name: (MARGIN + COLUMN * COLUMNS.get(name, 3.0), MARGIN + ROW * row)
        for name, row in rows(graph).items()
    }
    arrows = [
        _arrow(places[name], places[room])
        for name, used in sorted(reduced(graph).items())
        for room in sorted(used)
    ]
    boxes = [_box(name, *place) for name, place in sorted(places.items())]
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    return "\n".join([_HEAD.format(width=width, height=height), *arrows, *boxes, "</svg>\n"])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" \
font-family="sans-serif">
<rect width="100%" height="100%" fill="white"/>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#555"/></marker>"""


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "attunet3d":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attunet3d."):
            names.add((node.module or "").split(".")[1])
    return names


def _below(graph: Graph, name: str) -> set[str]:
    return graph[name].union(*(_below(graph, room) for room in graph[name]))


def _sentence(name: str) -> str:
    """The first line of a room's docstring, without what follows a colon."""
    folder = ROOT / COMMANDS if name == COMMANDS else ROOT / "attunet3d" / name
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0]


def _box(name: str, x: float, y: float) -> str:
    lines = wrap(_sentence(name), 36)[:3]
    style = 'font-size="11" fill="#333"'
    words = "".join(
        f'<text x="{x + 10:g}" y="{y + 36 + 15 * n:g}" {style}>{escape(line)}</text>'
        for n, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fa"'
        f' stroke="#39588a"/><text x="{x + 10:g}" y="{y + 19:g}" font-size="15" font-weight="bold">'
        f"{escape(name)}/</text>{words}"
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to_x, to_y = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    return (
        f'<path d="M{x:g} {y:g} {to_x:g} {to_y - 1:g}" stroke="#555" stroke-width="1.5"'
        ' marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
