"""Takes the README's pictures of a dashboard that runs: ``python tests/browser/screenshots.py URL FOLDER``.

The pods are the demo's; the best moment is when one of them has just fallen ill: four minutes past the hour.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, NamedTuple

from playwright.sync_api import Browser, expect, sync_playwright

from ingestor.local import chromium


class Picture(NamedTuple):
    """A page as it is shown."""

    name: str
    path: str
    width: int
    height: int
    scheme: Literal["light", "dark"]


PICTURES = [
    Picture("overview.png", "/", 1280, 800, "light"),
    Picture("pod.png", "/pod?namespace=shop&pod=cart-5d8c7b9f4-z9m2c", 1280, 800, "dark"),
    Picture("phone.png", "/", 360, 740, "light"),
]


def take(browser: Browser, url: str, picture: Picture, folder: Path) -> None:
    """Take one picture, once all is read that was written before."""
    size = {"width": picture.width, "height": picture.height}
    page = browser.new_page(viewport=size, color_scheme=picture.scheme)
    page.goto(url + picture.path)
    expect(page.locator("#state-word")).to_have_text("Live", timeout=120_000)
    expect(page.locator("path.line").first).to_be_visible(timeout=30_000)
    page.screenshot(path=folder / picture.name)
    page.close()


if __name__ == "__main__":
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium.find_program(), args=chromium.FLAGS)
        for wanted in PICTURES:
            take(started, sys.argv[1].rstrip("/"), wanted, Path(sys.argv[2]))
        started.close()
