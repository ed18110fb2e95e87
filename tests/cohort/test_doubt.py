"""How far a label is believed: what is measured of it, and words that are fitted out of fold."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attunet3d.cohort import results
from attunet3d.cohort.call import CohortOptions
from attunet3d.cohort.doubt import DoubtRule, doubt_of
from attunet3d.cohort.preview import HEIGHT, draw_preview
from attunet3d.cohort.run import segment_cohort
from attunet3d.cohort.scans import find_cases
from attunet3d.core import WriteError
from attunet3d.evaluation.doubt_fit import fit_doubt
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.label_measures import LabelMeasures, measure_labels
from attunet3d.imaging.volume import Segmentation, Volume, read_label
from attunet3d.inference.agreement import Agreement
from attunet3d.inference.expected_dice import ArgmaxDice, expected_dice
from attunet3d.inference.predictor import Predictor
from tests.known_network import ThresholdNetwork, ball, ball_volume, checkpoint

NAMES = {0: "background", 5: "ball"}


def segment(
    scans: Path,
    out_dir: Path,
    *networks: Any,
    settings: Any = (),
    notes: Any = None,
    **options: Any,
) -> Any:
    members = [
        checkpoint(network, notes=notes or {}) for network in networks or (ThresholdNetwork(),)
    ]
    here = Predictor(members, "cpu", settings)
    return segment_cohort(here, find_cases(scans), out_dir, CohortOptions(**options))


def doubt(out_dir: Path, case_id: str = "a") -> Any:
    return json.loads((out_dir / f"{case_id}.json").read_text())["doubt"]["ball"]


def rows(out_dir: Path) -> Any:
    return list(csv.DictReader((out_dir / "statistics.csv").read_text().splitlines()))


# --- measures --------------------------------------------------------------------------------


def test_measures_of_a_label_are_those_of_its_voxels() -> None:
    array = np.zeros((12, 10, 8), np.uint8, order="F")
    array[2:4, 2:4, 2:4] = 3
    array[6, 9, 3] = 3  # at the border
    scan = Volume(np.random.default_rng(0).normal(50, 9, array.shape), Grid(array.shape, np.eye(4)))
    case = Segmentation(array, scan.grid, {0: "background", 1: "missing", 3: "organ"})
    found = measure_labels(case, scan)
    values = scan.array[array == 3]
    assert found["missing"] == LabelMeasures(value=1)
    assert found["organ"] == LabelMeasures(
        value=3,
        voxels=9,
        ml=0.009,
        hu_mean=round(values.mean(), 2),
        hu_sd=round(values.std(), 2),
        pieces=2,
        largest_piece=round(8 / 9, 6),
        touches_border=True,
    )


def test_measures_of_a_region_are_those_of_all_its_values() -> None:
    array = np.zeros((12, 10, 8), np.uint8, order="F")
    array[2:4, 2:4, 2:4], array[4:6, 2:4, 2:4], array[6:8, 2:4, 2:4] = 1, 2, 1
    array[11, 9, 7] = 2
    grid = Grid(array.shape, np.eye(4))
    scan = Volume(array * 10.0, grid)
    names = {0: "background", 1: "whole", 2: "mass", 3: "missing"}
    case = Segmentation(array, grid, names, None, {1: (1, 2), 2: (2,), 3: (3,)})
    found = measure_labels(case, scan)
    whole, mass = found["whole"], found["mass"]
    assert (whole.voxels, whole.ml, whole.pieces, whole.touches_border) == (25, 0.025, 2, True)
    assert (whole.largest_piece, whole.hu_mean) == (24 / 25, (16 * 10 + 9 * 20) / 25)
    assert (mass.voxels, mass.pieces, mass.hu_mean) == (9, 2, 20)
    assert found["missing"] == LabelMeasures(value=3)


def test_expected_dice_and_agreement_of_regions_are_those_of_all_their_values() -> None:
    regions = {1: (1, 2), 2: (2,)}
    logits = torch.tensor([[0.0, 0, 0, 0], [9, 9, 9, -9], [-9, 8, 9.5, -9]])
    dice = ArgmaxDice(3, "sigmoid", regions)
    dice.add(logits)
    p = logits.sigmoid()
    wanted = [expected_dice(float(p[1, :3].sum()), 3, float(p[1].sum()))]
    wanted += [expected_dice(float(p[2, 1:3].sum()), 2, float(p[2].sum()))]
    assert dice.expected() == pytest.approx(wanted)
    agreement = Agreement(3, regions)
    other = torch.tensor([[0.0, 0, 0, 0], [9, 9, 9, 9], [-9, -9, 9, -9]])
    agreement.add([agreement.winners(part[None]) for part in (logits, other)])
    assert agreement.dice() == pytest.approx([2 * 3 / (3 + 4), 2 * 1 / (2 + 1)])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_expected_dice_of_the_largest_logits(activation: Any) -> None:
    logits = torch.randn(4, 9, 8, 7, generator=torch.Generator().manual_seed(0)).double()
    if activation == "sigmoid":
        logits[0] = 0
    dice = ArgmaxDice(4, activation)
    for part in logits.float().split(3, dim=3):
        dice.add(part)
    probabilities = logits.softmax(0) if activation == "softmax" else logits.sigmoid()
    for index, found in enumerate(dice.expected(), start=1):
        mask, p = logits.argmax(0) == index, probabilities[index]
        sums = (float(part.sum()) for part in (p[mask], mask, p))
        assert found == pytest.approx(expected_dice(*sums), rel=1e-5)


def test_agreement_is_the_mean_dice_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    members = [
        torch.randint(3, (2, 6, 5, 4), generator=generator).to(torch.uint8) for _ in range(4)
    ]
    agreement = Agreement(3)
    for half in (0, 1):
        agreement.add([member[half : half + 1] for member in members])
    for label, found in enumerate(agreement.dice(), start=1):
        pairs = [
            ((first == label) & (second == label), (first == label), (second == label))
            for index, first in enumerate(members)
            for second in members[index + 1 :]
        ]
        both = sum(int(pair[0].sum()) for pair in pairs)
        sizes = sum(int(pair[1].sum() + pair[2].sum()) for pair in pairs)
        assert found == pytest.approx(2 * both / sizes)


# --- words -----------------------------------------------------------------------------------


def test_each_reason_for_doubt_lowers_trust() -> None:
    whole = LabelMeasures(value=1, voxels=90, ml=9.0, hu_mean=40.0, pieces=1, largest_piece=1.0)

    def trust(expected: float = 0.9, member: Any = None, ranges: Any = None, **changes: Any) -> Any:
        label = LabelMeasures(**{**vars(whole), **changes})
        found = doubt_of(
            {"x": label}, {"x": expected}, {"x": member}, DoubtRule(), {"x": ranges or {}}
        )
        return found["x"]["trust"]

    assert trust() == 0.9
    worse = [
        trust(expected=0.7),
        trust(member=0.5),
        trust(pieces=3, largest_piece=0.6),
        trust(touches_border=True),
        trust(ranges={"ml": (1, 5)}),
        trust(ranges={"hu": (80, 120)}),
    ]
    assert max(worse) < 0.9
    assert trust(ranges={"ml": (1, 8.9), "hu": (39, 50)}) == 0.9  # a little beyond


def test_an_empty_label_is_well_where_training_had_such_cases() -> None:
    def word(ranges: Any) -> Any:
        found = doubt_of({"x": LabelMeasures(value=1)}, {"x": 0.0}, {}, DoubtRule(), ranges)
        return found["x"]["word"]

    assert word({"x": {"ml": (0.0, 5.0)}}) == "ok"
    assert word({"x": {"ml": (2.0, 5.0)}}) == "look"
    assert word({}) == "look"


def test_fitted_limits_mark_every_bad_label_and_a_quarter_of_all() -> None:
    generator = np.random.default_rng(0)
    entries = []
    for dice in generator.uniform(0.1, 0.95, 200):
        expected = float(np.clip(dice + generator.normal(0, 0.1), 0, 1))
        entries.append(
            {
                "voxels": 9,
                "expected_dice": expected,
                "largest_piece": float(generator.uniform(0.7, 1)),
                "touches_border": bool(generator.random() < 0.2),
                "dice": dice,
            }
        )
    rule = fit_doubt(entries)
    words = [rule.word(entry) for entry in entries]
    bad = [entry["dice"] < 0.5 for entry in entries]
    assert all(word != "ok" for word, is_bad in zip(words, bad, strict=True) if is_bad)
    assert np.mean([word != "ok" for word in words]) >= 0.25
    wrong = [is_bad for word, is_bad in zip(words, bad, strict=True) if word == "wrong?"]
    assert np.mean(wrong) > 0.85
    assert DoubtRule.of({"doubt": json.loads(json.dumps(rule.to_dict()))}) == rule
    assert 0.7 < rule.weights["agreement"] < 1.3


def test_too_few_labels_are_not_fitted() -> None:
    with pytest.raises(ValueError, match="at least 10 are"):
        fit_doubt([{"largest_piece": 1.0, "touches_border": False, "dice": 0.9}] * 9)


# --- in a cohort -----------------------------------------------------------------------------


def test_the_sidecar_tells_the_doubt_of_each_label(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    found = doubt(tmp_path / "out")
    # The network's logits are 2 within the ball and -1 around it.
    inside = ball() == 300
    high, low = torch.tensor([2.0, -1.0]).sigmoid() * torch.tensor([inside.sum(), (~inside).sum()])
    wanted = expected_dice(float(high), inside.sum(), float(high + low))
    assert found["expected_dice"] == pytest.approx(wanted, abs=1e-4)
    assert found["member_dice"] is None
    assert (found["pieces"], found["touches_border"]) == (1, False)
    assert found["outside_training"] is None
    volume = json.loads((tmp_path / "out" / "a.json").read_text())["volumes"]["ball"]
    assert volume["voxels"] == np.count_nonzero(inside)
    assert volume["hu_mean"] == 300


def test_members_that_disagree_are_told(scans: Path, tmp_path: Path) -> None:
    same = ThresholdNetwork(), ThresholdNetwork()
    segment(scans, tmp_path / "same", *same)
    assert doubt(tmp_path / "same")["member_dice"] == 1
    segment(scans, tmp_path / "other", ThresholdNetwork(1.0), ThresholdNetwork(9.0))
    assert doubt(tmp_path / "other")["member_dice"] == 0  # one of the two sees nothing


def test_mirrorings_of_one_network_are_members(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out", settings=["inference.mirror=true"])
    assert doubt(tmp_path / "out")["member_dice"] == 1


def test_the_rule_and_the_ranges_come_with_the_model(scans: Path, tmp_path: Path) -> None:
    rule = DoubtRule(weights={"constant": 0.6}, wrong=0.1, look=0.7)
    notes = {"doubt": rule.to_dict(), "label_ranges": {"ball": {"ml": [1e-3, 1e-2]}}}
    segment(scans, tmp_path / "out", notes=notes)
    found = doubt(tmp_path / "out")
    assert (found["word"], found["trust"], found["outside_training"]) == ("look", 0.6, True)


def test_a_table_of_all_cases_stands_after_every_call(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(scans, out)
    assert [(row["case"], row["label"]) for row in rows(out)] == [("a", "ball"), ("b", "ball")]
    first = rows(out)[0]
    assert float(first["volume_ml"]) == pytest.approx(np.count_nonzero(ball()) * 0.008)
    assert (first["mean_hu"], first["sd_hu"], first["touches_border"]) == ("300.0", "0.0", "False")
    assert float(first["seconds"]) >= 0
    before = (out / "statistics.csv").read_bytes()
    (out / "statistics.csv").unlink()  # as a killed call leaves it
    segment(scans, out)
    assert (out / "statistics.csv").read_bytes() == before
    (out / "a.json").unlink()
    (out / "b.json").write_text("{torn")
    os.rename(scans / "b.nii.gz", scans / "c.nii.gz")
    segment(scans, out)
    assert [row["case"] for row in rows(out)] == ["a", "c"]


def test_a_mask_file_per_label(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(scans, out)
    assert len(segment(scans, out, mask_files=True).done) == 2
    assert len(segment(scans, out, mask_files=True).skipped) == 2
    mask, whole = read_label(out / "a" / "ball.nii.gz"), read_label(out / "a.nii.gz")
    assert np.array_equal(mask.array, whole.array == 5)
    assert np.array_equal(mask.grid.affine, whole.grid.affine)
    content = results.read_sidecar(out / "a.json")
    assert set(content["files"]) == {"a.nii.gz", "a/ball.nii.gz"}


def test_a_label_that_can_name_no_file_is_told_before_the_first_scan(
    scans: Path, tmp_path: Path
) -> None:
    predictor = Predictor([checkpoint(ThresholdNetwork(), labels={0: "background", 5: "../b"})])
    with pytest.raises(WriteError, match="cannot be the name of a file; leave --mask"):
        segment_cohort(
            predictor, find_cases(scans), tmp_path / "out", CohortOptions(mask_files=True)
        )
    assert not (tmp_path / "out").exists()


def test_the_preview_shows_the_ball_on_the_scan(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out", preview=True)
    picture = np.asarray(Image.open(tmp_path / "out" / "preview" / "a.png")).astype(int)
    assert picture.shape[0] == HEIGHT
    coloured = picture.max(2) - picture.min(2) > 40
    assert 0.02 < coloured.mean() < 0.5


def test_the_patients_right_is_on_the_left_of_the_preview(tmp_path: Path) -> None:
    volume = ball_volume()
    array = np.zeros(volume.array.shape, np.uint8, order="F")
    ends = volume.grid.to_world([(0, 0, 0), (29, 0, 0)])[:, 0]  # mm to the patient's right
    array[: 4 if ends[0] > ends[1] else 0, 10:16, 8:14] = 1
    array[26 if ends[1] > ends[0] else 30 :, 10:16, 8:14] = 1
    draw_preview(tmp_path / "p.png", volume, Segmentation(array, volume.grid, NAMES))
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    width = round(HEIGHT * 30 / 26)  # of the axial slice, which comes first
    columns = np.flatnonzero((picture.max(2) - picture.min(2) > 40)[:, :width].any(0))
    assert columns.max() < width / 4


def test_all_slices_of_a_preview_have_one_scale(tmp_path: Path) -> None:
    volume = ball_volume(shape=(60, 40, 3))  # of 2 mm, 3 of them high
    labels = np.zeros(volume.array.shape, np.uint8, order="F")
    draw_preview(tmp_path / "p.png", volume, Segmentation(labels, volume.grid, NAMES))
    with Image.open(tmp_path / "p.png") as picture:
        width, height = picture.size
    assert height == HEIGHT
    assert width == pytest.approx(HEIGHT * (60 + 60 + 40) / 40, abs=2)
