"""Packed models: what other programs make of them is what the model makes of the same scan."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from attunet3d import AttentionUNet3D, Predictor
from attunet3d.core import ModelError, command_line
from attunet3d.core.config import Config
from attunet3d.imaging.geometry import Grid
from attunet3d.models.build import build_network
from attunet3d.models.checkpoint import load_model, save_model
from attunet3d.packaging import bundle, exported_program, onnx_model
from attunet3d.packaging.formats import ENDINGS, package
from attunet3d.phantoms.dataset import make_phantom
from attunet3d.pipelines.package import main
from tests.known_network import AFFINE, SETTINGS, ball, dice, write_scan

LABELS = {0: "background", 5: "ball"}
CROPPED = "preprocessing.spacing_mm=[6.0, 6.0, 7.0]"
TINY = ["network.channels=[2,4,4]", "network.strides=[[2,2,2],[2,2,1]]"]
ROOT = Path(__file__).parents[2]


def save(path: Any, *settings: str, labels: dict[int, str] = LABELS, change: Any = None) -> Path:
    """A tiny model with random weights, or those that `change` gives the network."""
    torch.manual_seed(0)
    config = Config().with_overrides([*SETTINGS, *TINY, *settings])
    network = build_network(config.network, 1, len(labels))
    if change is not None:
        with torch.no_grad():
            change(network)
    path.parent.mkdir(exist_ok=True)
    save_model(path, network.state_dict(), config, labels)
    found: Path = path
    return found


def threshold(network: Any) -> None:
    """Weights that make a voxel foreground where the normalised image is above 1."""
    for part in network.modules():
        if isinstance(part, torch.nn.Conv3d):
            part.weight.zero_()
            assert part.bias is not None
            part.bias.zero_()
        elif isinstance(part, torch.nn.BatchNorm3d):
            part.weight.fill_(1)
    for part in (*network.encoder[0], *network.decoder[-1]):
        if isinstance(part, torch.nn.Conv3d):
            part.weight[0, 0, 1, 1, 1] = 1  # channel 0 goes on as it is
    network.heads[0].weight[1, 0] = 1
    network.heads[0].bias[1] = -1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run's folder with a random network."""
    return save(tmp_path_factory.mktemp("runs") / "run" / "model.safetensors").parent


def logits(run: Any, image: Any) -> Any:
    with torch.inference_mode():
        return load_model(run).network(image)


def about(texts: Any) -> dict[Any, Any]:
    """The facts that a packed network carries."""
    facts = {name.removesuffix(".json"): json.loads(text) for name, text in texts.items()}
    assert facts["labels"] == {"0": "background", "5": "ball"}
    assert facts["window"] == [16, 16, 16]
    assert facts["preprocessing"]["spacing_mm"] == [2.0, 2.0, 2.0]
    return facts


@pytest.fixture(scope="module")
def program(run: Any) -> Any:
    return package(run, run.parent / "packed", "exported")


def test_an_exported_program_gives_the_logits_of_the_model_for_every_fitting_size(
    run: Any, program: Any
) -> None:
    path, warnings = program
    assert (path.name, warnings) == ("packed.pt2", [])
    texts = dict.fromkeys(("labels.json", "preprocessing.json", "window.json", "divisor.json"), "")
    network = torch.export.load(path, extra_files=texts).module()
    assert json.loads(texts.pop("divisor.json")) == [4, 4, 2]
    about(texts)
    for shape in ((2, 1, 16, 16, 16), (1, 1, 8, 12, 6)):
        image = torch.randn(shape)
        torch.testing.assert_close(network(image), logits(run, image))


@pytest.fixture(scope="module")
def onnx_file(run: Any) -> Any:
    return package(run, run.parent / "packed.onnx", "onnx")


