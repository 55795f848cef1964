"""The page in a real browser, over a worker that paints circles: what a visitor does, from upload to a painted mask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from tiny import write_noise
from visitor import EDIT, PATIENCE, SOURCE, Tap, explorer, fill, press_edit, report, served, state, visit

from freemask.families.sites import short_site
from freemask.page import bodies
from freemask.page.advanced import first_pace
from freemask.pictures.mask_zip import save_mask_zip


def test_upload_and_edit(page: Page, clip: Path) -> None:
    fill(page, clip)
    expect(page.locator("#trim")).to_contain_text("8 frames from 0 s")
    press_edit(page)
    state(page, "done")
    videos = page.locator("#studio video")
    expect(videos).to_have_count(3)
    for index in range(3):
        page.wait_for_function("i => document.querySelectorAll('#studio video')[i].videoWidth > 0", arg=index)
    explorer(page, words="car")
    chips = page.get_by_role("group", name="Source prompt")
    chips.get_by_role("button", name="grass").click()
    explorer(page, words="grass")
    several = page.get_by_label("several words")  # a touch screen has no Ctrl key
    several.check()
    chips.get_by_role("button", name="car").click()
    explorer(page, words="car,grass")
    chips.get_by_role("button", name="grass").click()
    explorer(page, words="car")
    chips.get_by_role("button", name="grass").click()
    explorer(page, words="car,grass")
    several.uncheck()  # one is left
    explorer(page, words="car")
    page.get_by_role("tab", name="Contact sheet").click()
    expect(page.locator("#sheet img")).to_be_visible()
    assert report(page)["words"]["word"] == "car"


def test_a_phone_has_edit_in_reach_and_is_shown_what_comes(
    browser: Browser, address: str, clip: Path, tap: Tap
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    visit(page, address)
    fill(page, clip)
    button = page.get_by_role("button", name="Edit", exact=True)
    for place in ("#clip", "#task"):
        page.locator(place).scroll_into_view_if_needed()
        expect(button).to_be_in_viewport(ratio=1)
    button.click()
    state(page, "done")
    expect(page.locator(".fm-status")).to_be_in_viewport()
    explorer(page)
    tap.flowing.clear()
    page.locator("#clip").scroll_into_view_if_needed()
    button.click()
    expect(page.locator("#progress")).to_contain_text("so far")
    state(page, "running")
    named = "getComputedStyle(document.querySelector('#studio'), '::before').content"
    assert "The edit before" in page.evaluate(named)
    tap.flowing.set()
    state(page, "done")
    assert page.evaluate(named) == "none"
    page.close()


def test_a_word_is_chosen_where_it_stands(page: Page) -> None:
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


def test_the_frame_slider_moves_players_and_explorer(page: Page, clip: Path) -> None:
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
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


def test_a_cell_is_picked_with_the_keyboard_and_used(page: Page, clip: Path) -> None:
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    before = explorer(page).get_attribute("data-cell")
    cell = page.locator("#studio [role=gridcell][tabindex='0']")
    expect(cell).to_have_attribute(
        "aria-label", re.compile(r"timestep \d+: area \d+ %, IoU with the mask in use 0\.\d\d")
    )
    cell.press("ArrowDown")
    page.wait_for_function("b => document.querySelector('#studio [data-ready]').dataset.cell !== b", arg=before)
    site, timestep = str(explorer(page).get_attribute("data-cell")).split("@")
    page.locator("#studio [role=gridcell][tabindex='0']").press("Enter")
    expect(page.locator(".fm-history")).to_be_visible(timeout=1000 * PATIENCE)
    told = report(page)
    assert told["mask"]["origin"] == "picked"
    assert told["settings"]["timestep"] == int(timestep) and short_site(site) == told["settings"]["site"]
    expect(page.locator(".fm-history")).to_contain_text("timestep")
    page.get_by_label("1: a blue car driving on the grass").check()
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#json")).to_contain_text(re.compile(r'"origin":\s*"adaptive"'))


def test_a_second_edit_begins_at_denoising(browser: Browser, real: str) -> None:
    page = browser.new_page()
    visit(page, real)
    page.get_by_role("button", name="Red car, blue car").click()
    expect(page.locator("#facts")).to_contain_text("64×64")
    press_edit(page)
    state(page, "done")
    explorer(page, words="car")
    assert report(page)["unet"]["invert"]["forwards"] == 2
    expect(page.locator("#estimate")).to_contain_text("as measured on this server")
    page.get_by_role("button", name="Edit with this row").click()
    expect(page.locator(".fm-history")).to_be_visible(timeout=1000 * PATIENCE)
    expect(page.locator(".fm-status")).to_contain_text("begun at denoising")
    told = report(page)
    assert told["unet"]["invert"]["forwards"] == 0
    assert (told["mask"]["origin"], told["mask"]["timestep"]) == ("picked", "every")
    page.close()


def test_a_painted_mask_is_used(page: Page, clip: Path) -> None:
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
    page.get_by_role("button", name="Paint", exact=True).click()
    box = page.locator("#studio canvas.fm-brush").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Edit with the painting").click()
    expect(page.locator(".fm-history")).to_be_visible(timeout=1000 * PATIENCE)
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


def test_painting_holds_for_all_frames_unless_for_one_only(page: Page, clip: Path) -> None:
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
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
    use.click()
    expect(page.locator("#own-mask")).to_contain_text(f"none on {none}.")
    expect(page.locator(".fm-history")).to_be_visible(timeout=1000 * PATIENCE)


def test_a_cell_without_a_usable_mask_offers_no_edit(page: Page, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the layer up 1.1 every second map lies above any threshold, the others are flat."""
    made = bodies._maps

    def useless(path: Path, *given: Any) -> dict[str, np.ndarray]:
        maps = made(path, *given)
        layer = maps["maps_8x8"][:, 2]
        layer[:] = 255
        layer[::2, ..., 0, 0] = 254
        np.savez_compressed(path, **maps)
        return maps

    monkeypatch.setattr(bodies, "_maps", useless)
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
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


