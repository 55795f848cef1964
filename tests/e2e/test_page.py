"""The page in a real browser, over a worker that paints circles: from upload to result, queue, reload, phone."""

from __future__ import annotations

from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from visitor import EDIT, PATIENCE, SOURCE, Tab, Tap, explorer, fill, press_edit, report, state, visit


def test_upload_and_edit(seen: Page) -> None:
    page = seen
    expect(page.locator("#trim")).to_contain_text("8 frames from 0 s")
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
    expect(page.locator("#sheet img")).to_have_count(0)  # it is drawn when it is seen
    page.get_by_role("tab", name="Sheet").click()
    expect(page.locator("#sheet img")).to_be_visible()
    assert report(page)["words"]["word"] == "car"


CORNER = """(at) => {
    const pen = document.createElement("canvas").getContext("2d");
    const picture = document.querySelector(`${at} img`);
    if (picture) pen.drawImage(picture, 0, 0);
    const [r, g, b, drawn] = pen.getImageData(2, 2, 1, 1).data;
    return drawn && [r, g, b];
}"""  # of a picture that is loaded


def serious(page: Page, within: str = "body") -> dict[str, str]:
    """What axe finds, and where first."""
    found = Axe().run(page, context=within).response["violations"]
    return {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in ("serious", "critical")}


def test_no_serious_violation_of_accessibility(seen: Page, address: str) -> None:
    page = seen
    for theme in ("light", "dark"):
        visit(page, f"{address}?__theme={theme}")
        explorer(page)  # of the edit that was made
        assert page.locator("body.dark").count() == (theme == "dark")
        assert serious(page) == {}
        page.get_by_role("tab", name="Compare").click()
        expect(page.locator("#differ")).to_contain_text("Edit once more")  # of one edit alone
        assert serious(page, "[role=tabpanel]") == {}
        for tab, picture in (("Sheet", "#sheet"), ("Curves", "#timeline")):  # which are drawn for it
            page.get_by_role("tab", name=tab).click()
            ground = page.wait_for_function(CORNER, arg=picture).json_value()
            assert (min(ground) > 200) == (theme == "light")


# What is too small for a finger, words within a sentence and what only a screen reader finds aside.
SMALL = """() => Array.from(document.querySelectorAll("button, a[href], input, select, textarea, [role=button]"))
    .filter((one) => one.checkVisibility() && !one.matches("#aligned button"))
    .map((one) => [one, (/radio|checkbox/.test(one.type) ? one.closest("label") : one).getBoundingClientRect()])
    .filter(([, { width, height }]) => width > 1 && height > 1 && (width < 24 || height < 24))
    .map(([one, { width, height }]) => `${width} × ${height}: ${one.outerHTML.slice(0, 120)}`)"""


def test_a_phone_has_edit_in_reach_is_shown_what_comes_and_scrolls_one_way(
    tab: Tab, address: str, clip: Path, tap: Tap
) -> None:
    page = tab(address, 390, 844)
    fill(page, clip)
    button = page.get_by_role("button", name="Edit", exact=True)
    for place in ("#clip", "#task"):
        page.locator(place).scroll_into_view_if_needed()
        expect(button).to_be_in_viewport(ratio=1)
    tap.halting = True  # as soon as the edit can be seen it is
    button.click()
    page.locator(".fm-status[data-shown]").wait_for()
    expect(page.locator(".fm-status")).to_be_in_viewport()
    tap.halting = False
    tap.flowing.set()
    state(page, "done")
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
    for dark in (False, True):  # it scrolls one way only
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        for shown in ("Downloads", "Sheet", "Curves", "Compare", "Report"):
            page.get_by_role("tab", name=shown).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.evaluate(SMALL) == []


def test_cancel_stops_the_run_and_a_reloaded_tab_finds_its_job(page: Page, clip: Path, tap: Tap) -> None:
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


def players(page: Page) -> set[str]:
    """The files of the players, once each has its own."""
    expect(page.locator("#studio video[src]:not([src=''])")).to_have_count(3)
    return set(page.locator("#studio video").evaluate_all("(players) => players.map((player) => player.src)"))


def test_visitors_are_told_their_place_and_see_their_own_files_only(
    page: Page, browser: Browser, address: str, clip: Path, tap: Tap
) -> None:
    other = browser.new_context(reduced_motion="reduce").new_page()
    visit(other, address)
    tap.flowing.clear()
    for one, told in ((page, "running"), (other, "waiting")):
        fill(one, clip)
        press_edit(one)
        state(one, told)
    expect(other.locator(".fm-status")).to_contain_text("1 job is ahead of yours")
    tap.flowing.set()
    files = []
    for one in (page, other):
        state(one, "done")
        explorer(one)
        files.append(players(one))
    assert len(files[0]) == len(files[1]) == 3 and not files[0] & files[1]
    other.reload()
    state(other, "done")
    explorer(other)
    assert players(other) == files[1]
    other.context.close()


def test_an_edit_is_shown_before_it_is_checked(page: Page, clip: Path, tap: Tap) -> None:
    """Its reconstruction then comes into the same players; and who cancels meanwhile keeps the edit."""
    fill(page, clip)
    tap.halting = True
    press_edit(page)
    explorer(page)
    reconstruction = page.locator("#studio .fm-reconstruction")
    expect(reconstruction).to_contain_text("on its way")
    expect(page.locator(".fm-status[data-state=running][data-shown]")).to_contain_text("Edited")
    page.locator("#studio .fm-chip", has_text="grass").first.click()
    explorer(page, words="grass")
    tap.flowing.set()
    state(page, "done")
    expect(reconstruction).to_have_text("Reconstruction")
    expect(reconstruction.locator("video")).to_have_js_property("readyState", 4)
    explorer(page, words="grass")  # what was chosen meanwhile stays
    with page.expect_download() as download:
        page.get_by_role("button", name="GIF").click()
    assert download.value.suggested_filename == "edited.gif"
    press_edit(page)
    page.locator(".fm-status[data-shown]").wait_for(timeout=1000 * PATIENCE)
    expect(reconstruction).to_contain_text("on its way")
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    tap.flowing.set()
    assert tap.ended.wait(PATIENCE)
    expect(page.locator(".fm-status")).to_contain_text("The edit stays")
    page.reload()
    explorer(page)
    expect(page.locator(".fm-status")).to_contain_text("nothing was measured")
    expect(page.get_by_label("What it should show")).to_have_value(EDIT)
