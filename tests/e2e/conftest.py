"""The page served to a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tiny import write_disc
from visitor import CHROMIUM, FLAGS, PATIENCE, Tab, Tap, edited, example, served, visit

from freemask import page as parts


@pytest.fixture(scope="package")  # while it is open, its thread runs no other event loop
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc(tmp_path_factory.mktemp("clips") / "disc.mp4")


@pytest.fixture(scope="module")
def tap() -> Tap:
    return Tap()


@pytest.fixture(scope="module")
def address(tap: Tap, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    shipped = [example(clip, word="car", steps=6, tau=0.4)]
    with served(tap, tmp_path_factory.mktemp("served"), shipped) as url:
        yield url
        tap.flowing.set()


@pytest.fixture(scope="module")
def shipped(tap: Tap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page with the examples that ship."""
    with served(tap, tmp_path_factory.mktemp("shipped")) as url:
        yield url


@pytest.fixture(scope="module")
def real(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page over the mini backbone, with an example of two steps; for a module without `address`, since all pages of
    a process have their files where the last one served has them."""
    with served(
        parts.diffusion, tmp_path_factory.mktemp("real"), [example(clip, steps=2, size=(64, 64))], judge=True
    ) as url:
        yield url


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """What the tabs of `page` and `tab` share: the files of Gradio's own, which are then loaded once. Their visitor
    wants no motion, so results stand still until they are played."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened.set_default_timeout(1000 * PATIENCE)
    yield opened
    opened.close()


@pytest.fixture
def tab(context: BrowserContext) -> Iterator[Tab]:
    """Opens an address in a tab of its own, of 1280 × 900 or another size: another visitor of the page. Without an
    address the tab is blank."""
    tabs = []

    def open_tab(url: str = "", width: int = 1280, height: int = 900) -> Page:
        tabs.append(opened := context.new_page())
        opened.set_viewport_size({"width": width, "height": height})
        if url:
            visit(opened, url)
        return opened

    yield open_tab
    for opened in tabs:
        opened.close()


@pytest.fixture(scope="module")
def seen(context: BrowserContext, address: str, clip: Path, tap: Tap) -> Iterator[Page]:
    """A page on which an edit was made, for all tests of a module that only look at it; another may follow on it."""
    tap.flowing.set()
    opened = context.new_page()
    visit(opened, address)
    edited(opened, clip)
    yield opened
    opened.close()


@pytest.fixture
def page(tab: Tab, address: str, tap: Tap) -> Iterator[Page]:
    tap.flowing.set()
    opened = tab(address)
    expect(opened.get_by_role("button", name="Edit", exact=True)).to_be_visible()
    yield opened
    tap.halting = False
    tap.flowing.set()
