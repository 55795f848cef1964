"""The page in a real browser as it greets who comes first: with the examples that ship."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import expect
from visitor import Tab

import freemask.page
from freemask.settings import Example, examples


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720)])
def test_all_that_an_edit_needs_is_seen_without_scrolling(tab: Tab, width: int, height: int, shipped: str) -> None:
    page = tab(shipped, width, height)
    expect(page.locator("#facts")).to_contain_text("512×512")  # the first example
    page.wait_for_function("document.querySelector('#aligned mark')")
    bar = page.locator("#actions").bounding_box()
    assert bar and bar["y"] + bar["height"] <= height
    for part in ("#clip", "#source", "#edit", "#aligned", "#task"):
        box = page.locator(part).bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= bar["y"], part


def test_every_tab_of_every_example_opens(tab: Tab, shipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tab(shipped, 1440, 900)
    page.get_by_role("tab", name="Curves").click()
    buttons = page.locator("#examples .gallery-item").all()
    for example, button in zip(examples(), buttons, strict=True):
        button.click()
        expect(page.locator("#notebook")).to_contain_text(f"prompt='{example.settings.source}'")
        page.get_by_role("tab", name="Downloads").click()
        expect(page.locator("#files")).to_contain_text(re.compile(r"edited\s*\.mp4"))
        page.get_by_role("tab", name="Sheet").click()
        page.wait_for_function("document.querySelector('#sheet img')?.naturalWidth > 0")
        page.get_by_role("tab", name="Compare").click()
        expect(page.locator("#differ")).to_contain_text("Edit once more")
        page.get_by_role("tab", name="Report").click()
        expect(page.locator("#json")).to_contain_text("reconstruction_psnr")
        styled = "sketch" in button.inner_text()  # a style has no mask in use
        figures = r"area \d+ %$" if styled else r"area \d+ %, IoU with the mask in use \d\.\d\d"
        cell = page.locator("#studio [role=gridcell][tabindex='0']")
        expect(cell).to_have_attribute("aria-label", re.compile(figures))
        page.get_by_role("tab", name="Curves").click()
        expect(page.locator(".toast-body.error")).to_have_count(0)
    fill = freemask.page.fill_example

    def slowly(example: Example) -> list[Any]:
        time.sleep(1)
        return fill(example)

    monkeypatch.setattr(freemask.page, "fill_example", slowly)
    for button in buttons[1:4]:  # who looks through them quickly gets the last
        button.click()
    last = examples()[3].settings
    expect(page.get_by_label("What it should show")).to_have_value(last.edit)
    expect(page.locator("#notebook")).to_contain_text(f"prompt='{last.source}'")
    expect(page.locator(".toast-body.error")).to_have_count(0)
