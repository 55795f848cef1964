"""The studio in a real browser: players, explorer, cells that are picked and masks that are painted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from visitor import PATIENCE, edited, explorer, made, paint, press_edit, report

from freemask.families.sites import short_site
from freemask.page import bodies


def test_the_frame_slider_moves_players_and_explorer(seen: Page) -> None:
    page = seen
    slider = page.locator("#studio").get_by_role("slider", name=re.compile("^Frame"))
    slider.focus()
    for _ in range(8):
        slider.press("ArrowLeft")
    explorer(page, frame="1")
    slider.press("ArrowRight")
    explorer(page, frame="2")
    times = page.evaluate("Array.from(document.querySelectorAll('#studio video'), (v) => v.currentTime)")
    assert max(times) - min(times) < 0.1 and min(times) > 0.1
    page.get_by_role("button", name="Wipe").click()
    expect(page.get_by_label("Divider between source and edit")).to_be_visible()


def test_curves_are_drawn_when_their_tab_opens_and_leave_as_files(seen: Page) -> None:
    page = seen
    figure = page.locator("#timeline img")
    expect(figure).to_have_count(0)
    page.get_by_role("tab", name="Curves").click()
    expect(figure).to_be_visible()
    before = figure.get_attribute("src")
    page.get_by_label("Layer", exact=True).last.click()
    page.get_by_role("option", name="mid").click()
    expect(figure).not_to_have_attribute("src", str(before))
    with page.expect_download() as download:
        page.get_by_role("button", name="Table (CSV)").click()
    told = Path(download.value.path()).read_text().splitlines()
    assert told[0] == "word,layer,timestep,area,iou,flicker,entropy,x,y" and len(told) > 6


def test_two_edits_stand_beside_each_other(seen: Page) -> None:
    """Equal ones differ in nothing; a name and a deletion are the visitor's own."""
    page = seen
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#differ")).to_contain_text("Edit once more")
    press_edit(page)
    expect(page.locator("#differ")).to_contain_text("Their settings are the same.")
    for shown in ("#beside video", "#strip img", "#difference img"):
        page.locator(shown).scroll_into_view_if_needed()  # what is out of sight is not loaded
        expect(page.locator(shown)).to_be_visible()
    field = page.get_by_label("Name of the edit that is shown")
    field.fill("  my <b>second</b>  ")
    field.press("Enter")
    expect(page.get_by_label("2: my <b>second</b>")).to_be_checked()
    page.get_by_role("button", name="Delete this edit").click()
    expect(page.get_by_label("2: my")).to_have_count(0)
    expect(page.get_by_label("1: a blue car driving on the grass")).to_be_checked()
    expect(page.locator("#differ")).to_contain_text("Edit once more")


def test_painting_holds_for_all_frames_unless_for_one_only(seen: Page) -> None:
    page = seen
    page.get_by_role("button", name="Paint", exact=True).click()
    panel = page.locator(".fm-paint")
    use, told = panel.get_by_role("button", name="Edit with the painting"), panel.locator("p[role=status]")
    panel.get_by_label("Begin with").select_option("nothing")
    expect(told).to_have_text("Nothing is painted yet: there is no mask to edit with.")
    expect(use).to_be_disabled()
    canvas = page.locator("#studio canvas.fm-brush")
    canvas.click()
    expect(told).to_have_text("")
    panel.get_by_label("This frame only").check()
    panel.get_by_role("button", name="Clear").click()
    frame = int(str(explorer(page).get_attribute("data-frame")))
    expect(told).to_have_text(f"Without a mask: frame {frame}.")
    panel.get_by_label("This frame only").uncheck()
    panel.get_by_role("button", name="Clear").click()
    panel.get_by_label("This frame only").check()
    canvas.click()
    others = {1: "2 to 8", 2: "1, 3 to 8", 7: "1 to 6, 8", 8: "1 to 7"}
    none = f"frames {others.get(frame, f'1 to {frame - 1}, {frame + 1} to 8')}"
    expect(told).to_have_text(f"Without a mask: {none}.")
    made(page, "Edit with the painting")
    expect(page.locator("#own-mask")).to_contain_text(f"none on {none}.")