def test_onnx_gives_the_logits_of_the_model_for_any_size(run: Any, onnx_file: Any) -> None:
    import onnx

    path, warnings = onnx_file
    assert (path.name, warnings) == ("packed.onnx", [])
    model = onnx.load(path)
    about({entry.key: entry.value for entry in model.metadata_props})
    (given,) = model.graph.input
    sizes = [size.dim_value or size.dim_param for size in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("image", ["batch", 1, "x", "y", "z"])
    for shape in ((1, 1, 16, 16, 16), (3, 1, 17, 4, 10), (1, 1, 3, 8, 9)):
        image = torch.randn(shape)
        found = torch.from_numpy(onnx_model.onnx_logits(path.read_bytes(), image.numpy()))
        torch.testing.assert_close(found, logits(run, image), rtol=1e-4, atol=1e-4)


def test_openvino_is_asked_where_there_is_no_onnxruntime(
    run: Any, onnx_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    image = torch.randn(2, 1, 16, 16, 16)
    found = onnx_model.onnx_logits(onnx_file[0].read_bytes(), image.numpy())
    torch.testing.assert_close(torch.from_numpy(found), logits(run, image), rtol=1e-4, atol=1e-4)


def test_without_onnx_the_cure_is_named_and_without_a_runtime_nothing_is_asked(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxruntime", "openvino", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert onnx_model.onnx_logits(b"", np.zeros(1, np.float32)) is None
    arguments = [str(run), str(tmp_path / "out"), "--format", "onnx"]
    assert command_line.run(main, arguments) == 2
    error = capsys.readouterr().err
    assert "pip install onnx onnxscript" in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_files_tell_nothing_of_the_machine_that_wrote_them(program: Any, onnx_file: Any) -> None:
    for path, _ in (program, onnx_file):
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as entries:
                content = b"".join(entries.read(name) for name in entries.namelist())
        assert b"attention_unet.py" not in content
        assert str(ROOT).encode() not in content


def test_a_bundle_says_what_goes_in_and_comes_out(run: Any, tmp_path: Path) -> None:
    out, warnings = package(run, tmp_path / "out", "bundle")
    assert warnings == []
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE",
        "configs/metadata.json",
        "configs/inference.json",
        "configs/train.json",
        "docs/README.md",
        "models/model.pt",
    }
    found = json.loads((out / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert found["label_values"] == {"0": "background", "5": "ball"}
    tensors = found["network_data_format"]
    given, made = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert given["spatial_shape"] == ["4*n", "4*n", "2*n"]
    assert given["value_range"] == [-10.0, 10.0]
    assert made["channel_def"] == {"0": "background", "1": "ball"}
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(bundle.bundle_network(out)(image), logits(run, image))


# MONAI says of every configuration that it is code; this one was written just now.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_monai_finds_shapes_and_types_as_the_metadata_has_them(run: Any, tmp_path: Path) -> None:
    out, _ = package(run, tmp_path / "out", "bundle")
    files = {"meta_file": out / bundle.METADATA, "config_file": out / bundle.INFERENCE}
    paths = {name: str(path) for name, path in files.items()}
    verify_net_in_out("network_def", device="cpu", n=3, **paths)
    metadata = json.loads(files["meta_file"].read_text(encoding="utf-8"))
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
    files["meta_file"].write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(ValueError, match="channel"):
        verify_net_in_out("network_def", device="cpu", n=3, **paths)


def test_monai_runs_a_bundle_to_the_label_maps_of_inference(tmp_path: Path) -> None:
    settings = ["network.gate=none", "network.deep_supervision=none"]
    settings += ["inference.keep_largest=[ball]", "inference.window_batch=2"]
    model = save(tmp_path / "model.safetensors", *settings, change=threshold)
    out, _ = package(model, tmp_path / "out", "bundle")
    scans = tmp_path / "scans"
    scans.mkdir()
    array = ball()
    array[:3, :3, :3] = 300  # a second component
    oblique = np.array([[0, -1.5, 0, 9], [1.2, 0, 0, -7], [0, 0, -3.0, 5], [0, 0, 0, 1]])
    write_scan(scans / "large.nii.gz", array)
    write_scan(scans / "turned.nii.gz", ball((31, 24, 15), oblique, radius_mm=9.0), oblique)
    write_scan(scans / "small.nii.gz", ball((9, 11, 8), radius_mm=6.0), AFFINE)  # than a window
    command = [sys.executable, "-m", "monai.bundle", "run"]
    for option, value in {
        "config_file": out / bundle.INFERENCE,
        "bundle_root": out,
        "dataset_dir": scans,
        "output_dir": tmp_path / "maps",
        "device": "cpu",
    }.items():
        command += [f"--{option}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictor = Predictor.load(model, "cpu", ["inference.mode=window"])
    for path in sorted(scans.iterdir()):
        found = nibabel.load(tmp_path / "maps" / path.name.replace(".nii.gz", "_seg.nii.gz"))
        wanted = predictor.predict(path).array
        labels = np.asanyarray(found.dataobj)
        np.testing.assert_allclose(found.affine, nibabel.load(path).affine, atol=1e-5)
        assert labels.dtype == np.uint8
        assert labels.shape == wanted.shape
        assert 50 < np.count_nonzero(wanted == 5) == np.count_nonzero(wanted)
        assert np.mean(labels == wanted) >= 0.999


def uneven(network: Any) -> torch.Tensor:
    """Random weights whose classes both win: labels change from voxel to voxel.

    Returns:
        Logits, before their means were made 0.
    """
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            part.bias.uniform_(-0.5, 0.5)
    network.final.bias.zero_()
    logits: torch.Tensor = network.eval()(torch.randn(1, 1, 16, 16, 16))
    network.final.bias.copy_(-logits.mean((0, 2, 3, 4)))
    return logits


COARSE = [(-4.0, -4.0, 4.0), (-3.0, -5.0, 9.0)]  # mm along the axes of two scanners, LPS


@pytest.mark.parametrize(
    "settings", [[], ["inference.mirror=true"], ["training.loss=bce"]], ids=str
)
def test_windows_of_a_bundle_give_the_label_maps_of_inference(
    settings: list[str], tmp_path: Path
) -> None:
    model = save(tmp_path / "model.safetensors", *settings, CROPPED, change=uneven)
    out, _ = package(model, tmp_path / "out", "bundle")
    parser = ConfigParser()
    parser.read_config(out / bundle.INFERENCE)
    parser["bundle_root"], parser["device"] = str(out), torch.device("cpu")
    before, after = (parser.get_parsed_content(f"{way}processing") for way in ("pre", "post"))
    network, inferer = bundle.bundle_network(out), parser.get_parsed_content("inferer")
    predictor = Predictor.load(model, "cpu", ["inference.mode=window"])
    for seed, steps in enumerate(COARSE):
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = 170, 120, -80
        i, j, k = (
            int(length / abs(step)) for length, step in zip((330, 250, 160), steps, strict=True)
        )
        scan, _ = make_phantom(seed, grid=Grid((i, j, k), affine))
        path = tmp_path / f"phantom_{seed}.nii.gz"
        write_scan(path, np.asfortranarray(scan.array), affine)
        data = before({"image": str(path)})
        with torch.inference_mode():
            data["pred"] = inferer(data["image"][None], network)[0]
        found = after.transforms[0](data)["pred"][0].numpy()
        wanted = predictor.predict(path).array
        for value in LABELS:
            assert np.count_nonzero(wanted == value) > 500
            assert dice(found == value, wanted == value) >= 0.999


def test_what_a_bundle_leaves_out_or_cannot_know_is_said(tmp_path: Path) -> None:
    settings = ["inference.mode=whole", "preprocessing.normalisation=volume"]
    model = save(tmp_path / "model.safetensors", *settings)
    out, warnings = package(model, tmp_path / "out", "bundle")
    (warning,) = warnings
    assert warning.startswith("inference.mode=whole: the bundle computes windows")
    written = json.loads((out / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert written["network_data_format"]["inputs"]["image"]["value_range"] == []


@pytest.mark.parametrize("name", ["$exec('')", "@network", "%other.json"])
def test_a_name_that_monai_would_run_is_refused(name: str, tmp_path: Path) -> None:
    model = save(tmp_path / "runs" / "model.safetensors", labels={0: "background", 1: name})
    with pytest.raises(ModelError, match="MONAI takes for code"):
        package(model, tmp_path / "out", "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("form", ENDINGS)
def test_what_is_there_is_not_replaced(
    form: str, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / f"out{ENDINGS[form]}"
    taken.symlink_to(tmp_path / "nowhere")
    assert command_line.run(main, [str(run), str(tmp_path / "out"), "--format", form]) == 2
    assert f"{taken}: exists already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [taken]


def test_wrong_logits_are_not_handed_out(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = AttentionUNet3D(1, 2, (2, 4, 4)).eval()
    content = exported_program.exported_bytes(other, {})
    monkeypatch.setattr(exported_program, "exported_bytes", lambda *_: content)
    with pytest.raises(ModelError, match="logits would differ"):
        package(run, tmp_path / "out", "exported")
    monkeypatch.setattr(bundle, "bundle_network", lambda _: other)
    with pytest.raises(ModelError, match="logits would differ"):
        package(run, tmp_path / "out", "bundle")
    assert not any(tmp_path.iterdir())


def test_wrong_calls_are_one_line(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model.safetensors", "training.patch_size=")
    file = tmp_path / "file"
    file.touch()
    for arguments, words in (
        ([tmp_path / "missing", tmp_path / "out"], "a model is a run folder"),
        ([model, tmp_path / "out"], "holds no window"),
        ([run, file / "out"], "cannot be created"),
        ([run, tmp_path / "..", "--format", "onnx"], "is a folder"),
    ):
        assert command_line.run(main, [str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main([str(run), str(tmp_path / "deep" / "out")]) == 0
    assert "deep/out: bundle" in capsys.readouterr().err
