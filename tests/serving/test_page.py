"""The page to drop scans on, in Chromium: progress, the viewer, downloads, the keyboard, errors."""

import base64
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from playwright.sync_api import Download, Page, expect

from tests.evaluation.conftest import coloured, in_browser, pixels
from tests.serving.conftest import TOKEN, Server, scan_of, zipped_series

pytestmark = in_browser
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name));
  const event = new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
}"""
WATCH = """() => {
  window.seen = new Set();
  const look = () => document.querySelectorAll("#jobs [role=status]").forEach((words) => {
    const bar = words.parentElement.querySelector("progress");
    window.seen.add(words.textContent);
    if (bar && bar.value > 0) window.seen.add(`${words.textContent} bar`);
  });
  new MutationObserver(look).observe(document.getElementById("jobs"),
    { subtree: true, childList: true, characterData: true, attributes: true });
}"""


@pytest.fixture
def opened(server: Server, tab: Page) -> Page:
    """The page, with the token entered."""
    tab.goto(str(server.client.base_url))
    tab.get_by_label("Token").fill(TOKEN)
    return tab


def drop(tab: Page, name: str, content: bytes) -> None:
    tab.evaluate(DROP, [name, base64.b64encode(content).decode()])


def saved(download: Download) -> bytes:
    return Path(download.path()).read_bytes()


def test_a_dropped_scan_shows_how_far_it_is_its_viewer_and_its_files(
    opened: Page, tmp_path: Path
) -> None:
    content, inside = scan_of(501, tmp_path)
    opened.evaluate(WATCH)
    drop(opened, "<b>scan.nii.gz", content)
    line = opened.get_by_role("listitem")
    expect(line.get_by_role("status")).to_contain_text("done in", timeout=60_000)
    assert line.locator(".name").text_content() == "<b>scan.nii.gz"
    seen: Any = opened.evaluate("() => [...window.seen]")
    assert {"sending bar", "segmenting"} & set(seen)
    names = ["Look at it", "Label map", "Volumes"]
    assert line.get_by_role("button").all_text_contents() == names  # there is no series for a SEG
    with opened.expect_popup() as popup:
        line.get_by_role("button", name="Look at it").click()
    viewer = popup.value
    viewer.wait_for_function("document.querySelector('#cases tbody button') !== null")
    viewer.locator("#cases tbody button").first.click()
    viewer.wait_for_function("document.getElementById('position').textContent !== ''")
    assert coloured(pixels(viewer, "canvas-axial")) > 0.02
    viewer.close()
    with opened.expect_download() as download:
        line.get_by_role("button", name="Label map").click()
    assert download.value.suggested_filename == "segmentation.nii.gz"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(saved(download.value)))
    assert ((np.asarray(image.dataobj) > 0) == inside).all()


def test_a_series_is_chosen_and_its_objects_are_fetched_by_keyboard(
    opened: Page, tmp_path: Path
) -> None:
    content, slices = zipped_series()
    (tmp_path / "series.zip").write_bytes(content)
    opened.get_by_label("Drop a scan here").set_input_files(tmp_path / "series.zip")
    expect(opened.get_by_role("button", name="DICOM SEG")).to_be_visible(timeout=60_000)
    opened.get_by_label("Drop a scan here").focus()
    reached = list[str]()
    while reached[-1:] != ["DICOM SEG"]:
        opened.keyboard.press("Tab")
        reached.append(str(opened.evaluate("() => document.activeElement.textContent")))
        assert len(reached) < 6
    assert reached[-3:] == ["Look at it", "Label map", "DICOM SEG"]
    with opened.expect_download() as download:
        opened.keyboard.press("Enter")
    path = tmp_path / "seg.dcm"
    path.write_bytes(saved(download.value))
    seg = pydicom.dcmread(path)
    assert seg.Modality == "SEG"
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID


def test_what_is_refused_is_told_in_words(opened: Page, tmp_path: Path) -> None:
    drop(opened, "text.txt", b"no scan")
    line = opened.get_by_role("listitem").first
    expect(line.locator(".failed")).to_contain_text("neither NIfTI, NRRD nor a ZIP archive")
    opened.get_by_label("Token").fill("wrong")
    drop(opened, "scan.nii.gz", scan_of(1, tmp_path)[0])
    expect(opened.locator(".failed").first).to_have_text("bearer token missing or wrong")


def test_a_scan_that_is_no_longer_wanted_is_cancelled(opened: Page) -> None:
    opened.route("**/jobs", lambda route: None)  # an upload that takes long
    drop(opened, "scan.nii.gz", b"anything")
    opened.get_by_role("button", name="Cancel").press("Space")
    expect(opened.locator(".failed")).to_have_text("cancelled")
    expect(opened.locator("li button")).to_have_count(0)
