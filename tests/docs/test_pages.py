"""Every command and code block of the pages runs, on tiny phantoms; links lead somewhere.

A block that cannot run here stands after a comment `<!-- not run: why -->`; its commands must still
be understood by the parsers.
"""

import argparse
import re
import runpy
import shlex
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from attunet3d.__main__ import COMMANDS, dispatch
from attunet3d.core import find_config
from attunet3d.evaluation import save_network_picture
from attunet3d.phantoms import write_phantoms

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "llms.txt", *sorted(DOCS.rglob("*.md"))]
RUN = [  # in this order: later pages use what earlier ones leave
    *("tutorial", "howto/five_folds", "howto/own_folders", "howto/fine_tuning", "howto/report"),
    *("howto/published_forms", "howto/deploying", "explanation/network", "explanation/plan"),
]
GENERATED = {"reference/commands.md", "reference/settings.md"}  # by docs/write_reference.py
TINY = [  # added to each training and plan: seconds instead of hours
    "--set",
    "training.steps=2",
    "--set",
    "training.epochs=0",
    *("--set", "training.patch_size=16,16,16", "--set", "training.batch_size=1"),
    *(
        "--set",
        "network.channels=2,4,8",
        "--set",
        "network.strides=[[2, 2, 2], [2, 2, 2]]",
        "--set",
        "preprocessing.spacing_mm=8,8,8",
    ),
]
BLOCK = re.compile(r"(<!-- not run: .*?-->\n)?```(\w+)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    runs: bool

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each call of attunet3d; `$` expressions stay as they are."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [line[1:] for line in words if line[:1] == ["attunet3d"]]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, m[2], m[3], m[1] is None) for m in BLOCK.finditer(text)]


COMMAND_LINES = [
    (page.relative_to(ROOT).as_posix(), command)
    for page in PAGES
    for block in blocks(page)
    for command in block.commands
]


@pytest.mark.parametrize(("page", "command"), COMMAND_LINES, ids=lambda part: str(part)[:60])
def test_every_command_is_understood(
    page: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command[0] in ("--version", "--completion"):
        return
    assert command[0] in COMMANDS, page
    main = import_module(f"attunet3d.pipelines.{command[0].replace('-', '_')}").main
    understood = []

    class UnderstoodError(Exception):
        """The arguments were parsed; nothing is done."""

    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)

        def parse(
            parser: argparse.ArgumentParser, argv: list[str] | None = None, real: object = real
        ) -> None:
            understood.append(real(parser, argv))  # type: ignore[operator]
            raise UnderstoodError

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    plain = ["0" if re.match(r"\$[A-Z]", word) else word for word in command[1:]]
    arguments = [word for word in plain if word not in ("--quiet", "--debug", "$resume")]
    with pytest.raises(UnderstoodError):
        main(arguments)
    assert understood


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: the demo's phantoms, a data set, scans, own folders."""
    path = tmp_path_factory.mktemp("pages")
    write_phantoms(path / "demo" / "training", 3, matrix=40)
    write_phantoms(path / "demo" / "unseen", 1, 1000, matrix=40)
    write_phantoms(path / "Task07_Pancreas", 5, matrix=40)
    shutil.copytree(path / "demo" / "unseen" / "imagesTr", path / "new_scans")
    for scan in (path / "new_scans").iterdir():
        scan.rename(scan.with_name("phantom_0000.nii.gz"))
    for kind, source in (("images", "imagesTr"), ("labels", "labelsTr")):
        (path / "my_data" / kind).mkdir(parents=True)
        for n, scan in enumerate(sorted((path / "demo" / "training" / source).iterdir()), 1):
            shutil.copy(scan, path / "my_data" / kind / f"patient_{n:03}.nii.gz")
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_the_pages_can_be_followed_in_order(here: Path) -> None:
    for block in [block for name in RUN for block in blocks(DOCS / f"{name}.md")]:
        if block.language == "python" and block.runs:
            exec(compile(block.text, block.page, "exec"), {})
        elif block.language == "bash" and block.runs:
            for command in block.commands:
                tiny = TINY if command[0] in ("train", "plan") else []
                status = dispatch([*command, *tiny])
                assert status == 0 or command[0] == "doctor", f"{block.page}: {command}"


def test_what_does_not_run_says_why_and_the_rest_is_run() -> None:
    run = {DOCS / f"{name}.md" for name in (*RUN, "extending", "howto/frameworks")}
    for page in sorted(DOCS.rglob("*.md")):
        kinds = {block.language for block in blocks(page) if block.runs}
        assert page in run or not kinds & {"bash", "python"}, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path = page.parent / target.split("#")[0]
        made = path.resolve().is_relative_to(DOCS) and (
            path.resolve().relative_to(DOCS).as_posix() in GENERATED
        )
        assert made or path.exists(), target
        if page.is_relative_to(DOCS):  # what lies elsewhere is not on the site
            assert path.resolve().is_relative_to(DOCS), target


def test_the_site_lists_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"\b([\w/]+\.md)$", text, re.M))
    assert listed == {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} | GENERATED


def test_the_picture_of_the_network_is_current(tmp_path: Path) -> None:
    save_network_picture(find_config("oktay2018"), 2, tmp_path / "network.svg")
    texts = [
        re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(encoding="utf-8"))
        for path in (DOCS / "explanation" / "network.svg", tmp_path / "network.svg")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20


def test_the_reference_names_every_command_and_setting() -> None:
    write = runpy.run_path(str(DOCS / "write_reference.py"))
    commands, settings = write["commands"](), write["settings"]()
    assert all(f"\n## {name}\n" in commands for name in COMMANDS)
    assert "--save-attention" in commands
    assert "`learning_rate`" in settings
    assert "`spacing_mm`" in settings


def test_the_reference_of_python_has_every_public_name() -> None:
    face = (ROOT / "attunet3d" / "__init__.pyi").read_text(encoding="utf-8")
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name in re.findall(r" as (\w+)$", face, re.M):
        assert re.search(rf"\.{name}$|`{name}`", page, re.M) or name == "UserError", name
    for path in re.findall(r"^::: (.*)\.(\w+)$", page, re.M):
        assert hasattr(import_module(path[0]), path[1]), path


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    page = (DOCS / "choices.md").read_text(encoding="utf-8").lower()
    for text in texts:
        name = re.split(r"[\[<>=]", text)[0].lower()
        assert name == "attunet3d" or name.removeprefix("types-") in page, (
            f"docs/choices.md lacks {name}"
        )
