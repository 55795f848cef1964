"""What a visitor of the page does in a real browser, and a worker's body that waits for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from serving import launch

import app
from freemask import page as parts
from freemask.jobs.questions import Question
from freemask.jobs.worker import Worker
from freemask.settings import Example, Settings
from freemask.steps import Step, mapped

CHROMIUM = Path("/usr/bin/chromium")
# Playwright's own, which the switch replaces, and the address bar's pages, which a window would load beside ours.
WITHOUT = [
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsUpgrades",
    "HttpsFirstBalancedModeAutoEnable",
    "LensOverlay",
    "MediaRouter",
    "PaintHolding",
    "ThirdPartyStoragePartitioning",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "OptimizationHints",
    "NetworkTimeServiceQuerying",
    "AimEnabled",
    "PreconnectToSearch",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
]
FLAGS = [
    f"--disable-features={','.join(WITHOUT)}",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PATIENCE = 30.0
Tab = Callable[..., Page]  # opens an address for a new visitor, `conftest.tab`
SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"
expect.set_options(timeout=1000 * PATIENCE)


class Tap:
    """Paints circles; while it is closed, a running job stops before its next step. Where it is `halting` it closes as
    soon as an edit can be shown."""

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.ended = threading.Event()
        self.halting = False

    def look(self, step: Step) -> Step:
        if step.result is not None and self.halting:
            self.flowing.clear()
        return step

    def __call__(
        self, clip: Path, settings: Settings, out: Path, kept: Path, question: Question | None = None
    ) -> Generator[Step, None, dict[str, Any]]:
        self.ended.clear()
        try:
            body = parts.painted_circles(clip, settings, out, kept, question, pause=lambda: self.flowing.wait(PATIENCE))
            return (yield from mapped(body, self.look))
        finally:
            self.ended.set()


def example(clip: Path, **settings: Any) -> Example:
    """An example without a result that ships."""
    chosen = Settings(source=SOURCE, edit=EDIT, task="attribute", frames=4, **settings)
    return Example(name="Red car, blue car", clip=clip, settings=chosen, made=clip.parent / "none")


@contextmanager
def served(
    body: parts.Body, folder: Path, shipped: list[Example] | None = None, *, judge: bool = False
) -> Iterator[str]:
    """The address of the page over a body, with its own examples or those that ship; `folder` takes all its files.
    `judge` as for `app.build`."""
    with pytest.MonkeyPatch.context() as patch, Worker(limit=4) as worker:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        if shipped is not None:
            patch.setattr(app, "examples", lambda: shipped)
        demo = app.build(worker, body=body, judge=judge)
        url = launch(demo)
        yield url
        # Gradio sets this event of another thread's loop, which fails where a page's heartbeat ends just then.
        with suppress(RuntimeError):
            demo.app.stop_event.set()
        demo.close()


def visit(page: Page, url: str) -> None:
    """Opens the page, which nothing can be written into before its fields are filled."""
    page.goto(url)
    page.locator("#columns[data-ready]").wait_for(state="attached", timeout=1000 * PATIENCE)


def fill(page: Page, clip: Path) -> None:
    page.set_input_files("#clip input[type=file]", clip)
    page.get_by_label("What the clip shows").fill(SOURCE)
    page.get_by_label("What it should show").fill(EDIT)
    page.get_by_label("Attribute", exact=True).check()
    expect(page.get_by_label("Word that is edited")).to_have_attribute("placeholder", "car (inferred from the prompts)")
    expect(page.locator("#facts")).to_contain_text("64×64")


def press_edit(page: Page) -> None:
    page.get_by_role("button", name="Edit", exact=True).click()


def state(page: Page, name: str) -> None:
    page.locator(f".fm-status[data-state={name}]").wait_for(timeout=1000 * PATIENCE)


def explorer(page: Page, **data: str) -> Locator:
    """The explorer once it has drawn what is asked: `cell`, `frame` or `words`."""
    wanted = "".join(f"[data-{name}='{value}']" for name, value in data.items())
    drawn = page.locator(f"#studio [data-ready='1']{wanted}")
    drawn.wait_for(state="attached", timeout=1000 * PATIENCE)
    return drawn


def edited(page: Page, clip: Path) -> None:
    """An edit of the clip is made, and the explorer shows it."""
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)


def edit_example(page: Page) -> None:
    """The example of the page over mini is made anew, and the explorer shows it."""
    page.get_by_role("button", name="Red car, blue car").click()
    expect(page.locator("#facts")).to_contain_text("64×64")
    press_edit(page)
    state(page, "done")
    explorer(page)


def made(page: Page, press: str) -> None:
    """Waits until the history tells of the edit that the button makes."""
    runs = page.locator("#history thead img")
    before = max(runs.count(), 1)  # of one alone there is no history
    page.get_by_role("button", name=press).click()
    expect(runs).to_have_count(before + 1)


def paint(page: Page) -> None:
    """Edits again with a stroke beside the mask in use."""
    page.get_by_role("button", name="Paint", exact=True).click()
    box = page.locator("#studio canvas.fm-brush").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    made(page, "Edit with the painting")


def report(page: Page) -> dict[str, Any]:
    """The report of the run that is shown, as its download tells it."""
    page.get_by_role("tab", name="Downloads").click()
    with page.expect_download() as download:
        page.locator("#files a[download='report.json']").evaluate("(link) => link.click()")  # which may be drawn anew
    told: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    return told


def all_seen(page: Page, *parts: str) -> None:
    """Parts of the form are seen without scrolling in both sizes, above the bar with Edit."""
    for width, height in ((1440, 900), (1280, 720)):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("scrollTo(0, 0)")
        bar = page.locator("#actions").bounding_box()
        assert bar and bar["y"] + bar["height"] <= height
        for part in parts:
            for one in page.locator(part).all():
                box = one.bounding_box()
                assert box and box["y"] >= 0 and box["y"] + box["height"] <= bar["y"], (part, width)
