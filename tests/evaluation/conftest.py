"""Report pages: what they hold, and how a browser shows them."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from attunet3d.core import Array
from tests.conftest import present

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """An empty page; errors of what is opened in it fail the test."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def show_a_case(tab: Page, path: Path) -> None:
    """Open a report, and its first case."""
    tab.goto(path.as_uri())
    tab.locator("#cases tbody button").first.click()
    tab.wait_for_function("document.getElementById('position').textContent !== ''")


def content(path: Path) -> Any:
    """The report in a page, without the cases' images."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'id="report" type="application/json">(.*)</script>', text)
    return json.loads(present(found)[1])


def pixels(tab: Page, name: str) -> Array:
    """Width, height and RGBA of a canvas."""
    url = tab.evaluate("(id) => document.getElementById(id).toDataURL()", name)
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def coloured(image: Array) -> float:
    """Share of pixels that are not grey."""
    colours = image[..., :3].astype(int)
    return float((np.ptp(colours, axis=-1) > 25).mean())