def test_the_edited_word_can_be_typed(page: Page, clip: Path) -> None:
    fill(page, clip)
    word = page.get_by_label("Word that is edited")
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


SLOW = """() => {
    const now = window.fetch, late = new Promise((done) => setTimeout(done, 2500));
    window.fetch = async (...told) => (String(told[0]).includes("queue/join") && (await late), now(...told));
}"""


def test_nothing_is_written_into_fields_that_are_still_to_be_filled(page: Page) -> None:
    page.add_init_script(f"({SLOW})()")
    page.goto(page.url + "?source=a+red+car&edit=a+blue+car&task=attribute")
    edit = page.get_by_label("What it should show")
    page.wait_for_function("document.querySelector('#columns')?.inert")
    edit.click()  # waits until it can be clicked
    expect(edit).to_have_value("a blue car")
    page.keyboard.press("End")
    page.keyboard.type(" now")
    expect(page.locator("#aligned .new").last).to_have_text("now")
    expect(edit).to_have_value("a blue car now")


def test_what_a_link_says_outlasts_the_upload(page: Page, clip: Path) -> None:
    visit(page, page.url + "?source=a+red+car&edit=a+blue+car&task=attribute&site=up+3.0&timestep=241&start=0.2")
    tag = page.locator("#own-mask")
    expect(tag).to_contain_text("up 3.0, timestep 241")
    page.set_input_files("#clip input[type=file]", clip)
    expect(page.locator("#trim .fm-note")).to_have_text("8 frames from 0.2 s to 1.2 s")
    expect(tag).to_contain_text("up 3.0, timestep 241")


def test_the_first_handle_moves_the_part(page: Page, clip: Path) -> None:
    fill(page, clip)
    line = page.locator("#trim .fm-note")
    expect(line).to_have_text("8 frames from 0 s to 1 s")
    page.get_by_label("Start", exact=True).fill("0.3")
    expect(line).to_have_text("8 frames from 0.3 s to 1.3 s")
    page.get_by_label("End", exact=True).fill("0.5")  # no shorter than its frames: they would repeat
    expect(line).to_have_text("8 frames from 0 s to 1 s")


def test_uploaded_masks_are_used_or_refused(page: Page, clip: Path, tmp_path: Path) -> None:
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


def test_a_reloaded_tab_finds_its_job(page: Page, clip: Path, tap: Tap) -> None:
    fill(page, clip)
    tap.flowing.clear()
    press_edit(page)
    state(page, "running")
    page.reload()
    state(page, "running")
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
    tap.flowing.set()
    state(page, "done")
    explorer(page, words="car")
    page.reload()
    state(page, "done")
    explorer(page, words="car")


