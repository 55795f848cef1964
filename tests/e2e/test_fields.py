"""The fields in a real browser: how they follow each other, and what uploads, links and examples write into them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect
from tiny import write_noise
from visitor import EDIT, PATIENCE, SOURCE, Tab, Tap, fill, paint, press_edit, report, served, state

from freemask.page.advanced import first_pace
from freemask.pictures.mask_zip import save_mask_zip


def test_a_word_is_chosen_where_it_stands_or_typed(page: Page, clip: Path) -> None:
    page.get_by_label("What the clip shows").fill("a dog chasing a dog")
    page.get_by_label("What it should show").fill("a dog chasing a cat")
    word, dogs = page.get_by_label("Word that is edited"), page.locator("#aligned").get_by_role("button", name="dog")
    expect(word).to_have_attribute("placeholder", "dog#2 (inferred from the prompts)")
    expect(dogs.nth(1)).to_have_attribute("aria-pressed", "true")
    dogs.nth(0).click()
    expect(word).to_have_value("dog")
    expect(dogs.nth(0)).to_have_attribute("aria-pressed", "true")
    expect(dogs.nth(1)).to_have_attribute("aria-pressed", "false")
    page.get_by_label("What the clip shows").fill("a cat chasing a cow")
    expect(word).to_have_value("")  # what the prompt no longer holds
    fill(page, clip)
    word.press("ControlOrMeta+a")
    word.press_sequentially("grxss", delay=150)
    expect(page.locator("#aligned")).to_contain_text("'grxss' is not in the first prompt")
    for _ in range(3):
        word.press("Backspace", delay=150)
    word.press_sequentially("ass", delay=150)
    expect(page.locator("#aligned mark.word")).to_have_text("grass")
    expect(word).to_have_value("grass")
    press_edit(page)
    expect(page.locator("#progress")).to_contain_text(re.compile("Done in .* See it"))
    assert report(page)["words"]["word"] == "grass"


def test_several_changes_are_cards_of_their_own(page: Page, clip: Path) -> None:
    fill(page, clip)
    cards = page.locator("#changes li")
    expect(cards).to_have_count(0)
    page.get_by_label("What the clip shows").fill("a red car driving on the grass")
    page.get_by_label("What it should show").fill("a blue bus driving on the snow")
    expect(cards).to_have_count(2)
    expect(cards.nth(0)).to_contain_text("car → blue bus")
    expect(page.locator("#changes")).to_contain_text("2 changes in one pass")
    page.get_by_label("What changes of car").select_option("attribute")
    expect(page.get_by_label("What changes of car")).to_have_value("attribute")
    press_edit(page)
    expect(page.locator("#progress")).to_contain_text(re.compile("Done in .* See it"))
    made = report(page)["settings"]
    assert [one["task"] for one in made["changes"]] == ["attribute", "place"] and made["task"] == "attribute"
    paint(page)  # the word that is shown is the first change's
    expect(page.get_by_label("2: a blue bus")).to_be_checked(timeout=1000 * PATIENCE)
    painted = report(page)["settings"]
    assert painted["masks"] == "labels.zip" and painted["changes"] == made["changes"]
    expect(page.locator("#own-mask")).to_contain_text("painted")
    page.get_by_role("button", name="Edit as one change").click()
    expect(page.locator("#changes")).to_contain_text("one change under one mask")
    page.get_by_role("button", name="Make the 2 changes each under its own mask").click()
    expect(cards).to_have_count(2)
    page.get_by_label("What it should show").fill("a blue car driving on the grass")
    expect(cards).to_have_count(0)


SLOW = """() => {
    const now = window.fetch, late = new Promise((done) => setTimeout(done, 2500));
    window.fetch = async (...told) => (String(told[0]).includes("queue/join") && (await late), now(...told));
}"""


@pytest.fixture
def other(context: BrowserContext) -> Iterator[Page]:
    """A tab of its own, which keeps the script or the clock that a test gives it."""
    opened = context.new_page()
    yield opened
    opened.close()


def test_nothing_is_written_into_fields_that_are_still_to_be_filled(other: Page, address: str) -> None:
    page = other
    page.add_init_script(f"({SLOW})()")
    page.goto(address + "?source=a+red+car&edit=a+blue+car&task=attribute")
    edit = page.get_by_label("What it should show")
    page.wait_for_function("document.querySelector('#columns')?.inert")
    edit.click()  # waits until it can be clicked
    expect(edit).to_have_value("a blue car")
    page.keyboard.press("End")
    page.keyboard.type(" now")
    expect(page.locator("#aligned .new").last).to_have_text("now")
    expect(edit).to_have_value("a blue car now")


def test_fields_that_cannot_be_filled_are_free_all_the_same(
    other: Page, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise OSError

    monkeypatch.setattr("freemask.page.desk.follow_link", fail)
    page = other
    page.clock.install()
    page.goto(address + "?source=a+red+car")
    page.wait_for_function("document.querySelector('#columns')?.inert")
    page.clock.fast_forward(10_000)
    page.get_by_label("What it should show").click()


def test_what_a_link_says_outlasts_the_upload(tab: Tab, address: str, clip: Path) -> None:
    page = tab(address + "?source=a+red+car&edit=a+blue+car&task=attribute&site=up+3.0&timestep=241&start=0.2")
    tag = page.locator("#own-mask")
    expect(tag).to_contain_text("up 3.0, timestep 241")
    page.set_input_files("#clip input[type=file]", clip)
    expect(page.locator("#trim .fm-note")).to_have_text("8 frames from 0.2 s to 1.2 s")
    expect(tag).to_contain_text("up 3.0, timestep 241")


def test_the_first_handle_moves_the_part_and_a_pace_sets_steps_and_solver_alone(page: Page, clip: Path) -> None:
    fill(page, clip)
    line = page.locator("#trim .fm-note")
    expect(line).to_have_text("8 frames from 0 s to 1 s")
    page.get_by_label("Start", exact=True).fill("0.3")
    expect(line).to_have_text("8 frames from 0.3 s to 1.3 s")
    page.get_by_label("End", exact=True).fill("0.5")  # no shorter than its frames: they would repeat
    expect(line).to_have_text("8 frames from 0 s to 1 s")
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label("α self")).to_have_value("")
    usual, fast = page.get_by_label("Usual: "), page.get_by_label("Fast: ")
    expect(page.get_by_label(first_pace())).to_be_checked()
    usual.click()
    expect(usual).to_be_checked()
    fast.click()
    steps = page.get_by_role("spinbutton", name="Steps")
    expect(steps).to_have_value("15")
    expect(page.get_by_label("DPM-Solver: exact in fewer steps", exact=True)).to_be_checked()
    steps.fill("7")
    steps.press("Enter")
    expect(fast).not_to_be_checked()
    expect(usual).not_to_be_checked()
    press_edit(page)
    state(page, "done")
    told = report(page)["settings"]
    assert (told["steps"], told["solver"], told["alpha_self"]) == (7, "dpm", None)  # who looks changes nothing
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#json")).to_contain_text(re.compile(r'"alpha_self":\s*null'))


def test_uploads_are_used_or_refused_and_nothing_is_lost(page: Page, clip: Path, tmp_path: Path) -> None:
    fill(page, clip)
    page.get_by_role("button", name="Advanced").click()
    few, right = tmp_path / "few.zip", tmp_path / "right.zip"
    save_mask_zip(few, np.ones((3, 64, 64), bool))
    save_mask_zip(right, np.ones((8, 64, 64), bool))
    page.set_input_files("#own-masks input[type=file]", few)
    expect(page.locator("#own-masks")).to_contain_text(re.compile(r"few\s*\.zip"))
    press_edit(page)
    state(page, "failed")
    expect(page.locator(".fm-status")).to_contain_text("holds 3 PNG masks, the edit has 8 frames")
    page.locator("#own-masks").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    page.set_input_files("#own-masks input[type=file]", right)
    expect(page.locator("#own-masks")).to_contain_text(re.compile(r"right\s*\.zip"))
    press_edit(page)
    state(page, "done")
    assert report(page)["mask"]["origin"] == "painted"
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video at all")
    page.locator("#clip").get_by_label("Clear").click()
    page.set_input_files("#clip input[type=file]", bad)
    expect(page.locator("#facts .bad")).to_contain_text("notes.mp4")
    press_edit(page)
    state(page, "failed")
    expect(page.locator(".fm-status")).to_contain_text("notes.mp4")
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
    expect(page.locator("#facts .bad")).to_contain_text("notes.mp4")


def test_an_example_fills_every_field_and_an_own_clip_takes_the_servers_pace(page: Page, clip: Path) -> None:
    page.get_by_role("button", name="Red car, blue car").click()
    expect(page.get_by_label("What the clip shows")).to_have_value(SOURCE)
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
    expect(page.get_by_label("Word that is edited")).to_have_attribute("placeholder", "car (inferred from the prompts)")
    expect(page.get_by_label("Attribute", exact=True)).to_be_checked()
    expect(page.locator("#facts")).to_contain_text("64×64")
    page.get_by_role("button", name="Advanced").click()
    steps = page.get_by_role("spinbutton", name="Steps")
    expect(steps).to_have_value("6")
    expect(page.get_by_label("τ", exact=True)).to_have_value("0.4")
    press_edit(page)
    state(page, "done")
    page.get_by_role("button", name="Clear").click()
    page.set_input_files("#clip input[type=file]", clip)
    expect(page.get_by_label(first_pace())).to_be_checked()
    steps.fill("7")
    steps.press("Enter")
    page.get_by_role("button", name="Clear").click()
    page.set_input_files("#clip input[type=file]", clip)
    expect(page.locator("#trim .fm-used img")).to_have_count(4)
    expect(steps).to_have_value("7")


@pytest.mark.parametrize("gpu", [True, False])
def test_real_clips_are_offered_where_they_can_be_edited(
    tab: Tab, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr("freemask.families.reach.has_gpu", lambda: gpu)
    monkeypatch.setattr("freemask.families.reach.downloaded", lambda name: tmp_path)
    with served(tap, tmp_path, [], judge=True) as address:
        page = tab(address)
        expect(page.locator("#toy")).to_contain_text("knows only its toy world")
        page.set_input_files("#clip input[type=file]", write_noise(tmp_path / "noise.mp4"))
        expect(page.locator("#outside")).to_contain_text("Not like the toy world")
        expect(page.locator("#caution")).to_contain_text("outside the toy world")
        page.get_by_role("button", name="Advanced").click()
        page.get_by_label("Backbone").click()
        zeroscope = page.get_by_role("option", name="zeroscope")
        guidance = page.get_by_role("spinbutton", name="Guidance")
        expect(guidance).to_have_value("3")
        if gpu:
            zeroscope.click()
            expect(guidance).to_have_value("7.5")
            expect(page.locator("#toy")).not_to_contain_text("toy world")
            expect(page.locator("#caution")).to_be_hidden()
            expect(page.locator("#outside")).to_be_hidden()
        else:
            expect(page.get_by_role("option")).to_contain_text(["mini", "mini-motion", "mini-sd", "mini-wan"])
            expect(page.locator("#toy")).to_contain_text("there is no GPU")
            expect(page.locator("#absent")).to_contain_text("zeroscope: not on this server, since there is no GPU")


def test_null_text_is_asked_of_the_method_that_optimises_it_and_its_curve_is_shown(page: Page, clip: Path) -> None:
    fill(page, clip)
    page.get_by_role("button", name="Advanced").click()
    iterations = page.get_by_label("Null-text iterations")
    expect(iterations).to_be_hidden()
    for method, placeholder in (("VideoDirector", "5"), ("FateZero", ""), ("VideoDirector", "5")):
        page.get_by_label("Method", exact=True).click()
        page.get_by_role("option", name=re.compile(f"^{method}")).click()
        if placeholder:
            expect(iterations).to_have_attribute("placeholder", placeholder)
            expect(iterations).to_have_value("")  # what was typed went with the field
            iterations.fill("3")
        else:
            expect(iterations).to_be_hidden()
    stage = page.get_by_role("listitem").filter(has_text="Null text")
    expect(stage).to_be_hidden()
    press_edit(page)
    expect(stage).to_be_visible()
    state(page, "done")
    assert report(page)["settings"]["null_text_steps"] == 3
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#null-text img")).to_be_visible()
