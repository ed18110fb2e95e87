"""Names, regions and the ignored value, as nnU-Net's documentation describes them."""

import json
from pathlib import Path

import pytest

from attunet3d.core import DataError
from attunet3d.datasets.annotation import annotated_values
from attunet3d.datasets.formats import read_data_set, renamed
from attunet3d.datasets.label_names import LabelNames, label_values, parse_labels
from attunet3d.datasets.manifest import Manifest

BRATS = {
    "background": 0,
    "whole tumor": [1, 2, 3],
    "tumor core": [2, 3],
    "enhancing tumor": 3,
    "ignore": 4,
}
REGIONS = {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}


def nnunet(folder: Path, **values: object) -> Path:
    """A raw data set of one case, its files empty."""
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    about = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **values}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def test_regions_and_the_ignored_value_come_through_a_manifest(tmp_path: Path) -> None:
    """nnU-Net's own example; the file written says the same as the one read."""
    found = read_data_set(nnunet(tmp_path / "data", labels=BRATS, regions_class_order=[1, 2, 3]))
    assert found.labels == {
        0: "background",
        1: "whole tumor",
        2: "tumor core",
        3: "enhancing tumor",
    }
    assert (found.regions, found.ignore) == (REGIONS, 4)
    assert found.value_names[4] == "ignore"
    found.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == found
    assert found.training_settings() == [
        "training.ignore_index=4",
        "training.regions=[[1, 2, 3], [2, 3], [3]]",
        "inference.regions_class_order=[1, 2, 3]",
    ]


def test_an_ignored_value_is_not_a_label_and_sets_the_training(tmp_path: Path) -> None:
    """In nnU-Net's file and in ours, whatever the case of its letters."""
    labels = {"background": 0, "liver": 1, "Ignore": 2}
    found = read_data_set(nnunet(tmp_path, labels=labels))
    assert (found.labels, found.ignore) == ({0: "background", 1: "liver"}, 2)
    assert found.training_settings() == ["training.ignore_index=2"]
    found.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == found
    assert json.loads((tmp_path / "m.json").read_text())["labels"]["2"] == "ignore"


def test_what_was_looked_for_in_a_case_is_kept(tmp_path: Path) -> None:
    """By its value; a name that is none of the labels is refused."""
    entry = {"id": "a", "image": "a.nii", "label": "l.nii", "annotated": ["liver"]}
    (tmp_path / "m.json").write_text(json.dumps({"labels": {"1": "liver"}, "training": [entry]}))
    found = Manifest.load(tmp_path / "m.json")
    assert found.training[0].annotated == ("liver",)
    found.save(tmp_path / "n.json")
    assert Manifest.load(tmp_path / "n.json").training == found.training
    assert annotated_values(found.training[0], found.labels) == (1,)
    text = (tmp_path / "m.json").read_text().replace('["liver"]', '["livre"]')
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match="case a: annotated 'livre' is not one of the labels"):
        Manifest.load(tmp_path / "m.json")


@pytest.mark.parametrize(
    "names",
    [
        LabelNames({0: "background", 1: "a", 7: "b"}),
        LabelNames({0: "background", 1: "a"}, ignore=255),
        LabelNames({0: "background", 1: "a", 2: "b"}, 3, {"b": (2,), "a": (1, 2)}),
    ],
)
def test_names_are_written_as_they_are_read(names: LabelNames) -> None:
    """Through JSON and back."""
    values = json.loads(json.dumps(label_values(names)))
    assert parse_labels(values["labels"], values.get("regions_class_order")) == names


def raw(tmp_path: Path, labels: dict[str, object], **values: object) -> Manifest:
    """The manifest of a raw data set with these labels."""
    return read_data_set(nnunet(tmp_path / "data", labels=labels, **values))


def test_a_new_name_is_that_of_the_region_which_the_value_writes(tmp_path: Path) -> None:
    found = raw(tmp_path, BRATS, regions_class_order=[1, 2, 3])
    renamed_ = renamed(found, {"2": "core"})
    assert renamed_.labels[2] == "core"
    assert renamed_.regions == {"whole tumor": (1, 2, 3), "core": (2, 3), "enhancing tumor": (3,)}
    assert renamed_.training_settings() == found.training_settings()
    with pytest.raises(DataError, match="--label 4: of overlapping regions the values written are"):
        renamed(found, {"4": "rest"})
    with pytest.raises(DataError, match="--label 2: of overlapping regions the values written are"):
        renamed(found, {"2": "ignore"})


def test_a_value_can_be_named_ignore_and_the_ignored_one_be_named(tmp_path: Path) -> None:
    found = raw(tmp_path, {"background": 0, "liver": 1, "unsure": 2})
    without = renamed(found, {"2": "ignore"})
    assert (without.labels, without.ignore) == ({0: "background", 1: "liver"}, 2)
    named = renamed(without, {"2": "cyst"})
    assert (named.labels, named.ignore) == ({0: "background", 1: "liver", 2: "cyst"}, None)


def test_a_name_of_two_values_is_told() -> None:
    with pytest.raises(DataError, match="labels: 'liver' is the name of two values"):
        parse_labels({"1": "liver", "2": "liver"})
