"""Modules import from their own room and rooms below it; files and functions are short."""

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, PIPELINES, DOCS = ROOT / "attunet3d", ROOT / "pipelines", ROOT / "docs"
MAY_USE = {  # room: the rooms it may import from, lowest first
    "core": "",
    "imaging": "core",
    "datasets": "core imaging",
    "models": "core",
    "inference": "core imaging datasets models",
    "cohort": "core imaging datasets inference",
    "evaluation": "core imaging datasets models inference cohort",
    "training": "core imaging datasets models inference cohort evaluation",
    "packaging": "core imaging models inference cohort",
    "phantoms": "core imaging",
    "serving": "core imaging inference cohort evaluation packaging",
}
LIGHT = (  # start without torch and MONAI, so that --help and data checks are quick
    *("core.config", "core.presets", "core.command_line", "imaging.geometry"),
    *("imaging.nifti", "imaging.volume", "datasets.manifest"),
)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at any depth, without "attunet3d."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {name.removeprefix("attunet3d.") for name in found if name.startswith("attunet3d.")}
    return names - {"__version__"}


def test_every_room_has_its_row() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_USE)


@pytest.mark.parametrize("room", MAY_USE)
def test_a_room_uses_only_the_rooms_below_it(room: str) -> None:
    allowed = {room, *MAY_USE[room].split()}
    for path in (PACKAGE / room).rglob("*.py"):
        used = {name.split(".")[0] for name in imports(path)}
        assert used <= allowed, f"{room}/{path.name} imports from {sorted(used - allowed)}"


CODE = [*PACKAGE.rglob("*.py"), *PIPELINES.rglob("*.py")]
MOST_LINES_OF_A_FILE = 300
MOST_LINES_OF_A_FUNCTION = 60  # of its body, without the docstring
Function = ast.FunctionDef | ast.AsyncFunctionDef


def body_lines(function: Function) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def public(path: Path) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """The public classes, functions and methods of a file, overloads left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for body in (tree.body, *(node.body for node in classes if node.name[0] != "_")):
        for node in body:
            if not isinstance(node, Function | ast.ClassDef) or node.name[0] == "_":
                continue
            if "overload" not in map(ast.unparse, node.decorator_list):
                yield node.name, node


def test_a_file_has_at_most_three_hundred_lines() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert not {path for path in CODE if lines[path] > MOST_LINES_OF_A_FILE}


def test_functions_are_short() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": body_lines(node)
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION} == {}
    assert sorted(lengths.values())[len(lengths) * 9 // 10] <= 35


def test_what_is_public_has_a_docstring() -> None:
    bare = [(p, name) for p in CODE for name, node in public(p) if not ast.get_docstring(node)]
    assert bare == []


OUTSIDE = [path for folder in ("pipelines", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("room", MAY_USE)
def test_other_rooms_use_only_the_names_of_a_rooms_face(room: str) -> None:
    face = set(import_module(f"attunet3d.{room}").__all__)
    elsewhere = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != room]
    for path in [*elsewhere, *OUTSIDE]:
        used = {name.partition(".")[2] for name in imports(path) if name.split(".")[0] == room}
        assert used <= face, f"{path.relative_to(ROOT)} uses {sorted(used - face)} of {room}"


@pytest.mark.parametrize("room", MAY_USE)
def test_every_name_of_a_face_is_there(room: str) -> None:
    module = import_module(f"attunet3d.{room}")
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_start_without_torch(module: str) -> None:
    code = f"import sys, attunet3d.{module}; print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.py")), ids=lambda p: p.stem)
def test_pipelines_hold_the_order_of_events_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 60
    definitions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert definitions == ([] if path.stem == "__init__" else ["main"])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not any(name.split(".")[0] in ("torch", "monai", "numpy") for name in names)
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            assert not isinstance(node.value, int | float) or node.value in (0, 1)


def test_the_picture_of_the_rooms_is_current() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_rooms.py"))["picture"]()
    assert (DOCS / "rooms.svg").read_text(encoding="utf-8") == drawn, "run docs/draw_rooms.py"


PAGES = [DOCS / "architecture.md", ROOT / "CONTRIBUTING.md", ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_paths_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`([\w./-]+/[\w.-]*\.pyi?)`", page.read_text("utf-8"))
    assert named
    for name in named:
        places = (ROOT / name, PACKAGE / name)
        assert any(place.exists() for place in places), f"{page.name} names {name}"


def test_what_contributing_names_in_a_file_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`\s+(?:\(|in\s+)`([\w./-]+\.py)`", text)
    assert len(named) >= 8
    for name, path in named:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def |class |){name}\b", code, re.M), f"{path} lacks {name}"
