"""The studio in a real browser over the mini backbone: what is asked of a model itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from tiny import write_noise
from visitor import all_seen, edit_example, explorer, made, report, visit

from freemask.clips.ffmpeg import run_ffmpeg
from freemask.families.sites import short_site


@pytest.fixture(scope="module")
def page(context: BrowserContext, real: str) -> Iterator[Page]:
    """The page of a visitor who has made an edit; each test here makes another of it."""
    opened = context.new_page()
    visit(opened, real)
    edit_example(opened)
    yield opened
    opened.close()


def test_a_second_edit_begins_at_denoising(page: Page) -> None:
    explorer(page, words="car")
    assert report(page)["unet"]["invert"]["forwards"] == 2
    expect(page.locator("#estimate")).to_contain_text("as measured on this server")
    made(page, "Edit with this row")
    expect(page.locator(".fm-status")).to_contain_text("begun at denoising")
    told = report(page)
    assert told["unet"]["invert"]["forwards"] == 0
    assert (told["mask"]["origin"], told["mask"]["timestep"]) == ("picked", "every")


def test_a_layer_is_seen_in_full(page: Page) -> None:
    """Its heads, of which some make the mask; its features; and what a place attends to, by mouse and keyboard."""
    view, line = page.get_by_label("View", exact=True), page.locator(".fm-layer-view > p[role=status]")
    heads = page.locator(".fm-head-tile")
    view.select_option("heads")
    expect(heads.first).to_be_visible()
    count = heads.count()
    assert count > 1
    figure = page.locator(".fm-inspector dd").first
    before = figure.text_content()
    heads.first.click()
    expect(figure).not_to_have_text(str(before))
    expect(page.get_by_role("button", name="Edit with this row")).to_be_hidden()
    view.select_option("features")
    expect(line).to_have_text("")
    expect(heads.first).to_be_hidden()
    view.select_option("a place")
    canvas = page.locator(".fm-view canvas").first
    expect(page.locator(".fm-spot").first).to_be_visible()
    place = page.locator(".fm-spot").first.get_attribute("style")
    canvas.click(position={"x": 20, "y": 20})
    moved = page.locator(".fm-spot").first
    expect(moved).not_to_have_attribute("style", str(place))
    place = moved.get_attribute("style")
    canvas.press("ArrowDown")
    expect(moved).not_to_have_attribute("style", str(place))
    expect(page.locator(".fm-layer-view")).to_contain_text(re.compile(r"In words: \w+ [\d.]+ %"))
    made(page, "Edit with this cell")


def test_attention_is_bent_and_the_edit_made_again(page: Page) -> None:
    cell = str(explorer(page).get_attribute("data-cell"))
    page.get_by_label("Bend this word's attention").select_option("muted")
    made(page, "Edit bent")
    site, timestep = cell.split("@")
    assert report(page)["settings"]["bend"] == f"{short_site(site)}@{timestep}: car scale 0"
    expect(page.locator("#history .fm-history")).to_contain_text("bend")


def test_all_that_an_edit_of_an_own_clip_needs_is_seen(page: Page, tmp_path: Path) -> None:
    """A clip of another world, which this browser does not play, and a word that mini does not know; then two
    changes."""
    noise, clip = write_noise(tmp_path / "noise.mp4"), tmp_path / "hevc.mp4"
    run_ffmpeg("-i", str(noise), "-c:v", "libx265", str(clip))
    page.locator("#clip").get_by_label("Clear").click()
    page.set_input_files("#clip input[type=file]", clip)
    source, edit = page.get_by_label("What the clip shows"), page.get_by_label("What it should show")
    source.fill("a bear walking on the grass")
    edit.fill("a red bear walking on the grass")
    expect(page.locator("#outside")).to_contain_text("expect noise")
    expect(page.locator("#caution")).to_contain_text("expect noise")
    expect(page.locator("#preview")).to_contain_text("preview")
    expect(page.locator("#aligned")).to_contain_text("never seen 'bear'")
    all_seen(page, "#clip", "#source", "#edit", "#task label")
    source.fill("a red car and a yellow dog on the grass")
    edit.fill("a blue car and a green dog on the grass")
    expect(page.locator("#caution")).to_contain_text("is not sure")
    expect(page.get_by_label("What changes of dog")).to_be_visible()
    all_seen(page, "#clip", "#source", "#edit", "#changes select")
    expect(page.locator("#task")).to_be_hidden()