def test_visitors_see_their_own_files_only(page: Page, browser: Browser, address: str, clip: Path) -> None:
    other = browser.new_context().new_page()
    visit(other, address)
    for one in (page, other):
        fill(one, clip)
        press_edit(one)
    files = []
    for one in (page, other):
        state(one, "done")
        explorer(one)
        files.append(set(one.evaluate("Array.from(document.querySelectorAll('#studio video'), (v) => v.src)")))
    assert len(files[0]) == len(files[1]) == 3 and not files[0] & files[1]
    other.reload()
    state(other, "done")
    explorer(other)
    assert set(other.evaluate("Array.from(document.querySelectorAll('#studio video'), (v) => v.src)")) == files[1]
    other.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser: Browser, address: str, clip: Path, theme: str) -> None:
    page = browser.new_page()
    visit(page, f"{address}?__theme={theme}")
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
    found = Axe().run(page).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in ("serious", "critical")}
    assert not serious
    page.close()


def test_cancel_stops_the_run_and_keeps_the_fields(page: Page, clip: Path, tap: Tap) -> None:
    fill(page, clip)
    tap.flowing.clear()
    press_edit(page)
    state(page, "running")
    where = "(s) => [s.offsetTop, s.offsetHeight]"
    before = page.locator(".fm-status").evaluate(where)
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    tap.flowing.set()
    assert tap.ended.wait(PATIENCE)
    assert page.locator(".fm-status").evaluate(where) == before
    expect(page.get_by_label("What the clip shows")).to_have_value(SOURCE)
    expect(page.locator("#studio video")).to_have_count(0)
    press_edit(page)
    state(page, "done")


def test_the_queue_tells_a_visitors_place(page: Page, browser: Browser, address: str, clip: Path, tap: Tap) -> None:
    fill(page, clip)
    tap.flowing.clear()
    press_edit(page)
    state(page, "running")
    other = browser.new_page()
    visit(other, address)
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
    expect(page.get_by_label("Word that is edited")).to_have_attribute("placeholder", "car (inferred from the prompts)")
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


def test_a_pace_sets_steps_and_solver(page: Page, clip: Path) -> None:
    fill(page, clip)
    page.get_by_role("button", name="Advanced").click()
    usual, fast = page.get_by_label("Usual: "), page.get_by_label("Fast: ")
    expect(page.get_by_label(first_pace())).to_be_checked()
    usual.check()
    fast.check()
    steps = page.get_by_role("spinbutton", name="Steps")
    expect(steps).to_have_value("15")
    expect(page.get_by_label("DPM-Solver: exact in fewer steps", exact=True)).to_be_checked()
    steps.fill("7")
    steps.press("Enter")
    expect(fast).not_to_be_checked()
    expect(usual).not_to_be_checked()
    press_edit(page)
    state(page, "done")
    assert {name: report(page)["settings"][name] for name in ("steps", "solver")} == {"steps": 7, "solver": "dpm"}


def test_an_own_clip_takes_the_servers_pace_not_the_examples(page: Page, clip: Path) -> None:
    page.get_by_role("button", name="Red car, blue car").click()
    page.get_by_role("button", name="Advanced").click()
    steps = page.get_by_role("spinbutton", name="Steps")
    expect(steps).to_have_value("6")
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
    browser: Browser, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr("freemask.families.reach.has_gpu", lambda: gpu)
    monkeypatch.setattr("freemask.families.reach.downloaded", lambda name: tmp_path)
    with served(tap, tmp_path, [], judge=True) as address:
        page = browser.new_page()
        visit(page, address)
        expect(page.locator("#toy")).to_contain_text("knows only its toy world")
        page.set_input_files("#clip input[type=file]", write_noise(tmp_path / "noise.mp4"))
        expect(page.locator("#outside")).to_contain_text("not like the toy world")
        expect(page.locator("#caution")).to_contain_text("outside the toy world")
        page.get_by_role("button", name="Advanced").click()
        page.get_by_label("Backbone").click()
        zeroscope = page.get_by_role("option", name="zeroscope")
        if gpu:
            zeroscope.click()
            expect(page.locator("#toy")).not_to_contain_text("toy world")
            expect(page.locator("#caution")).to_be_hidden()
            expect(page.locator("#outside")).to_be_hidden()
        else:
            expect(page.get_by_role("option")).to_contain_text(["mini", "mini-sd"])
            expect(page.locator("#toy")).to_contain_text("there is no GPU")
            expect(page.locator("#absent")).to_contain_text("zeroscope: not on this server, since there is no GPU")
        page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_scrolls_one_way_only(browser: Browser, address: str, clip: Path, theme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    visit(page, f"{address}?__theme={theme}")
    fill(page, clip)
    press_edit(page)
    state(page, "done")
    explorer(page)
    for tab in ("Downloads", "Contact sheet", "Report"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
