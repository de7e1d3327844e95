"""Chromium for tests of pages, driven by Playwright; the system's own, because Playwright's is a large download."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Milliseconds that a busy machine may take for what a test waits for.
PATIENCE = 120_000
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def chromium(*options: str) -> Iterator:
    """A browser with command-line options of its own; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested with the package playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Root, as which continuous integration runs, gets no sandbox.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *options])
        yield browser
        browser.close()


@contextmanager
def visitor(browser) -> Iterator:
    """A page of somebody with a phone, whom nobody knows yet; it must not ask any other machine for anything."""
    requests: list[str] = []

    def refuse(route) -> None:
        requests.append(route.request.url)
        route.abort()

    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(PATIENCE)
    context.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), refuse)
    yield context.new_page()
    context.close()
    assert requests == []


def fits(page) -> bool:
    """Whether nothing sticks out of a page to the right."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
