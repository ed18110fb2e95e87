"""What a call would take is told before it is made, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest

from attunet3d.cohort.call import CohortCall, CohortOptions, ModelOptions, Shard
from attunet3d.cohort.dry_run import dry_run
from attunet3d.cohort.run import segment_cohort
from attunet3d.cohort.scans import find_cases
from attunet3d.core import ModelError
from attunet3d.inference.predictor import Predictor
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.pipelines import infer
from tests.known_network import ThresholdNetwork, checkpoint


@pytest.fixture
def scans(scans: Path) -> Path:
    """Two good scans and a file that is not one."""
    (scans / "c.nii.gz").write_bytes(b"no scan")
    return scans


def told(
    scans: Path,
    out_dir: Path,
    *settings: str,
    network: Any = None,
    shard: Shard | None = None,
    **options: Any,
) -> Any:
    here = Predictor([checkpoint(network)], "cpu", settings)
    asked = CohortOptions(**options)
    call = CohortCall(cases=find_cases(scans), out_dir=out_dir, options=asked, shard=shard)
    return list(dry_run(here, call))


def test_every_scan_gets_a_line_and_nothing_is_written(scans: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    first, second, total = told(scans, tmp_path / "out")
    # 30 × 26 × 22 voxels in windows of 16³ that overlap by half: 3 × 3 × 2 of them.
    wanted = "30 × 26 × 22 voxels, 30 × 26 × 22 for the network; 18 windows in float32"
    assert first.startswith(f"a: {wanted}")
    assert second.startswith(f"b: {wanted}")
    assert total.startswith("2 to do")
    assert "1 would fail" in total
    assert sorted(tmp_path.rglob("*")) == before


def test_the_mode_told_is_the_one_taken(scans: Path, tmp_path: Path) -> None:
    for mode, words in (("whole", "one pass"), ("window", "18 windows")):
        setting = f"inference.mode={mode}"
        assert words in told(scans, tmp_path / "out", setting)[0]
        record = Predictor([checkpoint()], "cpu", [setting]).segment(
            Predictor([checkpoint()], "cpu").read(scans / "a.nii.gz")
        )
        assert record.record.mode == mode


def test_what_is_done_is_not_counted(scans: Path, tmp_path: Path) -> None:
    here = Predictor([checkpoint()], "cpu")
    segment_cohort(here, find_cases(scans)[:1], tmp_path / "out")
    lines = told(scans, tmp_path / "out")
    assert [line.split(":")[0] for line in lines[:-1]] == ["b"]
    assert "1 already done" in lines[-1]


def test_only_the_scans_of_the_shard_are_told_of(scans: Path, tmp_path: Path) -> None:
    parts = [told(scans, tmp_path / "out", shard=Shard(number, 3)) for number in (1, 2, 3)]
    cases = [[line.split(":")[0] for line in lines[:-1]] for lines in parts]
    assert cases == [[], ["a", "b"], []]
    assert ["would fail" in lines[-1] for lines in parts] == [False, False, True]


def test_the_model_is_loaded_on_the_first_of_several_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(Predictor, "load", lambda *arguments: given.append(arguments[1]))
    for device in ("cuda:0,cuda:1", "cpu", None):
        ModelOptions(models=["run"], device=device).load()
    assert given == ["cuda:0", "cpu", None]


def test_a_budget_that_is_too_small_is_said(scans: Path, tmp_path: Path) -> None:
    network = AttentionUNet3D(channels=(2, 4), strides=((2, 2, 2),)).eval()
    member = checkpoint(network, "network.channels=[2, 4]", "network.strides=[[2, 2, 2]]")
    here = Predictor([member], "cpu", ["inference.mode=whole"], memory=100_000)
    line = next(dry_run(here, CohortCall(cases=find_cases(scans), out_dir=tmp_path / "out")))
    assert "windows in float32" in line
    assert "too much for a budget" in line


def test_attention_of_a_network_without_gates_is_refused(scans: Path, tmp_path: Path) -> None:
    class Plain(ThresholdNetwork):
        forward_with_attention = property()

    with pytest.raises(ModelError, match="no attention gates"):
        told(scans, tmp_path / "out", network=Plain(), attention=True)


def test_the_command_prints_it(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Predictor([checkpoint()], "cpu")
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: here)
    model = tmp_path / "model.safetensors"
    arguments = [str(model), str(scans / "a.nii.gz"), str(tmp_path / "out"), "--dry-run"]
    monkeypatch.setattr("attunet3d.datasets.Split.of_models", lambda _: None)
    assert infer.main(arguments) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
