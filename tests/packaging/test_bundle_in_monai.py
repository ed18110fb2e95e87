"""MONAI verifies a bundle's metadata, trains it further, and decides by it as `infer` does.

meta_schema_20240725.json is of Project-MONAI/MONAI-extra-test-data 0.8.1, Apache License 2.0.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata

from attunet3d import Predictor
from attunet3d.imaging.geometry import Grid
from attunet3d.models.checkpoint import load_model
from attunet3d.packaging import bundle
from attunet3d.packaging.formats import package
from attunet3d.phantoms.dataset import make_phantom, write_phantoms
from tests.known_network import dice, write_scan
from tests.packaging.test_bundle import LABELS, save, uneven

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")
AFFINE = np.array([[-6.0, 0, 0, 170], [0, -6, 0, 120], [0, 0, 7, -80], [0, 0, 0, 1]])


# MONAI says of every configuration that it is code; this one was written just now.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_metadata_and_schema_agree(tmp_path: Path) -> None:
    out, _ = package(save(tmp_path / "model.safetensors"), tmp_path / "out", "bundle")
    path, schema = out / bundle.METADATA, tmp_path / "schema.json"
    schema.write_bytes(SCHEMA.read_bytes())  # where there is one, MONAI downloads none
    checksum = hashlib.sha256(schema.read_bytes()).hexdigest()
    known: dict[str, Any] = {"hash_val": checksum, "hash_type": "sha256"}
    verify_metadata(meta_file=str(path), filepath=str(schema), **known)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["network_data_format"]["inputs"]["image"]["value_range"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(path), filepath=str(schema), **known)


def faint(network: Any) -> None:
    """Random weights, and a foreground that is seldom the more probable class."""
    logits = uneven(network)
    network.final.bias[0] += 0.3 * float((logits[:, 1] - logits[:, 0]).std())


@pytest.mark.parametrize("loss", ["dice_ce", "bce"])
def test_a_bundle_decides_by_expected_dice_where_inference_does(loss: str, tmp_path: Path) -> None:
    settings = ["inference.decision=dice", "preprocessing.spacing_mm=[6, 6, 7]"]
    labels = {**LABELS, 9: "other"}
    model = save(
        tmp_path / "model.safetensors",
        *settings,
        f"training.loss={loss}",
        labels=labels,
        change=faint,
    )
    out, _ = package(model, tmp_path / "out", "bundle")
    parser = ConfigParser()
    parser.read_config(out / bundle.INFERENCE)
    parser["bundle_root"], parser["device"] = str(out), torch.device("cpu")
    before, after = (parser.get_parsed_content(f"{way}processing") for way in ("pre", "post"))
    network, inferer = bundle.bundle_network(out), parser.get_parsed_content("inferer")
    scan, _ = make_phantom(0, grid=Grid((55, 41, 22), AFFINE))
    path = write_scan(tmp_path / "scan.nii.gz", np.asfortranarray(scan.array), AFFINE)
    data = before({"image": str(path)})
    with torch.inference_mode():
        data["pred"] = inferer(data["image"][None], network)[0]
    found = after.transforms[0](data)["pred"][0].numpy()
    argmax, wanted = (
        Predictor.load(model, "cpu", ["inference.mode=window", f"inference.decision={rule}"])
        .predict(path)
        .array
        for rule in ("argmax", "dice")
    )
    assert np.mean(argmax != wanted) > 0.01
    assert np.count_nonzero(wanted) > 500
    for value in set(np.unique(wanted)) - {0}:
        assert dice(found == value, wanted == value) >= 0.999


def test_monai_trains_a_bundle_further_and_what_comes_out_segments(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 6, matrix=40)
    settings = ["preprocessing.spacing_mm=[10, 10, 10]", "preprocessing.hu_window=[-160, 240]"]
    settings += ["preprocessing.mean_hu=40", "preprocessing.std_hu=60"]
    model = save(tmp_path / "model.safetensors", *settings, labels={0: "background", 1: "pancreas"})
    out, _ = package(model, tmp_path / "out", "bundle")
    command = [sys.executable, "-m", "monai.bundle", "run"]
    for option, value in {
        "config_file": out / bundle.TRAIN,
        "bundle_root": out,
        "dataset_dir": tmp_path / "data",
        "device": "cpu",
        "epochs": 1,
        "learning_rate": 0.01,
    }.items():
        command += [f"--{option}", str(value)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "val_mean_dice" in done.stderr + done.stdout
    new, old = bundle.bundle_network(out), load_model(model).network
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert (new(image) - old(image)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "what"),
    [(["inference.regions_class_order=[5]", "training.regions=[[5]]"], "overlapping regions")],
)
def test_what_monai_cannot_train_further_has_no_configuration_for_it(
    settings: list[str], what: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model.safetensors", *settings)
    out, warnings = package(model, tmp_path / "out", "bundle")
    assert [text for text in warnings if text.startswith(what)]
    assert not (out / bundle.TRAIN).exists()
    assert "train.json" not in (out / bundle.README).read_text(encoding="utf-8")
