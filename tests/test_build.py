"""What the distributions hold, which versions the tests get, and whose pipelines run."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[Requirement]:
    """What the package and the extra `dev` ask for, its own extras resolved."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    own = next(Requirement(text) for text in extras["dev"] if text.startswith("attunet3d["))
    texts = [*project["dependencies"], *extras["dev"]]
    texts += [text for extra in own.extras for text in extras[extra]]
    return [Requirement(text) for text in texts if not text.startswith("attunet3d[")]


def test_the_lock_names_one_version_of_each_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert len(locked) == len(lines)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in locked.values())
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not locked; run make lock"
        assert requirement.specifier.contains(locked[name]), name


def test_torch_is_a_range_and_its_lock_one_version() -> None:
    (torch,) = [part for part in requirements() if part.name == "torch"]
    assert str(torch.specifier) == ">=2.10"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source and, in `dist`, the sdist and the wheel made of it."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "dist").mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    code = (
        "from setuptools import build_meta\n"
        "build_meta.build_sdist('../dist')\nbuild_meta.build_wheel('../dist')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "source", check=True, capture_output=True
    )
    return folder


def test_the_sdist_holds_what_its_tests_need(distributions: Path) -> None:
    (sdist,) = (distributions / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("attunet3d", "pipelines", "tests", "data_manifests", "docs", "benchmarks"):
        files = {
            path.relative_to(distributions / "source").as_posix()
            for path in (distributions / "source" / folder).rglob("*")
            if path.is_file()
        }
        assert files <= names
    assert {"CHANGELOG.md", "Makefile", "constraints.txt", ".ci/run", "pyproject.toml"} <= names


def test_the_wheel_holds_the_package_alone(distributions: Path) -> None:
    (wheel,) = (distributions / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name for name in names if name.startswith("attunet3d/")}
    assert all(name.startswith(("attunet3d/", "attunet3d-")) for name in names)
    source = distributions / "source"
    for path in (source / "attunet3d").rglob("*"):
        if path.suffix in (".py", ".pyi", ".typed"):
            assert path.relative_to(source).as_posix() in inside
    for folder in ("pipelines", "data_manifests"):
        for path in (source / folder).glob("*.[pj]*"):
            assert f"attunet3d/{folder}/{path.name}" in inside


def test_a_second_checkout_runs_its_own_pipelines(tmp_path: Path) -> None:
    (tmp_path / "attunet3d").mkdir()
    (tmp_path / "pipelines").mkdir()
    shutil.copy(ROOT / "attunet3d" / "__init__.py", tmp_path / "attunet3d")
    shutil.copy(ROOT / "attunet3d" / "__init__.pyi", tmp_path / "attunet3d")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "pipelines" / "__init__.py").touch()
    (tmp_path / "pipelines" / "infer.py").write_text("PLACE = 'second'\n", encoding="utf-8")
    code = "from attunet3d.pipelines import infer; print(infer.PLACE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "second\n"


def test_no_dependency_is_under_the_gpl() -> None:
    for requirement in requirements():
        try:
            facts = metadata.metadata(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        words = " ".join(facts.get_all("License-Expression", []) + facts.get_all("Classifier", []))
        assert not re.search(r"\bL?GPL|General Public License", words), requirement.name
