"""A folder with `ensemble.json` stands for its members; nothing else does."""

import json
from pathlib import Path

import pytest

from attunet3d.core import ModelError, kind_of
from attunet3d.core.ensemble_file import ENSEMBLE, Members, save_ensemble


def with_members(folder: Path) -> Path:
    """A folder with two members."""
    for name in ("fold0", "fold1"):
        (folder / name).mkdir(parents=True)
    return folder


def test_a_folder_stands_for_its_members_and_brings_their_settings(tmp_path: Path) -> None:
    with_members(tmp_path)
    save_ensemble(tmp_path, ["fold0", "fold1"], {"keep_largest": ["liver"]}, why="measured")
    found = Members.of([tmp_path])
    assert found.paths == (tmp_path / "fold0", tmp_path / "fold1")
    assert found.settings == ('inference.keep_largest=["liver"]',)
    assert kind_of(str(tmp_path)) == "model"
    single = tmp_path / "fold0"
    assert Members.of([single, str(single)]).paths == (single, single)
    assert Members.of([single]).settings == ()


def test_models_that_come_with_other_settings_are_not_used_together(tmp_path: Path) -> None:
    for name, largest in (("a", ["liver"]), ("b", [])):
        with_members(tmp_path / name)
        save_ensemble(tmp_path / name, ["fold0"], {"keep_largest": largest})
    assert len(Members.of([tmp_path / "a", tmp_path / "a"]).paths) == 2
    with pytest.raises(ModelError, match="name the folds instead"):
        Members.of([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    "values",
    [
        [],
        {},
        {"members": [], "inference": {}},
        {"members": ["../elsewhere"], "inference": {}},
        {"members": ["/etc"], "inference": {}},
        {"members": [".."], "inference": {}},
        {"members": [7], "inference": {}},
        {"members": ["fold0"], "inference": []},
        {"members": ["fold0"], "inference": {"a=b": 1}},
    ],
)
def test_members_lie_inside_the_folder_and_settings_have_names(
    tmp_path: Path, values: object
) -> None:
    (tmp_path / ENSEMBLE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match="must"):
        Members.of([tmp_path])


@pytest.mark.parametrize(
    "note",
    [
        {"doubt": {}},
        {"doubt": 1},
        {"doubt": {"weights": "x", "wrong": 0.5, "look": 0.7}},
        {"doubt": {"weights": {"cut": "x"}, "wrong": 0.5, "look": 0.7}},
        {"doubt": {"weights": {"cut": 1.0}, "wrong": None, "look": 0.7}},
        {"label_ranges": []},
        {"label_ranges": {"liver": "x"}},
        {"label_ranges": {"liver": {"ml": [1.0]}}},
        {"label_ranges": {"liver": {"ml": [1.0, "x"]}}},
    ],
)
def test_damaged_notes_are_refused_with_the_file_and_the_cure(
    tmp_path: Path, note: dict[str, object]
) -> None:
    save_ensemble(with_members(tmp_path), ["fold0", "fold1"], {}, **note)
    with pytest.raises(ModelError, match=f"{next(iter(note))} must .*; name the folds") as error:
        Members.of([tmp_path])
    assert error.value.path == tmp_path / ENSEMBLE


def test_the_notes_that_cross_validation_writes_come_with_the_members(tmp_path: Path) -> None:
    notes = {
        "doubt": {"weights": {"agreement": 1.0}, "wrong": 0.5, "look": 0.7},
        "label_ranges": {"liver": {"ml": [1.0, 2.0]}},
    }
    save_ensemble(with_members(tmp_path), ["fold0"], {}, **notes, post_processing={})
    assert Members.of([tmp_path]).notes == notes


def test_a_member_that_is_gone_is_named(tmp_path: Path) -> None:
    save_ensemble(with_members(tmp_path), ["fold0", "fold1"], {})
    (tmp_path / "fold1").rmdir()
    with pytest.raises(ModelError, match=r"ensemble.json: names fold1, which is missing; copy"):
        Members.of([tmp_path])


def test_a_cross_validation_without_its_end_says_how_to_finish_it(tmp_path: Path) -> None:
    run = with_members(tmp_path / "run")
    for name in ("fold0", "fold1"):
        (run / name / "config.json").write_text("{}", encoding="utf-8")
    expected = r"run: is an unfinished cross-validation \(fold0, fold1\); .* --fold all --resume"
    with pytest.raises(ModelError, match=expected):
        Members.of([run])
    assert Members.of([run / "fold0"]).paths == (run / "fold0",)