def test_a_cell_is_picked_with_the_keyboard_and_used(page: Page, clip: Path) -> None:
    edited(page, clip)
    before = explorer(page, words="car").get_attribute("data-cell")
    cell = page.locator("#studio [role=gridcell][tabindex='0']")
    expect(cell).to_have_attribute(
        "aria-label", re.compile(r"timestep \d+: area \d+ %, IoU with the mask in use 0\.\d\d")
    )
    cell.press("ArrowDown")
    page.wait_for_function("b => document.querySelector('#studio [data-ready]').dataset.cell !== b", arg=before)
    site, timestep = str(explorer(page).get_attribute("data-cell")).split("@")
    page.locator("#studio [role=gridcell][tabindex='0']").press("Enter")
    page.locator("#history .fm-history").wait_for(timeout=1000 * PATIENCE)
    told = report(page)
    assert told["mask"]["origin"] == "picked"
    assert told["settings"]["timestep"] == int(timestep) and short_site(site) == told["settings"]["site"]
    expect(page.locator("#history .fm-history")).to_contain_text("timestep")
    page.get_by_label("1: a blue car driving on the grass").check()
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#json")).to_contain_text(re.compile(r'"origin":\s*"adaptive"'))


def test_a_word_of_no_prompt_is_looked_for_and_its_mask_used(page: Page, clip: Path) -> None:
    edited(page, clip)
    field, hint = page.get_by_label("Another word"), page.locator("#studio .fm-hint p")
    field.fill(", ,")
    field.press("Enter")
    expect(hint).to_contain_text("Write a word or a few")
    field.fill("grass")  # a word of the prompt is that word
    field.press("Enter")
    explorer(page, words="grass")
    field.fill("big  wheels")
    field.press("Enter")
    explorer(page, words="big wheels")
    expect(page.locator("#studio .fm-chip", has_text="big wheels")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".fm-inspector .fm-controls > .fm-note")).to_contain_text("never taught it")
    page.get_by_label("View", exact=True).select_option("strongest word")
    expect(page.locator(".fm-key")).to_contain_text(re.compile(r"\w+ \d+ %"))
    made(page, "Edit with this cell")
    assert report(page)["mask"]["origin"] == "painted"


def test_a_painted_mask_is_used(page: Page, clip: Path) -> None:
    edited(page, clip)
    paint(page)
    told = report(page)
    assert told["mask"]["origin"] == "painted" and told["settings"]["masks"] == "masks.zip"
    tag = page.locator("#own-mask")
    expect(tag).to_contain_text("painted")
    tag.click()
    expect(tag).to_be_hidden()
    press_edit(page)
    expect(page.get_by_label("3: a blue car")).to_be_checked(timeout=1000 * PATIENCE)
    assert report(page)["mask"]["origin"] != "painted"
    page.get_by_label("2: a blue car").check()  # its fields come back with it
    expect(tag).to_contain_text("painted")
    page.locator("#clip").get_by_label("Clear").click()  # and a mask belongs to its clip
    expect(tag).to_be_hidden()


def test_a_cell_without_a_usable_mask_offers_no_edit(page: Page, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the layer up 1.1 every second map lies above any threshold, the others are flat."""
    drawn = bodies._maps

    def useless(*given: Any) -> dict[str, np.ndarray]:
        maps = drawn(*given)
        layer = maps["maps_8x8"][:, 2]
        layer[:] = 255
        layer[::2, ..., 0, 0] = 254
        return maps

    monkeypatch.setattr(bodies, "_maps", useless)
    edited(page, clip)
    use, note = (
        page.get_by_role("button", name="Edit with this cell"),
        page.locator(".fm-inspector .fm-controls > .fm-note"),
    )
    cell = page.locator("#studio [role=gridcell][tabindex='0']")
    reasons = ["flat or zero on some frame", "covers the whole picture, so"]
    for _ in range(2):
        expect(note).to_contain_text(re.compile("|".join(reasons)))
        reasons = [one for one in reasons if one not in str(note.text_content())]
        expect(use).to_be_hidden()
        cell.press("Enter")
        cell.press("ArrowLeft")
    assert not reasons
    cell.press("ArrowUp")
    expect(note).to_have_text("")
    expect(use).to_be_visible()
    expect(page.get_by_label("2: a blue car")).to_have_count(0)  # no Enter has begun an edit
