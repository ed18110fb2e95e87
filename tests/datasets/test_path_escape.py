"""No name that a stranger chose reaches beyond the root it is given or the folder of results.

`test_case_names` holds the rules of names; here they are met through all the ways that names come
in: manifests, data sets' descriptions, files of a folder, and links that somebody planted.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attunet3d.cohort import results, run
from attunet3d.cohort.results import case_files
from attunet3d.core import DataError, WriteError
from attunet3d.core.config import Config
from attunet3d.core.errors import UserError
from attunet3d.datasets.case import Case
from attunet3d.datasets.listing import list_cases
from attunet3d.datasets.manifest import Manifest
from attunet3d.imaging.scan_folder import find_scans
from attunet3d.inference.predictor import Predictor
from attunet3d.training.cache import Recipe
from tests.known_network import SHAPE, ball_volume, checkpoint, write_predicted, write_scan

LABELS = {"0": "background", "1": "ball"}
UPWARDS = ["..", "../x", "a/../../x", "../../../../../../etc/passwd", "./../x", "a/..", "..\\x"]
ABSOLUTE = ["/etc/passwd", "//server/share/x", "\\\\server\\share\\x", "C:\\x", "c:x", "C:/x"]
UNPRINTABLE = ["a\0b", "a\nb", "a\rb", "a\x1b[2Jb", "a\x7fb", "a\u202eb", "a\u2028b", "\0", "a/\0"]
RESERVED = ["CON", "con", "nul", "NUL.nii.gz", "Aux.nii", "com1", "LPT9.x", "prn.", "nul .x"]
LONG = ["x" * 256, "é" * 128, "a/" * 5000]
NOT_EVEN_NAMES = ["", ".", " ", "a ", " a", "a."]
BAD_PATHS = [*UPWARDS, *ABSOLUTE, *UNPRINTABLE, *RESERVED, *LONG, "", "."]
BAD_IDS = [*UPWARDS, *ABSOLUTE, *UNPRINTABLE, *RESERVED, *LONG, *NOT_EVEN_NAMES]
BAD_IDS += ["a/b", "a:b", "a*b", "a?b", 'a"b', "a<b", "a>b", "a|b", "failures", "FAILURES"]


def manifest_of(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "m.json").write_text(json.dumps({"labels": LABELS} | values))
    return folder / "m.json"


def refused(call: Callable[..., Any], *arguments: Any, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["training", "validation", "test", "testing"])
@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("path", [path for path in BAD_PATHS if path])  # "": no label
def test_paths_of_a_manifest_stay_beneath_its_root(
    tmp_path: Path, path: str, key: str, part: str
) -> None:
    entry = {"id": "a", "image": "a.nii.gz"} | {key: path}
    file = manifest_of(tmp_path / "data", **{part: [entry]})
    said = refused(Manifest.load, file, kind=DataError)
    assert said.startswith(f"{file}: case 'a'")


@pytest.mark.parametrize("path", [*UPWARDS, *ABSOLUTE])
def test_the_callers_root_holds_as_well(tmp_path: Path, path: str) -> None:
    file = manifest_of(tmp_path / "lists", training=[{"id": "a", "image": path}])
    (tmp_path / "data").mkdir()
    refused(Manifest.load, file, tmp_path / "data", kind=DataError)


@pytest.mark.parametrize("case_id", BAD_IDS)
def test_ids_of_a_manifest_are_plain_names(tmp_path: Path, case_id: str) -> None:
    entry = {"id": case_id, "image": "a.nii.gz"}
    file = manifest_of(tmp_path / "data", training=[entry])
    assert str(file) in refused(Manifest.load, file, kind=DataError)


@pytest.mark.parametrize("image", ["a/.nii.gz", "a/...nii.gz", "con.nii.gz", "failures.nii.gz"])
def test_ids_made_of_file_names_are_held_to_the_same(tmp_path: Path, image: str) -> None:
    file = manifest_of(tmp_path / "data", training=[image])
    refused(Manifest.load, file, kind=DataError)


@pytest.mark.parametrize(
    ("one", "other"), [("Case", "case"), ("É", "é"), ("é", "e\u0301"), ("ß", "SS"), ("a", "A")]
)
def test_ids_that_a_file_system_takes_for_one_are_refused(
    tmp_path: Path, one: str, other: str
) -> None:
    entries = [{"id": one, "image": "a.nii.gz"}, {"id": other, "image": "b.nii.gz"}]
    file = manifest_of(tmp_path / "data", training=entries)
    assert "have the same name" in refused(Manifest.load, file, kind=DataError)
    file = manifest_of(tmp_path / "data", training=entries[:1], test=entries[1:])
    assert "have the same name" in refused(Manifest.load, file, kind=DataError)


@pytest.mark.parametrize("root", ["a\0b", "a\nb", 7, ["x"], {"a": 1}])
def test_a_root_that_is_no_path_is_refused(tmp_path: Path, root: Any) -> None:
    file = manifest_of(tmp_path / "data", root=root, training=[])
    refused(Manifest.load, file, kind=DataError)


@pytest.mark.parametrize(
    "target", ["../outside", "../outside/secret.nii.gz", "/", "/etc", "..", "."]
)
def test_a_link_in_the_root_leads_nowhere_else(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.nii.gz").write_bytes(b"secret")
    file = manifest_of(tmp_path / "data", training=[{"image": "link/secret.nii.gz", "id": "a"}])
    (tmp_path / "data" / "link").symlink_to(target)
    if target == ".":  # stays within
        assert Manifest.load(file).training[0].image.parent == (tmp_path / "data").resolve()
    elif target == "../outside/secret.nii.gz":  # a file is not a folder, wherever it lies
        refused(Manifest.load, file, kind=DataError)
    else:
        assert "leads out of the root" in refused(Manifest.load, file, kind=DataError)


def test_a_chain_of_links_is_followed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "secret.nii.gz").write_bytes(b"secret")
    file = manifest_of(tmp_path / "data", training=[{"image": "a/b/c.nii.gz", "id": "a"}])
    (tmp_path / "data" / "a" / "b").mkdir(parents=True)
    (tmp_path / "data" / "a" / "b" / "c.nii.gz").symlink_to("../../d.nii.gz")
    (tmp_path / "data" / "d.nii.gz").symlink_to("e.nii.gz")
    (tmp_path / "data" / "e.nii.gz").symlink_to("../secret.nii.gz")
    assert "leads out of the root" in refused(Manifest.load, file, kind=DataError)


# --- data sets -----------------------------------------------------------------------------------


def data_set(folder: Path, name: str = "a") -> Path:
    """Folders of one scan and one label."""
    for part, value in (("images", 100), ("labels", 1)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        array = np.full((4, 4, 4), value, np.int16)
        write_scan(folder / part / f"{name}.nii.gz", array)
    return folder


@pytest.mark.parametrize("part", ["images", "labels"])
def test_links_of_a_users_own_folder_are_followed_and_a_strangers_list_of_them_is_not(
    tmp_path: Path, part: str
) -> None:
    data_set(tmp_path / "data")
    data_set(tmp_path / "outside", "secret")
    (tmp_path / "data" / part / "a.nii.gz").unlink()
    (tmp_path / "data" / part / "a.nii.gz").symlink_to(
        tmp_path / "outside" / part / "secret.nii.gz"
    )
    list_cases(tmp_path / "data").save(tmp_path / "data" / "m.json")
    assert "leads out of the root" in refused(Manifest.load, tmp_path / "data" / "m.json")
    assert len(Manifest.load(tmp_path / "data" / "m.json", tmp_path / "data").training) == 1


def test_labels_outside_are_not_opened_to_find_their_values(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret.nii.gz")  # whoever opens it to read it waits
    entry = {"image": "images/a.nii.gz", "label": "../secret.nii.gz"}
    data_set(tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": [entry]}))
    assert "lies outside the folder" in refused(list_cases, tmp_path / "data")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "con", "a:b", " a", "failures", "a?"])
def test_pairs_of_odd_file_names_are_refused(tmp_path: Path, name: str) -> None:
    data_set(tmp_path / "data", name)
    refused(list_cases, tmp_path / "data")


def test_pairs_whose_names_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    data_set(tmp_path / "data", "case")
    data_set(tmp_path / "data", "CASE")
    assert "have the same name" in refused(list_cases, tmp_path / "data")


# --- files of a folder → names of results --------------------------------------------------------


@pytest.mark.parametrize("case_id", BAD_IDS)
def test_no_id_leaves_the_folder_of_results(tmp_path: Path, case_id: str) -> None:
    refused(case_files, tmp_path, case_id, kind=WriteError)


@pytest.mark.parametrize("case_id", ["$HOME", "~", "~root", "%2e%2e", "-rf", "a;b", "`id`", "&"])
def test_what_a_shell_or_a_server_would_read_is_a_plain_name(tmp_path: Path, case_id: str) -> None:
    files = case_files(tmp_path, case_id)
    files.mask.touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{case_id}.nii.gz"]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "CON", "nul.x", "a:b", " a", "failures"])
def test_scans_of_odd_names_fail_alone_and_say_why(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "in"
    scans.mkdir()
    write_scan(scans / f"{name}.nii.gz")
    write_scan(scans / "good.nii.gz")
    outcome = run.segment_cohort(
        Predictor([checkpoint()], "cpu"), find_scans(scans), tmp_path / "out"
    )
    assert outcome.done == ["good"]
    assert "rename the case" in outcome.failures[name]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    written = {path.name for path in (tmp_path / "out").rglob("*")}
    assert written == {"good.nii.gz", "good.json", "failures.json", "statistics.csv"}
    for line in capfd.readouterr().err.splitlines():
        assert line.isprintable()


def test_scans_whose_names_differ_in_case_only_would_overwrite_each_other(tmp_path: Path) -> None:
    scans = tmp_path / "in"
    scans.mkdir()
    for name in ("Case", "case", "other"):
        write_scan(scans / f"{name}.nii.gz")
    outcome = run.segment_cohort(
        Predictor([checkpoint()], "cpu"), find_scans(scans), tmp_path / "out"
    )
    assert outcome.done == ["other"]
    assert "Case.nii.gz, case.nii.gz have the same case id 'Case'" in outcome.failures["Case"]


def test_a_link_among_the_scans_gives_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "secret.nii.gz")
    (tmp_path / "in" / "a.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").symlink_to(tmp_path / "none")
    assert find_scans(tmp_path / "in") == [
        ("a", tmp_path / "in" / "a.nii.gz"),
        ("broken", tmp_path / "in" / "broken.nii.gz"),
    ]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json", "probabilities/a.nii.gz"])
def test_a_link_planted_among_the_results_is_replaced_and_not_followed(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(victim)
    predictor, volume = Predictor([checkpoint()], "cpu"), ball_volume()
    write_predicted(case_files(out, "a"), predictor, volume, ["probabilities"])
    assert victim.read_text() == "untouched"
    assert not (out / name).is_symlink()


def test_a_sidecar_cannot_name_files_of_others(tmp_path: Path) -> None:
    files = case_files(tmp_path, "a")
    (tmp_path / "secret").write_bytes(b"x")
    files.sidecar.write_text(
        json.dumps({"labels": {}, "settings": {}, "files": {"../secret": "0" * 64, "/etc/x": ""}})
    )
    assert not results.is_done(files, [files.mask], {})


@pytest.mark.parametrize("case_id", ["..", "../x", "/etc/x", "a\nb", "a/b"])
def test_prepared_cases_lie_in_the_cache(tmp_path: Path, case_id: str) -> None:
    for name in ("image", "label"):
        write_scan(tmp_path / f"{name}.nii.gz", np.ones(SHAPE, np.int16))
    case = Case(id=case_id, image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz")
    name = Recipe(Config().preprocessing, (0, 1)).folder_name(case)
    assert (tmp_path / "cache" / name).parent == tmp_path / "cache"
    assert name.isascii()
    assert not set(name) & set("/\\:. \n")
