"""Fingerprint and plan: numbers counted by hand, and rules that hold for every memory."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attunet3d.core import DataError, SettingsError, Size, Triple, presets
from attunet3d.core.config import Config
from attunet3d.core.model_config import NetworkConfig
from attunet3d.datasets.case import Case
from attunet3d.datasets.fingerprint import CaseFacts, Fingerprint, measure_fingerprint
from attunet3d.models.build import build_network
from attunet3d.models.memory import kept_bytes_per_voxel, weight_bytes
from attunet3d.training import plan_file, plan_geometry
from attunet3d.training.plan import make_plan
from tests.conftest import present

GB = 10**9

LABELS = {0: "background", 1: "organ", 3: "other"}


def facts(
    spacing: Triple = (0.8, 0.8, 2.5),
    body: Triple = (340.0, 240.0, 240.0),
    count: int = 40,
    low: float = -90.0,
    high: float = 210.0,
) -> Fingerprint:
    cases = [
        CaseFacts(
            case_id=f"c{number}",
            spacing_mm=spacing,
            extent_mm=(400.0, 400.0, 240.0),
            body_mm=body,
            label_ml={1: 80.0},
        )
        for number in range(count)
    ]
    return Fingerprint(cases=tuple(cases), hu_quantiles=tuple(np.linspace(low, high, 201)))


def divisor(config: Config) -> list[int]:
    strides = present(config.network.strides)
    return [prod(stride[axis] for stride in strides) for axis in range(3)]


def settled(config: Config, by_volume: bool = False) -> bool:
    """Whether nothing that the plan decides is left open."""
    values = (
        config.network.strides,
        *(v for n, v in vars(config.preprocessing).items() if not by_volume or "_hu" not in n),
        config.training.patch_size,
        config.training.batch_size,
        config.inference.window,
    )
    return None not in values


# --- fingerprint -----------------------------------------------------------------------------


def save_case(folder: Path, name: str, spacing: Triple, hu: float, codes: str = "RAS") -> Case:
    """A body of 24×20×16 voxels in air with an organ of 4×3×2; stored along other axes."""
    scan = np.full((40, 36, 24), -1000, np.int16)
    scan[8:32, 8:28, 4:20] = 20
    label = np.zeros(scan.shape, np.uint8)
    label[12:16, 12:15, 8:10] = 1
    label[20:22, 20:22, 10:12] = 3
    scan[label == 1], scan[label == 3] = hu, hu + 10
    affine = np.diag([*spacing, 1.0])
    target = nib.orientations.axcodes2ornt(codes)
    for part, array in (("image", scan), ("label", label)):
        image = nib.Nifti1Image(array, affine).as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
        )
        nib.save(image, folder / f"{name}_{part}.nii.gz")
    return Case(
        id=name, image=folder / f"{name}_image.nii.gz", label=folder / f"{name}_label.nii.gz"
    )


def test_fingerprint_counts_what_is_there(tmp_path: Path) -> None:
    cases = [
        save_case(tmp_path, "a", (2, 2, 3), 50),
        save_case(tmp_path, "b", (2, 2, 5), 90, "SPL"),
        save_case(tmp_path, "c", (1, 1, 4), 130, "LPS"),
    ]
    found = measure_fingerprint(cases, LABELS, workers=1)
    assert [case.case_id for case in found.cases] == ["a", "b", "c"]
    assert found.cases[1].spacing_mm == pytest.approx((2, 2, 5))
    assert found.cases[1].extent_mm == pytest.approx((80, 72, 120))
    assert found.spacing_mm == (2, 2, 4)
    assert found.cases[0].label_ml == {1: 24 * 12 / 1000, 3: 8 * 12 / 1000}
    assert found.values == (1, 3)
    body, margin = np.array(found.cases[0].body_mm), 2 * 16 + 8
    assert (body >= (48, 40, 48)).all()  # 24×20×16 voxels, and a margin
    assert (body <= np.array((48, 40, 48)) + margin).all()
    # Each case counts alike: a third of the quantiles each, 24 of 32 voxels at its lower HU.
    hu = np.array(found.hu_quantiles)
    assert (hu[[0, 100, 200]] == (50, 90, 140)).all()
    assert np.mean(hu <= 60) == pytest.approx(1 / 3, abs=0.01)
    assert np.mean(hu == 50) == pytest.approx(0.75 / 3, abs=0.01)


def test_fingerprint_reads_labels_as_the_manifest_says(tmp_path: Path) -> None:
    case = save_case(tmp_path, "a", (2, 2, 3), 50)
    label = nib.load(case.label)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:, ::-1], label.affine), case.label)
    assert measure_fingerprint([replace(case, label_flip="j")], LABELS, 1).hu_quantiles[0] == 50
    assert measure_fingerprint([case], LABELS, 1).hu_quantiles[0] != 50


def test_fingerprint_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is labelled"):
        measure_fingerprint([], LABELS)
    case = save_case(tmp_path, "a", (2, 2, 3), 50)
    nib.save(nib.Nifti1Image(np.zeros((40, 36, 24), np.uint8), np.eye(4)), case.label)
    with pytest.raises(DataError, match="nothing is labelled"):
        measure_fingerprint([case], LABELS)
    nib.save(nib.Nifti1Image(np.ones((40, 36, 23), np.uint8), np.eye(4)), case.label)
    with pytest.raises(DataError, match=r"case a: its label has shape \(40, 36, 23\)"):
        measure_fingerprint([case], LABELS)


def test_window_mean_and_deviation() -> None:
    found = facts(low=-100, high=200)
    low, high = found.hu_window()
    assert (low, high) == (round(-98.5), round(198.5))
    mean, deviation = found.mean_and_deviation((-100, 200))
    assert mean == pytest.approx(50)
    assert deviation == pytest.approx(300 / 12**0.5, rel=0.01)  # of an even spread
    assert found.mean_and_deviation((500, 600))[1] == 1  # never zero
    assert facts(low=40, high=40).hu_window() == (40, 41)


# --- memory ----------------------------------------------------------------------------------


def kept_bytes(network: nn.Module, patch: Size) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights left out."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network.train()(torch.rand(1, 1, *patch))
        loss = sum(output.softmax(1)[:, 1:].mean() for output in outputs)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    assert loss.requires_grad  # the graph lives until here
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


@pytest.mark.parametrize("gate", ["double", "none"])
@pytest.mark.parametrize("deep_supervision", ["fused", "per-scale"])
@pytest.mark.parametrize("strides", [((2, 2, 2),) * 4, ((2, 2, 1), (2, 2, 2), (2, 2, 2))])
def test_memory_model_against_autograd(
    gate: str, deep_supervision: str, strides: tuple[Size, ...]
) -> None:
    channels = (16, 32, 64, 128, 256)[: len(strides) + 1]
    settings = {"gate": gate, "deep_supervision": deep_supervision, "strides": strides}
    config = NetworkConfig.from_dict({"channels": channels, **settings})
    kept = kept_bytes(build_network(config, 1, 2), (32, 32, 32)) / 32**3
    in_flight = 2 * 4 * (channels[0] + channels[1])
    assert kept + in_flight == pytest.approx(kept_bytes_per_voxel(config, strides, 2), rel=0.15)


@pytest.mark.parametrize("channels", [(16, 32, 64, 128, 256), (32, 64, 128, 256, 320)])
def test_weights_against_the_network(channels: tuple[int, ...]) -> None:
    config = NetworkConfig(channels=channels, strides=((2, 2, 2),) * 4)
    network = build_network(config, 1, 2)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert weight_bytes(config) == pytest.approx(count * 4 * 5, rel=0.1)


# --- plan ------------------------------------------------------------------------------------


def test_decathlon_on_a_large_gpu_keeps_the_median_spacing() -> None:
    planned = make_plan(facts(), presets.pancreas_ct(), 139 * GB).config
    assert planned.preprocessing.spacing_mm == (0.8, 0.8, 2.5)
    assert planned.network.strides == ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert planned.training.batch_size == 2
    x, y, z = present(planned.training.patch_size)
    assert x > y > z  # the body's proportions on this grid
    assert planned.inference.window == (x, y, z)
    assert planned.preprocessing.hu_window == (-88, 208)


def test_less_memory_gives_a_coarser_grid_along_the_fine_axes() -> None:
    spacings = []
    for memory in (6, 11, 24):
        planned = make_plan(facts(), presets.pancreas_ct(), memory * GB)
        spacings.append(present(planned.config.preprocessing.spacing_mm))
        assert "coarser than the median" in planned.reasons["preprocessing.spacing_mm"]
    assert spacings[0][0] > spacings[1][0] > spacings[2][0] > 0.8
    assert {spacing[2] for spacing in spacings} == {2.5}
    assert all(x == y for x, y, _ in spacings)


def test_thick_slices_and_short_axes_are_pooled_later() -> None:
    thick = make_plan(facts(spacing=(1, 1, 8)), presets.pancreas_ct(), 139 * GB).config
    assert [stride[2] for stride in present(thick.network.strides)] == [1, 1, 1, 2]
    short = make_plan(
        facts(spacing=(1, 1, 1), body=(300.0, 250.0, 20.0)), Config(), 139 * GB
    ).config
    assert [stride[2] for stride in present(short.network.strides)] == [2, 2, 1, 1]
    even = make_plan(facts(spacing=(1, 1, 1.5)), Config(), 139 * GB).config
    assert even.network.strides == ((2, 2, 2),) * 4


def test_small_bodies_get_larger_batches_up_to_a_twentieth_of_the_data() -> None:
    small = facts(spacing=(4, 4, 4), body=(192.0, 192.0, 192.0))
    many = make_plan(small, Config(), 139 * GB)
    assert many.config.training.patch_size == (48, 48, 48)
    assert many.config.training.batch_size == 2  # 5 % of 40 bodies
    more = facts(spacing=(4, 4, 4), body=(192.0, 192.0, 192.0), count=1000)
    assert (
        make_plan(more, Config(), 139 * GB).config.training.batch_size
        == plan_geometry.LARGEST_BATCH
    )


GIVEN = {
    "network.strides": "[[2,2,1],[2,2,2],[2,2,2],[2,2,2]]",
    "preprocessing.spacing_mm": "[1.0, 1.1, 1.2]",
    "preprocessing.hu_window": "[-50, 150]",
    "preprocessing.mean_hu": "33.0",
    "preprocessing.std_hu": "44.0",
    "training.patch_size": "[64, 48, 32]",
    "training.batch_size": "3",
    "inference.window": "[80, 80, 80]",
}


@pytest.mark.parametrize("setting", GIVEN)
def test_what_is_given_is_kept(setting: str) -> None:
    config = Config().with_overrides([f"{setting}={GIVEN[setting]}"])
    planned = make_plan(facts(), config, 24 * GB)
    section, name = setting.split(".")
    assert getattr(getattr(planned.config, section), name) == getattr(
        getattr(config, section), name
    )
    assert planned.reasons[setting] == "given"
    assert list(planned.reasons.values()).count("given") == 1
    assert settled(planned.config)


def test_mean_and_deviation_are_of_the_given_window() -> None:
    config = Config().with_overrides(["preprocessing.hu_window=[0, 100]"])
    planned = make_plan(facts(low=-1000, high=1000), config, 24 * GB).config.preprocessing
    assert 0 < present(planned.mean_hu) < 100
    assert planned.mean_hu == pytest.approx(47.5, abs=0.1)  # 45 % at 100, 5 % even between
    assert planned.std_hu == pytest.approx(49, abs=1)


def test_presets_with_all_numbers_are_left_as_they_are() -> None:
    for name in ("oktay2018", "demo_cpu"):
        config = presets.find_config(name)
        planned = make_plan(facts(), config, GB).config
        assert planned.training == config.training
        assert planned.network == config.network
        assert planned.preprocessing.hu_window == config.preprocessing.hu_window
        by_volume = config.preprocessing.normalisation == "volume"
        assert (planned.preprocessing.mean_hu is None) == by_volume  # each scan's own
        assert settled(planned, by_volume)


@given(
    st.tuples(*[st.floats(0.4, 8)] * 3),
    st.tuples(*[st.floats(60, 600)] * 3),
    st.floats(0.3, 140),
)
@settings(max_examples=150, deadline=None)
def test_any_data_on_any_memory(spacing: Triple, body: Triple, memory: float) -> None:
    config = presets.pancreas_ct()
    try:
        planned = make_plan(facts(spacing, body), config, int(memory * GB))
    except SettingsError:
        return
    found = planned.config
    patch, batch = present(found.training.patch_size), present(found.training.batch_size)
    planned_mm = present(found.preprocessing.spacing_mm)
    assert settled(found)
    assert planned.needed_bytes <= memory * GB
    assert all(size % part == 0 for size, part in zip(patch, divisor(found), strict=True))
    assert all(new >= old - 1e-3 for new, old in zip(planned_mm, spacing, strict=True))
    assert 1 <= batch <= plan_geometry.LARGEST_BATCH
    assert prod(patch) <= plan_geometry.LARGEST_PATCH
    make_plan(facts(spacing, body), found, int(memory * GB))  # a run's own settings plan as well


def test_too_little_memory_is_said() -> None:
    with pytest.raises(SettingsError, match=r"memory of 0.1 GB: .* fewer network.channels"):
        make_plan(facts(), Config(), GB // 10)


def test_a_median_coarser_than_the_plan_makes_any_is_kept() -> None:
    planned = make_plan(facts(spacing=(10.0, 10.0, 10.0)), Config(), 24 * GB).config
    assert planned.preprocessing.spacing_mm == (10, 10, 10)


def test_a_given_patch_that_is_too_small_is_not_blamed_on_memory() -> None:
    config = Config().with_overrides(["training.patch_size=16,16,16"])
    with pytest.raises(SettingsError) as caught:
        make_plan(facts(), config, 24 * GB)
    assert str(caught.value) == (
        "training.patch_size=[16, 16, 16]: is too small to see a quarter of the body at 7.92 mm;"
        " set a larger one, or the spacing as well (preprocessing.spacing_mm)"
    )


def test_table_and_file_tell_every_number_and_why(tmp_path: Path) -> None:
    planned = make_plan(facts(), presets.pancreas_ct(), 24 * GB)
    table = planned.table()
    assert "40 cases, median body 340×240×240 mm" in table
    for setting in GIVEN:
        assert f"\n{setting}" in table
    plan_file.save_plan(planned, tmp_path / "plan.json", split={"training": ["a"]})
    saved = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert saved["split"] == {"training": ["a"]}
    assert saved["memory_bytes"] == 24 * GB
    assert saved["planned"]["training.batch_size"]["value"] == 2
    patch = present(planned.config.training.patch_size)
    assert saved["planned"]["training.patch_size"]["value"] == [*patch]
    assert all(entry["reason"] for entry in saved["planned"].values())
    assert saved["fingerprint"]["cases"][0]["label_ml"] == {"1": 80.0}
    assert "24 GB" in planned.reasons["training.patch_size"]
    assert "takes about 0.1 GB" in replace(planned, needed_bytes=1000).table(), "never 0.0"


@pytest.mark.parametrize(
    ("preset", "strides"),
    [
        (presets.attunet2d_nearest, ((2, 2, 1),) * 4),
        (presets.attunet3d_same_resolution, ((2, 2, 2),) * 4),
        (presets.attunet3d_transposed, ((2, 2, 2),) * 3),
    ],
)
def test_published_forms_have_strides_of_their_own_and_patches_that_fit(
    preset: Callable[[], Config], strides: tuple[Size, ...]
) -> None:
    plan = make_plan(facts(), preset(), 24 * GB)
    assert plan.config.network.strides == strides
    assert plan.reasons["network.strides"] == "the form's own"
    assert settled(plan.config)
    assert all(
        size % step == 0
        for size, step in zip(
            present(plan.config.training.patch_size), divisor(plan.config), strict=True
        )
    )


def test_strides_of_the_attention_unet_do_not_hold_for_a_published_form() -> None:
    sets = ["network.form=2d_nearest", "training.patch_size=[32,32,3]"]
    plan = make_plan(facts(), presets.demo_cpu().with_overrides(sets), 24 * GB)
    assert plan.config.network.strides == ((2, 2, 1),) * 4
    assert plan.reasons["network.strides"] == "the form's own"
    odd = presets.demo_cpu().with_overrides([*sets, "training.patch_size=[32,40,3]"])
    with pytest.raises(SettingsError, match=r"patch_size must be a multiple of \[16, 16, 1\]"):
        make_plan(facts(), odd, 24 * GB)
