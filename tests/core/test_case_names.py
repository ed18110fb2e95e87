"""Ids and paths of manifests: what is taken, what is refused, and that nothing leaves the root."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attunet3d.cohort.results import case_files
from attunet3d.core import DataError
from attunet3d.core.case_names import check_id, folded, inside, stem


@pytest.mark.parametrize(
    "good", ["a", "pancreas_001", "-c", "Ä 7", "s0001.v2", "con_1", "0", "x" * 200, "com10"]
)
def test_ids_that_name_a_file_everywhere(good: str, tmp_path: Path) -> None:
    assert check_id(good) == good
    assert case_files(tmp_path, good).mask.parent == tmp_path  # `results` takes them, too
    (tmp_path / f"{good}.nii.gz").touch()


@pytest.mark.parametrize(
    "bad",
    [
        *("", ".", "..", "../a", "a/b", "a\\b", "/a", ".a", " a", "a ", "a.", "C:a", "a:b"),
        *("a\0b", "a\nb", "a\tb", "a\x7fb", "a\u202eb", "a\ud800", "a*", "a?", 'a"', "a<b", "a|b"),
        *("CON", "con", "nul.x", "AUX", "com1", "LPT9.nii", "failures", "Summary", "x" * 201),
        *(None, 7, ["a"], "é" * 101),
    ],
)
def test_ids_that_are_refused(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^id ") as error:
        check_id(bad)
    assert "rename the case" in str(error.value)
    assert str(error.value).isprintable()


def test_ids_that_some_file_systems_take_for_one() -> None:
    assert folded("Case") == folded("cASE")
    assert folded("caf\u00e9") == folded("cafe\u0301")
    assert folded("a1") != folded("a2")


def test_paths_lie_beneath_the_root(tmp_path: Path) -> None:
    assert inside(tmp_path, "imagesTr/a.nii.gz") == tmp_path.resolve() / "imagesTr" / "a.nii.gz"
    assert inside(tmp_path, "./a..b.nii") == tmp_path.resolve() / "a..b.nii"


@pytest.mark.parametrize(
    "bad",
    [
        *("", ".", "..", "../a", "a/../../b", "a/../b", "/etc/passwd", "//host/a", "~/../a/.."),
        *(
            "..\\a",
            "C:/a",
            "c:a",
            "a\0b",
            "a\nb",
            "a/NUL",
            "con.nii",
            "a/" + "b" * 256,
            "a/" * 3000,
        ),
        *(None, 3, ["a"]),
    ],
)
def test_paths_that_are_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^path "):
        inside(tmp_path, bad)


def test_links_may_not_lead_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret.nii").touch()
    (root / "file.nii").symlink_to(outside / "secret.nii")
    (root / "folder").symlink_to(outside)
    (root / "up").symlink_to("..")
    for path in ("file.nii", "folder/secret.nii", "up/outside/secret.nii"):
        with pytest.raises(DataError, match="leads out of the root"):
            inside(root, path)


def test_links_within_the_root_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    (root / "store").mkdir(parents=True)
    (root / "store" / "a.nii").touch()
    (root / "a.nii").symlink_to("store/a.nii")
    (tmp_path / "link").symlink_to(root)
    real = (root / "store" / "a.nii").resolve()
    assert inside(root, "a.nii") == real
    assert inside(tmp_path / "link", "a.nii") == real


def test_a_ring_of_links_never_leads_out(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with suppress(DataError):  # Python before 3.13 refuses to resolve it
        assert inside(tmp_path, "a/x").is_relative_to(tmp_path.resolve())


@given(st.text(max_size=40))
def test_whatever_is_taken_stays_inside(text: str) -> None:
    root = Path(os.sep, "data", "root")
    try:
        path = inside(root, text)
    except DataError:
        return
    assert path.is_relative_to(root.resolve())


@given(st.text(max_size=20))
def test_whatever_id_is_taken_is_one_name(text: str) -> None:
    try:
        check_id(text)
    except DataError:
        return
    assert Path("/out", text + ".nii.gz").parent == Path("/out")
    assert case_files(Path("/out"), text).case_id == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("a.nii.gz", "a"), ("a.NII.GZ", "a"), ("a.b.nii", "a.b"), ("a.nrrd", "a"), ("a", "a")),
        *(("a.mha", "a"), ("PANCREAS_0001", "PANCREAS_0001"), ("a.txt", "a.txt")),
    ],
)
def test_stems(name: str, expected: str) -> None:
    assert stem(name) == expected
