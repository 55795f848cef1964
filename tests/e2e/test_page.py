"""The page in a real browser, over a worker that paints circles: upload, edit, cancel, a bad upload, a phone."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_disc
from playwright.sync_api import Browser, Page, expect, sync_playwright

import app
from freemask import page as parts
from freemask.jobs import Step, Worker
from freemask.presets import Example, Settings

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30.0
SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}")


class Tap:
    """Paints circles; while it is closed, a running job stops before its next step."""

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.ended = threading.Event()

    def __call__(self, clip: Path, settings: Settings, out: Path, kept: Path) -> Generator[Step, None, dict[str, Any]]:
        self.ended.clear()
        try:
            return (
                yield from parts.painted_circles(clip, settings, out, kept, pause=lambda: self.flowing.wait(PATIENCE))
            )
        finally:
            self.ended.set()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc(tmp_path_factory.mktemp("clips") / "disc.mp4")


@pytest.fixture(scope="module")
def tap() -> Tap:
    return Tap()


@pytest.fixture(scope="module")
def address(tap: Tap, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(source=SOURCE, edit=EDIT, task="attribute", word="car", steps=6, frames=4, tau=0.4)
    shipped = [Example(name="Red car, blue car", clip=clip, settings=settings)]
    with pytest.MonkeyPatch.context() as patch, Worker(limit=4) as worker:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served")))
        patch.setattr(app, "examples", lambda: shipped)
        demo = app.build(worker, body=tap)
        _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        yield url
        tap.flowing.set()
        demo.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, address: str, tap: Tap) -> Iterator[Page]:
    tap.flowing.set()
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(1000 * PATIENCE)
    opened.goto(address)
    expect(opened.get_by_role("button", name="Edit", exact=True)).to_be_visible()
    yield opened
    tap.flowing.set()
    opened.close()


def fill(page: Page, clip: Path) -> None:
    page.set_input_files("#clip input[type=file]", clip)
    page.get_by_label("What the clip shows").fill(SOURCE)
    page.get_by_label("What it should show").fill(EDIT)
    page.get_by_label("Attribute", exact=True).check()
    expect(page.get_by_label("Word that is edited")).to_have_value("car")
    expect(page.locator("#facts")).to_contain_text("64×64")


def press_edit(page: Page) -> None:
    page.get_by_role("button", name="Edit", exact=True).click()


def state(page: Page, name: str) -> None:
    expect(page.locator(f".fm-status[data-state={name}]")).to_be_visible(timeout=1000 * PATIENCE)


def test_upload_and_edit(page: Page, clip: Path) -> None:
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    videos = page.locator("#videos video")
    expect(videos).to_have_count(3)
    for index in range(3):
        page.wait_for_function("i => document.querySelectorAll('#videos video')[i].videoWidth > 0", arg=index)
    page.get_by_role("tab", name="Masks").click()
    sheet = page.locator("#sheet img")
    expect(sheet).to_be_visible()
    first = sheet.get_attribute("src")
    page.get_by_label("Word", exact=True).click()
    page.get_by_role("option", name="grass").click()
    expect(sheet).not_to_have_attribute("src", first or "")
    page.get_by_role("tab", name="Report").click()
    expect(page.get_by_role("cell", name="masks.npz")).to_be_visible()


def test_cancel_stops_the_run_and_keeps_the_fields(page: Page, clip: Path, tap: Tap) -> None:
    fill(page, clip)
    tap.flowing.clear()
    press_edit(page)
    state(page, "running")
    height = page.locator(".fm-status").bounding_box()
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    tap.flowing.set()
    assert tap.ended.wait(PATIENCE)
    assert page.locator(".fm-status").bounding_box() == height
    expect(page.get_by_label("What the clip shows")).to_have_value(SOURCE)
    expect(page.locator("#videos video")).to_have_count(0)
    press_edit(page)
    state(page, "done")


def test_the_queue_tells_a_visitors_place(page: Page, browser: Browser, address: str, clip: Path, tap: Tap) -> None:
    fill(page, clip)
    tap.flowing.clear()
    press_edit(page)
    state(page, "running")
    other = browser.new_page()
    other.goto(address)
    fill(other, clip)
    press_edit(other)
    state(other, "waiting")
    expect(other.locator(".fm-status")).to_contain_text("1 job is ahead of yours")
    tap.flowing.set()
    state(page, "done")
    state(other, "done")
    other.close()


def test_a_bad_upload_is_told_and_nothing_is_lost(page: Page, clip: Path, tmp_path: Path) -> None:
    fill(page, clip)
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video at all")
    page.get_by_role("button", name="Clear").click()
    page.set_input_files("#clip input[type=file]", bad)
    expect(page.locator("#facts .bad")).to_contain_text("notes.mp4")
    press_edit(page)
    state(page, "failed")
    expect(page.locator(".fm-status")).to_contain_text("notes.mp4")
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
    expect(page.locator("#facts .bad")).to_contain_text("notes.mp4")


def test_an_example_fills_every_field(page: Page) -> None:
    page.get_by_role("button", name="Red car, blue car").click()
    expect(page.get_by_label("What the clip shows")).to_have_value(SOURCE)
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
    expect(page.get_by_label("Word that is edited")).to_have_value("car")
    expect(page.get_by_label("Attribute", exact=True)).to_be_checked()
    expect(page.locator("#facts")).to_contain_text("64×64")
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("6")
    expect(page.get_by_label("τ", exact=True)).to_have_value("0.4")
    press_edit(page)
    state(page, "done")


def test_looking_into_advanced_changes_nothing(page: Page, clip: Path) -> None:
    fill(page, clip)
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label("α self")).to_have_value("")
    press_edit(page)
    state(page, "done")
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#json")).to_contain_text(re.compile(r'"alpha_self":\s*null'))


def test_the_toy_world_is_told_while_mini_is_chosen(page: Page) -> None:
    expect(page.locator("#toy")).to_contain_text("mini knows only its toy world")
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Backbone").click()
    page.get_by_role("option", name="zeroscope").click()
    expect(page.locator("#toy")).not_to_contain_text("toy world")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_scrolls_one_way_only(browser: Browser, address: str, clip: Path, theme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}?__theme={theme}")
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    for tab in ("Edited", "Masks", "Report"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
