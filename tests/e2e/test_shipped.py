"""The page in a real browser as it greets who comes first: with the examples that ship."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect
from visitor import Tab, all_seen

import freemask.page
from freemask.settings import Example, examples

WIDER = """(least) => {
    const { width } = document.querySelector("#studio .fm-sheet canvas").getBoundingClientRect();
    return width > least && width;
}"""


def test_all_that_an_edit_needs_is_seen_without_scrolling(tab: Tab, shipped: str) -> None:
    page = tab(shipped)
    expect(page.locator("#facts")).to_contain_text("512×512")  # the first example
    page.wait_for_function("document.querySelector('#aligned mark')")
    all_seen(page, "#clip", "#source", "#edit", "#aligned", "#task")
    least = 25 * 18.0  # the matrix of 25 timesteps, which grows with the window
    for width in (1280, 1920, 2560):
        page.set_viewport_size({"width": width, "height": 1080})
        least = 1.3 * float(page.wait_for_function(WIDER, arg=least).json_value())


def spared(page: Page) -> None:
    """No error is shown; each stays for ten seconds."""
    assert page.locator(".toast-body.error").count() == 0


def told_of(prompt: str) -> re.Pattern[str]:
    """A notebook cell about the prompt."""
    return re.compile(re.escape(f"prompt='{prompt}'"))


def test_every_tab_of_every_example_opens(tab: Tab, shipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tab(shipped, 1440, 900)
    page.get_by_role("tab", name="Report").click()
    buttons = page.locator("#examples .gallery-item").all()
    notebook = page.locator("#notebook textarea")
    for example, button in zip(examples(), buttons, strict=True):
        button.click()
        expect(page.locator("#json")).to_contain_text(f'"{example.settings.source}"')
        expect(page.locator("#json")).to_contain_text("reconstruction_psnr")
        page.get_by_role("tab", name="Curves").click()
        expect(notebook).to_have_value(told_of(example.settings.source))
        page.get_by_role("tab", name="Downloads").click()
        expect(page.locator("#files")).to_contain_text(re.compile(r"edited\s*\.mp4"))
        page.get_by_role("tab", name="Sheet").click()
        page.wait_for_function("document.querySelector('#sheet img')?.naturalWidth > 0")
        page.get_by_role("tab", name="Compare").click()
        expect(page.locator("#differ")).to_contain_text("Edit once more")
        page.get_by_role("tab", name="Report").click()
        styled = "sketch" in button.inner_text()  # a style has no mask in use
        figures = r"area \d+ %$" if styled else r"area \d+ %, IoU with the mask in use \d\.\d\d"
        cell = page.locator("#studio [role=gridcell][tabindex='0']")
        expect(cell).to_have_attribute("aria-label", re.compile(figures))
        spared(page)
    names = page.evaluate("gradio_config.dependencies.map((one) => one.api_name)")

    def asks(request: Request, name: str) -> bool:
        return "/queue/join" in request.url and names[request.post_data_json["fn_index"]] == name

    held: list[Route] = []
    page.route(
        re.compile("/queue/join"), lambda one: held.append(one) if asks(one.request, "open_run") else one.continue_()
    )
    page.get_by_role("tab", name="Report").click()
    with page.expect_request(lambda one: asks(one, "open_run")):
        buttons[0].click()
    with page.expect_request(lambda one: asks(one, "follow_curves")):
        page.get_by_role("tab", name="Curves").click()  # while its fields still offer the words of the edit before
    page.wait_for_timeout(500)  # until that is answered: Gradio may lose what is asked while it closes a stream
    held[0].continue_()
    page.unroute_all()
    expect(notebook).to_have_value(told_of(examples()[0].settings.source))
    spared(page)
    fill = freemask.page.fill_example

    def slowly(example: Example) -> list[Any]:
        time.sleep(1)
        return fill(example)

    monkeypatch.setattr(freemask.page, "fill_example", slowly)
    for button in buttons[1:4]:  # who looks through them quickly gets the last
        button.click()
    last = examples()[3].settings
    expect(page.get_by_label("What it should show")).to_have_value(last.edit)
    expect(notebook).to_have_value(told_of(last.source))
    spared(page)
