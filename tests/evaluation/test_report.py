"""The report's page: its size, its numbers, and what a browser shows of it."""

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from attunet3d.core import LabelMap, Size
from attunet3d.evaluation.report import FOOTER, Report, write_report
from attunet3d.evaluation.report_case import (
    HU_OF_VALUES,
    Pictures,
    ReportCase,
    coarse_grid,
    payload,
)
from attunet3d.imaging import Grid, Volume
from tests.evaluation.conftest import coloured, content, in_browser, pixels, show_a_case

LABELS = {0: "background", 1: "liver", 2: "</script> pancreas"}
COLUMNS = {"mean Dice": "{:.3f}", "volume ml": "{:.1f}"}
REPORT = Report(
    title="Scores",
    subtitle="Two phantoms.",
    order="Worst first.",
    labels=LABELS,
    columns=COLUMNS,
)
SHAPE = (60, 50, 24)


def volume(noise: float = 20.0) -> Volume:
    """A body of 40 HU in air on an anisotropic LPS-like grid; the patient's right is at index 0."""
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    rng = np.random.default_rng(0)
    array = np.full(SHAPE, -1000.0)
    array[5:55, 5:45] = 40
    array += rng.normal(0, noise, SHAPE)
    return Volume(array.astype(np.int16, order="F"), Grid(SHAPE, affine))


def label_map() -> LabelMap:
    array = np.zeros(SHAPE, np.uint8, order="F")
    array[10:25, 15:35, 4:20] = 1
    array[30:42, 20:30, 8:14] = 2
    return array


def pictures() -> Pictures:
    attention = np.zeros(SHAPE, np.float32)
    attention[10:25, 15:35, 4:20] = 1
    layers = {"prediction": label_map(), "reference": np.roll(label_map(), 3, 0)}
    return Pictures(volume(), layers, [attention, 1 - attention])


