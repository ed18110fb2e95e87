"""A folder with `ensemble.json` stands for its members; nothing else does."""

import json
from pathlib import Path

import pytest

from attunet3d.core import ModelError, kind_of
from attunet3d.core.ensemble_file import ENSEMBLE, Members, save_ensemble


def test_a_folder_stands_for_its_members_and_brings_their_settings(tmp_path: Path) -> None:
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
        (tmp_path / name).mkdir()
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
