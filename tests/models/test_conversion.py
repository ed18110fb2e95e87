"""Weight files of the authors' network become models; nothing in a file is run."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attunet3d.core import FileError, ModelError, SettingsError, WriteError, presets
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.checkpoint import load_model
from attunet3d.models.conversion import convert_weights, load_weights
from attunet3d.models.published.forms import FORMS, published_network
from attunet3d.pipelines.convert_weights import main
from tests.models.test_attention_unet import authors_state


class Payload:
    """A pickle that leaves a file behind when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def authors_file(tmp_path: Path) -> Path:
    path = tmp_path / "399_net_S.pth"
    torch.save(authors_state("multi"), path)
    return path


def test_a_file_becomes_a_model_with_the_same_logits(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    name, warnings = convert_weights(authors_file, out, names=["pancreas", "spleen"])
    assert (name, warnings) == ("the authors' network with double gates", [])
    model = load_model(out)
    assert model.labels == {0: "background", 1: "pancreas", 2: "spleen"}
    assert model.config.preprocessing == presets.oktay2018().preprocessing
    assert model.config.network.channels == (4, 8, 16, 32, 64)
    assert model.config.network.align_corners is False
    image = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        wanted = AttentionUNet3D.from_authors_state_dict(authors_state("multi"))(image)
        assert torch.equal(model.network(image), wanted)


def test_the_convention_of_corners_is_kept_in_the_model(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    convert_weights(authors_file, out, align_corners=True)
    model = load_model(out)
    assert model.config.network.align_corners is True
    assert model.labels[2] == "class 2"
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        wanted = AttentionUNet3D.from_authors_state_dict(
            authors_state("multi"), align_corners=True
        )(image)
        assert torch.equal(model.network(image), wanted)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_old_and_new_torch_are_read(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = {"a.weight": torch.arange(6.0).reshape(2, 3)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_weights(path)["a.weight"], state["a.weight"])


def test_weights_of_torch_0_3_bring_a_warning_unless_corners_are_aligned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "old.pth", tmp_path / "model.safetensors"
    state = {k: v for k, v in authors_state("single").items() if "num_batches" not in k}
    torch.save(state, path)
    assert main([str(path), str(out)]) == 0
    assert "need --align-corners" in caplog.text
    caplog.clear()
    capsys.readouterr()
    out.unlink()
    assert main([str(path), str(out), "--align-corners", "--label", "a", "--label", "b"]) == 0
    assert caplog.text == ""
    assert capsys.readouterr().err == (
        f"{out}: the authors' network with single gates; a model for infer, package and train\n"
    )
    assert load_model(out).config.network.gate == "single"
    assert load_model(out).labels == {0: "background", 1: "a", 2: "b"}


@pytest.mark.parametrize("form", FORMS)
def test_a_published_form_becomes_a_model_with_the_same_logits(
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    channels = 5 if FORMS[form].axes == 2 else 1
    network = published_network(form, channels, 3, width=4).eval()
    path, out = tmp_path / "weights.pth", tmp_path / "model.safetensors"
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    labels = ["--label", "pancreas", "--label", "spleen", "--set", "preprocessing.hu_window=-9,9"]
    assert main([str(path), str(out), *labels]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"{out}: {form}")
    assert f"as by preset attunet{form}" in caplog.text
    model = load_model(out)
    assert model.labels == {0: "background", 1: "pancreas", 2: "spleen"}
    assert model.config.network.form == form
    assert model.config.preprocessing.hu_window == (-9, 9)
    assert model.config.preprocessing.normalisation == "volume"
    assert model.config.window is not None
    image = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        found = model.network(image)
        if channels == 1:
            assert torch.equal(found, network(image))
        else:
            torch.testing.assert_close(
                found[..., 7], network(image[:, 0, ..., 5:10].movedim(-1, 1))
            )


@pytest.mark.parametrize("form", FORMS)
def test_one_class_gets_a_background_whose_logit_is_zero(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = published_network(form, 3 if FORMS[form].axes == 2 else 1, 1, width=4).eval()
    path, out = tmp_path / "weights.pth", tmp_path / "model.safetensors"
    torch.save(network.state_dict(), path)
    convert_weights(path, out)
    image = torch.randn(1, 1, 16, 16, 3)
    with torch.no_grad():
        found = load_model(out).network(image)
        middle = network(image if FORMS[form].axes == 3 else image[:, 0].movedim(-1, 1))
    assert not found[:, 0].any()
    wanted = middle[:, 0, ..., 1] if FORMS[form].axes == 3 else middle[:, 0]
    torch.testing.assert_close(found[:, 1, ..., 1], wanted)


def test_a_form_must_see_slices_of_ct_and_be_whole(tmp_path: Path) -> None:
    out, path = tmp_path / "model.safetensors", tmp_path / "weights.pth"
    torch.save(published_network("2d_nearest", 4, 2, width=2).state_dict(), path)
    with pytest.raises(ModelError, match="has 4 channels; a form that sees slices"):
        convert_weights(path, out)
    state = published_network("2d_nearest", 3, 2, width=2).state_dict()
    state.pop("Att3.psi.0.bias")
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"not of the network 2d_nearest .*Att3\.psi\.0\.bias"):
        convert_weights(path, out)
    assert not out.exists()


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "trace"
    torch.save({"conv1.weight": Payload(trace)}, path)
    with pytest.raises(ModelError, match="something else than weights"):
        load_weights(path)
    assert not trace.exists()


def test_a_file_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as entries:
        entries.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(ModelError, match="do not fit"):
        load_weights(path)


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "something else than weights"),
        (b"no weights", "something else than weights"),
        (b"PK\x03\x04" + bytes(100), "something else than weights"),
        ([torch.zeros(1)], "must hold weights by name"),
        ({"epoch": 3}, "must hold weights by name"),
        ({"fc.weight": torch.zeros(1)}, "none of the authors"),
        ({"conv1.conv1.0.weight": torch.zeros(4)}, "not the whole"),
    ],
)
def test_other_files_are_refused_in_one_line_with_their_name(
    content: Any, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "wrong.pth", content)
    with pytest.raises(ModelError, match=words) as caught:
        convert_weights(path, tmp_path / "model.safetensors")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_shape_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = authors_state("multi")
    state["conv3.conv2.0.weight"] = torch.zeros(1, 1, 3, 3, 3)
    path = write(tmp_path / "wrong.pth", state)
    with pytest.raises(ModelError, match=r"encoder\.2\.3\.weight"):
        convert_weights(path, tmp_path / "model.safetensors")


def test_a_file_that_exists_is_not_replaced(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"somebody's")
    with pytest.raises(WriteError, match="exists already; delete it or name another"):
        convert_weights(authors_file, out)
    assert out.read_bytes() == b"somebody's"


def test_what_no_command_could_load_is_not_written(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with pytest.raises(SettingsError) as caught:
        convert_weights(authors_file, out, settings=["network.width=4"])
    assert str(caught.value) == (
        "--set network.width=4: the weights decide what the network is; leave it out"
    )
    with pytest.raises(ModelError, match="must be short text on one line; name it otherwise"):
        convert_weights(authors_file, out, names=["a\nb", "c"])
    state = authors_state("multi")
    state["final.bias"] = torch.full_like(state["final.bias"], torch.nan)
    broken = write(tmp_path / "nan.pth", state)
    with pytest.raises(ModelError) as refused:
        convert_weights(broken, out)
    assert str(refused.value) == (
        f"{broken}: weights final.bias hold NaN or infinities; give other weights"
    )
    assert sorted(tmp_path.iterdir()) == sorted([authors_file, broken])


def test_wrong_calls_are_told(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with pytest.raises(FileError, match="cannot be read"):
        convert_weights(tmp_path / "missing.pth", out)
    with pytest.raises(WriteError, match=r"must end in \.safetensors"):
        convert_weights(authors_file, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="2 classes beside the background, but 1 names"):
        convert_weights(authors_file, out, names=["pancreas"])
    two = authors_state("multi")
    two["conv1.conv1.0.weight"] = torch.zeros(4, 2, 3, 3, 3)
    with pytest.raises(ModelError, match="for 2 channels"):
        convert_weights(write(tmp_path / "two.pth", two), out)
