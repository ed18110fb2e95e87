"""What the subject of `info` is."""

import json
from pathlib import Path

import pytest

from attunet3d.core.kind import kind_of


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.yml", "training: {}", "config"),
        ("config.json", json.dumps({"training": {"steps": 1}}), "config"),
        ("manifest.json", json.dumps({"training": []}), "manifest"),
        ("dataset.json", json.dumps({"test": []}), "manifest"),
        ("model.safetensors", "", "model"),
        ("ct.nii.gz", "", "scan"),
        ("slice", "", "scan"),
    ],
)
def test_a_file_is_known_by_its_ending_and_json_by_what_it_holds(
    tmp_path: Path, name: str, content: str, kind: str
) -> None:
    (tmp_path / name).write_text(content)
    assert kind_of(str(tmp_path / name)) == kind


def test_a_run_folder_is_a_model_another_folder_a_scan_and_an_unknown_name_a_preset(
    tmp_path: Path,
) -> None:
    assert kind_of(str(tmp_path)) == "scan"
    (tmp_path / "model.safetensors").touch()
    assert kind_of(str(tmp_path)) == "model"
    assert kind_of("oktay2019") == kind_of("demo_cpu") == "config"
