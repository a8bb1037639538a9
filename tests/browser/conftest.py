"""A real Chromium, and a real pipeline to look at."""

from __future__ import annotations

from collections.abc import Iterator

import history
import pytest
from browsing import Pipeline, worker_with_pages
from commands import PATIENCE_S, view_of
from playwright.sync_api import Browser, Page, Request, ViewportSize, expect, sync_playwright

from ingestor.local import chromium
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus

MIDDLE_MS = (history.END_MS - 30 * 60_000) // 60_000 * 60_000
"""Where the first job ends, on a window's edge."""


# Five seconds, as it is without, are a moment on a busy machine.
expect.set_options(timeout=PATIENCE_S * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window, with an empty profile.

    For one module only: while Playwright runs, its event loop is this thread's, and other tests have their own.
    """
    if not chromium.on_path() and not chromium.program_folder().is_dir():
        pytest.skip("no Chromium: python -m ingestor.local fetch --backends gets it, or says why not")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium.find_program(), args=chromium.FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pipeline(
    browser: Browser, kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A pipeline that has read the history up to half an hour before its end."""
    with worker_with_pages(kafka, view_of("dashboard", "1m", "mean"), tmp_path_factory.mktemp("worker")) as running:
        running.poll(prometheus, history.START_MS, MIDDLE_MS)
        yield running


@pytest.fixture
def page(browser: Browser, size: ViewportSize, scheme: str) -> Iterator[Page]:
    """A tab in which nothing goes wrong: no error in a script, nothing that the policy stops, no request that fails."""
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_S * 1000)
    tab = context.new_page()
    faults: list[str] = []

    def failed(request: Request) -> None:
        # A page that is left ends its stream.
        if request.failure != "net::ERR_ABORTED":
            faults.append(f"{request.url}: {request.failure}")

    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("requestfailed", failed)
    tab.on("dialog", lambda dialog: faults.append(dialog.message))
    yield tab
    context.close()
    assert faults == []


@pytest.fixture
def size() -> ViewportSize:
    return {"width": 1280, "height": 800}


@pytest.fixture
def scheme() -> str:
    return "light"
