"""`attunet3d info` on one thing of each kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from attunet3d.core import Config, SettingsError, WriteError
from attunet3d.models import build_network, save_model
from attunet3d.pipelines import info
from tests.known_network import AFFINE, ball, write_scan


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert info.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_model_is_told_by_its_labels_settings_and_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config().with_overrides(["network.channels=4,8", "training.patch_size=16,16,8"])
    weights = build_network(config.network, 1, 2).state_dict()
    save_model(tmp_path / "model.safetensors", weights, config, {0: "background", 7: "liver"})
    text = said(capsys, tmp_path)
    assert "0 background, 7 liver" in text
    assert "network.channels" in text
    assert "network of 2 classes for one patch of 16×16×8 voxels" in text


def test_a_configuration_a_manifest_and_a_scan_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "training.learning_rate" in said(capsys, "oktay2018")
    write_scan(tmp_path / "ct.nii.gz", ball(), AFFINE)
    assert "LPS" in said(capsys, tmp_path / "ct.nii.gz")
    cases = [{"id": "a", "image": "a.nii.gz", "fold": 0, "group": "p"}, {"image": "b.nii.gz"}]
    content = {"name": "two", "labels": {"0": "background", "1": "liver"}, "training": cases}
    (tmp_path / "m.json").write_text(json.dumps(content))
    lines = [line.split() for line in said(capsys, tmp_path / "m.json").splitlines()]
    assert ["training", "2", "2", "0"] in lines
    assert ["training", "fold", "0", "1", "1", "0"] in lines


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_network_is_drawn_and_the_same_one_gives_the_same_bytes(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        said(capsys, "attunet2d_nearest", "--picture", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if ending == "svg":
        text = paths[0].read_text(encoding="utf-8")
        for words in ("3 slices · 256×256", "1024 · 16×16", "1 gate, α of 32×32", "34,878,638"):
            assert words in text


def test_other_endings_and_other_things_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"must end in png or svg"):
        info.main(["oktay2018", "--picture", str(tmp_path / "network.pdf")])
    scan = write_scan(tmp_path / "ct.nii.gz", ball(), AFFINE)
    with pytest.raises(SettingsError, match="is a scan; name a model or a configuration"):
        info.main([str(scan), "--picture", str(tmp_path / "network.svg")])
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(said(capsys, "--schema"))
    spacing = schema["$defs"]["PreprocessingConfig"]["properties"]["spacing_mm"]
    assert " mm" in spacing["description"]
    assert spacing["anyOf"][0]["prefixItems"][0]["minimum"] == 0.01


def test_an_unknown_name_is_an_error_and_nothing_at_all_is_a_wrong_call() -> None:
    with pytest.raises(SettingsError, match="did you mean oktay2018"):
        info.main(["oktay2019"])
    with pytest.raises(SystemExit):
        info.main([])
