"""The page served to a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright
from tiny import write_disc
from visitor import CHROMIUM, FLAGS, PATIENCE, Tab, Tap, edited, example, served, visit

from freemask import page as parts

BLANK = "about:blank"
DESK: ViewportSize = {"width": 1280, "height": 900}


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
    """What the tabs of a module share: the files of Gradio's own, which are then loaded once. Their visitor wants no
    motion, so results stand still until they are played."""
    opened = browser.new_context(viewport=DESK, reduced_motion="reduce")
    opened.set_default_timeout(1000 * PATIENCE)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def window(context: BrowserContext) -> Page:
    """The tab in which a module's tests open their pages one after another: each loads in two thirds of the time of a
    new tab. `tab` leaves it blank; after `seen` its page is still there."""
    return context.new_page()


def leave(window: Page) -> None:
    """Closes the page in a tab, and with it all that the tab knows of its visitor."""
    if window.url != BLANK:
        window.evaluate("sessionStorage.clear()")
        window.goto(BLANK)


@pytest.fixture
def tab(window: Page) -> Iterator[Tab]:
    """Opens an address for a new visitor, in 1280 × 900 or another size; for one at a time."""

    def open_tab(url: str, width: int = DESK["width"], height: int = DESK["height"]) -> Page:
        leave(window)
        window.set_viewport_size({"width": width, "height": height})
        visit(window, url)
        return window

    yield open_tab
    leave(window)


@pytest.fixture
def seen(window: Page, address: str, clip: Path, tap: Tap) -> Page:
    """A page on which an edit was made. Tests that only look at it follow one another on it; another edit may be made
    on it."""
    tap.flowing.set()
    if window.url == BLANK:
        window.set_viewport_size(DESK)
        visit(window, address)
        edited(window, clip)
    return window


@pytest.fixture
def page(tab: Tab, address: str, tap: Tap) -> Iterator[Page]:
    tap.flowing.set()
    opened = tab(address)
    expect(opened.get_by_role("button", name="Edit", exact=True)).to_be_visible()
    yield opened
    tap.halting = False
    tap.flowing.set()