def case(name: str, dice: float | None) -> ReportCase:
    return ReportCase(
        name=name,
        values={"mean Dice": dice, "volume ml": 12.25},
        facts="a phantom",
        warnings=("the scan is cut",),
        look=("mean Dice",) if dice is not None and dice < 0.5 else (),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    cases = [case("case_b", 0.4), case("case_a", 0.9), case("<b>bold", None)]
    write_report(path, REPORT, ((case, pictures()) for case in cases))
    return path


def test_labels_and_hu_survive_on_the_coarse_grid() -> None:
    content = json.loads(payload(pictures()))
    x, y, z = content["shape"]
    raw = zlib.decompress(base64.b64decode(content["layers"][0]["data"]))
    labels = np.frombuffer(raw, np.uint8).reshape(z, y, x).transpose(2, 1, 0)
    voxel = np.prod(content["spacing"])
    for value in (1, 2):
        wanted = np.count_nonzero(label_map() == value) * 16
        assert np.count_nonzero(labels == value) * voxel == pytest.approx(wanted, rel=0.05)
    assert np.argwhere(labels == 1)[:, 0].mean() < np.argwhere(labels == 2)[:, 0].mean()


def test_stored_values_are_near_in_soft_tissue() -> None:
    steps = np.diff(HU_OF_VALUES)
    soft = (HU_OF_VALUES[:-1] > -200) & (HU_OF_VALUES[1:] < 300)
    assert 0 < steps[soft].max() < 4
    assert (steps > 0).all()


@pytest.mark.parametrize("shape", [(512, 512, 800), (512, 512, 1), (64, 900, 64)])
def test_a_coarse_grid_keeps_the_extent_within_the_limit(shape: Size) -> None:
    grid = Grid(shape, np.diag([0.7, 0.7, 1.5, 1.0]))
    coarse = coarse_grid(grid, 1_500_000)
    assert np.prod(coarse.shape) <= 1_500_000
    assert coarse.axis_codes == "LPI"
    extent = np.array(coarse.shape) * coarse.spacing_mm
    np.testing.assert_allclose(sorted(extent), sorted(np.array(shape) * grid.spacing_mm))


def test_a_noisy_scan_takes_under_a_megabyte() -> None:
    rng = np.random.default_rng(1)
    shape = (256, 256, 100)
    noisy = (40 + rng.normal(0, 25, shape)).astype(np.int16, order="F")
    labels = (rng.random(shape) > 0.999).astype(np.uint8, order="F")
    scan = Volume(noisy, Grid(shape, np.diag([1.5, 1.5, 3.0, 1.0])))
    assert len(payload(Pictures(scan, {"prediction": labels}))) < 1_000_000


def test_names_cannot_end_the_script_or_become_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert FOOTER in text
    assert text.count("</script>") == 5  # three cases, the report, the script
    assert "<b>bold" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_statistics_are_those_of_the_values(page: Path) -> None:
    name, count, mean, interval, median, span = content(page)["statistics"][0]
    assert (name, count, mean, median, span) == (
        "mean Dice",
        "2",
        "0.650",
        "0.650",
        "0.400 to 0.900",
    )
    low, high = map(float, interval.split(" to "))
    assert 0.4 <= low < 0.65 < high <= 0.9


@pytest.fixture
def opened(tab: Page, page: Path) -> Page:
    """The page with its first case open."""
    show_a_case(tab, page)
    return tab


def names_in(tab: Page) -> list[str]:
    return tab.locator("#cases tbody button").all_inner_texts()


@in_browser
def test_the_table_lists_cases_marks_the_bad_and_sorts(opened: Page) -> None:
    assert names_in(opened) == ["case_b", "case_a", "<b>bold"]
    assert opened.locator("#cases td.look").all_inner_texts() == ["0.400"]
    opened.click("#cases thead th:nth-child(1) button")
    assert opened.locator("#cases tbody button").all_inner_texts() == [
        "<b>bold",
        "case_a",
        "case_b",
    ]
    opened.click("#cases thead th:nth-child(2) button")
    opened.click("#cases thead th:nth-child(2) button")
    assert opened.locator("#cases tbody button").all_inner_texts() == [
        "case_a",
        "case_b",
        "<b>bold",
    ]
    heading = opened.locator("#cases thead th:nth-child(2)")
    assert heading.get_attribute("aria-sort") == "descending"
    mark = "button => getComputedStyle(button, '::after').content"
    assert "↓" in heading.locator("button").evaluate(mark)
    assert heading.locator("button").evaluate("button => button === document.activeElement")


@in_browser
def test_labels_are_shown_over_the_scan_and_can_be_hidden(opened: Page) -> None:
    before = coloured(pixels(opened, "canvas-axial"))
    assert before > 0.05
    for box in opened.locator("fieldset input").all():
        box.uncheck()
    assert coloured(pixels(opened, "canvas-axial")) < 0.01 < before
    assert not pixels(opened, "canvas-surfaces")[..., :3].any()


@in_browser
def test_opacity_changes_the_overlay(opened: Page) -> None:
    opened.locator("#opacity").fill("0")
    assert coloured(pixels(opened, "canvas-axial")) < 0.01
    opened.locator("#opacity").fill("1")
    assert coloured(pixels(opened, "canvas-axial")) > 0.05


@in_browser
def test_the_liver_is_drawn_on_the_left_side_as_radiologists_hang_it(opened: Page) -> None:
    image = pixels(opened, "canvas-axial").astype(int)
    red = image[..., 0] - image[..., 2] > 25  # colour of label 1
    blue = image[..., 2] - image[..., 0] > 25  # colour of label 2
    assert np.argwhere(red)[:, 1].mean() < np.argwhere(blue)[:, 1].mean()


@in_browser
def test_wheel_and_keys_change_the_slice(opened: Page) -> None:
    before = opened.inner_text("#position")
    opened.hover("#canvas-axial")
    opened.mouse.wheel(0, 120)
    after = opened.inner_text("#position")
    assert after != before
    slider = opened.get_by_role("slider", name="axial slice")
    below = int(str(slider.get_attribute("aria-valuenow")))
    slider.focus()
    opened.keyboard.press("ArrowUp")
    assert opened.inner_text("#position") == before
    assert int(str(slider.get_attribute("aria-valuenow"))) == below - 1


@in_browser
def test_tab_goes_on_in_the_viewer_once_a_case_is_open(opened: Page) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == "window"


@in_browser
def test_the_window_presets_change_the_greys(opened: Page) -> None:
    soft = pixels(opened, "canvas-coronal")[..., 0].mean()
    opened.locator("select[aria-label=window]").select_option(label="bone")
    assert pixels(opened, "canvas-coronal")[..., 0].mean() < soft - 10


@in_browser
def test_reference_and_attention_are_other_pictures(opened: Page) -> None:
    prediction = pixels(opened, "canvas-axial")
    opened.locator("select[aria-label='labels of']").select_option(label="reference")
    reference, shares = pixels(opened, "canvas-axial"), []
    assert (reference != prediction).any()
    for gate in ("gate 1", "gate 2"):
        opened.locator("select[aria-label=attention]").select_option(label=gate)
        orange = pixels(opened, "canvas-axial")[..., :3].astype(int)
        shares.append(((orange[..., 0] - orange[..., 2]) > 40).mean())
    assert 0.02 < shares[0] < 0.5 < shares[1]  # the second is open where the first is closed
    opened.locator("select[aria-label=attention]").select_option(label="none")
    assert (pixels(opened, "canvas-axial") == reference).all()


@in_browser
def test_surfaces_turn_by_keys(opened: Page) -> None:
    before = pixels(opened, "canvas-surfaces")
    assert before[..., :3].any()
    opened.focus("#canvas-surfaces")
    for _ in range(5):
        opened.keyboard.press("ArrowLeft")
    assert (pixels(opened, "canvas-surfaces") != before).mean() > 0.02


@in_browser
def test_warnings_and_facts_of_the_case_are_told(opened: Page) -> None:
    assert opened.locator("#warnings li").all_inner_texts() == ["the scan is cut"]
    assert opened.inner_text("#facts") == "a phantom"
    assert opened.inner_text("#viewer-heading") == "case_b"
