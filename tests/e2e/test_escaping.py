"""What visitors write and what their files are called is shown as text: nothing of it runs."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tiny import write_disc
from visitor import press_edit, state

EVIL = "<img src=x onerror=\"window.ran='{0}'\"><script>window.ran='{0}'</script>"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    name = "<img src=x onerror=window.ran=1>.mp4"
    return write_disc(tmp_path / name)


def nothing_ran(page: Page) -> None:
    assert page.evaluate("window.ran") is None
    assert page.locator("img[src=x]").count() == 0


def test_prompts_words_and_file_names_are_text(page: Page, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the status, beside the clip, in the words, the explorer, the report, the runs and their table, twice."""
    monkeypatch.setattr("freemask.jobs.check.known_words", lambda backbone: None)  # one that knows every word
    page.set_input_files("#clip input[type=file]", evil)
    expect(page.locator("#facts")).to_contain_text("64×64")
    for turn in ("one", "two"):
        page.get_by_label("What the clip shows").fill(f"a red car {EVIL.format('source')} on the grass")
        page.get_by_label("What it should show").fill(f"a {turn} car {EVIL.format('edit')} on the grass")
        page.get_by_label("Attribute", exact=True).check()
        page.get_by_label("Word that is edited").fill("car")
        press_edit(page)
        state(page, "done")
        nothing_ran(page)
    expect(page.locator(".fm-history")).to_contain_text("onerror")
    for tab in page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
    nothing_ran(page)
    page.reload()
    state(page, "done")
    nothing_ran(page)


def test_refusals_quote_as_text(page: Page, clip: Path, evil: Path, tmp_path: Path) -> None:
    """A word that is not there, a clip that is none, settings and a link with markup in them."""
    page.set_input_files("#clip input[type=file]", clip)
    page.get_by_label("Word that is edited").fill(EVIL.format("word"))
    press_edit(page)
    state(page, "failed")
    nothing_ran(page)
    evil.write_text("no video")
    page.reload()
    page.locator("#columns[data-ready]").wait_for(state="attached")
    page.set_input_files("#clip input[type=file]", evil)
    expect(page.locator("#facts")).to_contain_text("onerror")
    nothing_ran(page)
    page.goto(f"{page.url.split('?')[0]}?source={EVIL.format('a')}&edit={EVIL.format('b')}&task={EVIL.format('c')}")
    page.locator("#columns[data-ready]").wait_for(state="attached")
    nothing_ran(page)
