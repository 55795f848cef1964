"""Clips and pictures that a browser does not play, or that Gradio's field does not take."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from visitor import EDIT, SOURCE, press_edit, report, state

from freemask.clips.video import read_clip


@pytest.fixture(scope="module")
def uploads(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the clip in other formats."""
    folder = tmp_path_factory.mktemp("uploads")
    made = {"a.avi": ("-c:v", "mpeg4"), "a.mov": ("-c:v", "prores_ks"), "a.gif": (), "a.mp4": ("-c:v", "libx265")}
    for name, codec in made.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", clip, *codec, folder / name]
        subprocess.run(command, check=True, capture_output=True)
    frames = [Image.fromarray(frame) for frame in read_clip(clip, frames=8).frames]
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:], duration=125)
    frames[0].save(folder / "still.png")
    return folder


def plays(page: Page) -> None:
    page.wait_for_function("document.querySelector('#clip video[data-preview]')?.videoWidth === 64")
    assert page.locator(".toast-body").count() == 0


def test_what_the_browser_cannot_play_has_a_preview_and_pictures_are_taken(page: Page, uploads: Path) -> None:
    page.get_by_role("button", name="Red car, blue car").click()
    expect(page.locator("#clip video")).to_be_visible()
    expect(page.locator("#clip").get_by_label("Trim video")).to_be_hidden()  # the page has a trimmer of its own
    page.locator("#clip").get_by_label("Clear").click()
    for name in ("a.avi", "a.mov", "a.mp4"):
        page.set_input_files("#clip input[type=file]", uploads / name)
        plays(page)
        expect(page.locator("#preview")).to_contain_text("This browser shows a preview")
        expect(page.locator("#trim .fm-used img")).to_have_count(4)
        page.locator("#clip").get_by_label("Clear").click()
        expect(page.locator("#preview .fm-note")).to_be_hidden()
    page.set_input_files("#clip input[type=file]", uploads / "a.webp")
    plays(page)
    expect(page.locator("#facts")).to_contain_text(" fps")
    for name, kind, frames in (("a.gif", " fps", 4), ("still.png", "a still", 1)):
        page.locator("#clip").get_by_label("Clear").click()
        expect(page.locator("#preview .fm-note")).to_be_hidden()
        with page.expect_file_chooser() as choosing:
            page.locator("#clip button.upload-container").click()
        assert "image/gif" in str(choosing.value.element.get_attribute("accept"))
        choosing.value.set_files(uploads / name)
        plays(page)
        expect(page.locator("#facts")).to_contain_text(kind)
        press_edit(page)
        state(page, "running")
        state(page, "done")
        assert report(page)["clip"]["frames"] == frames


DROP = """async ([kind, name, type, base64]) => {
    const bytes = await (await fetch(`data:${type};base64,${base64}`)).arrayBuffer();
    const files = new DataTransfer(), there = { bubbles: true, cancelable: true };
    files.items.add(new File([bytes], name, { type }));
    const place = document.querySelector("#clip .upload-container button, #clip button.upload-container");
    if (kind === "drop") place.dispatchEvent(new DragEvent("drop", { dataTransfer: files, ...there }));
    else document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, ...there }));
}"""


def test_a_picture_can_be_dropped_and_pasted(page: Page, uploads: Path) -> None:
    page.locator("#clip").get_by_role("button", name="Upload").first.wait_for()
    for kind, name, size in (("drop", "a.gif", " fps"), ("paste", "still.png", "a still")):
        data = base64.b64encode((uploads / name).read_bytes()).decode()
        page.evaluate(DROP, [kind, name, f"image/{name[-3:]}", data])
        expect(page.locator("#facts")).to_contain_text(size)
        plays(page)


def test_text_in_the_field_is_refused_without_an_alert(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video at all")
    page.set_input_files("#clip input[type=file]", tmp_path / "notes.txt")
    expect(page.locator("#facts .bad")).to_contain_text("notes.txt")
    page.get_by_label("What the clip shows").fill(SOURCE)
    page.get_by_label("What it should show").fill(EDIT)
    expect(page.locator("#preview .fm-note")).to_be_hidden()
    assert page.locator(".toast-body").count() == 0
