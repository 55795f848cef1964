"""The page as it is hosted: behind a proxy's path, without a network; and the other ways that a clip comes in."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from visitor import EDIT, PATIENCE, SOURCE, Tap, example, explorer, press_edit, served, state, visit

from freemask import page as parts
from freemask.clips.video import Clip, write_clip
from freemask.settings import Settings
from freemask.steps import Step, mapped

PREFIX = "/demo/freemask"
EXAMPLE = "Red car to blue car"
# A network as it may be at the worst moment: the word that the stream of answers ends comes after what the next event's
# sending was answered, or after five seconds.
LATE = """{
    const real = window.fetch;
    let sent = () => {};
    window.fetch = async (...told) => {
        const address = told[0].url ?? String(told[0]), answer = await real(...told);
        if (address.includes("/queue/join")) setTimeout(sent, 50);
        if (!address.includes("/queue/data?")) return answer;
        const decoder = new TextDecoder();
        const late = async (part, stream) => {
            const text = decoder.decode(part, { stream: true }), end = text.search(/data: [^\\n]*"close_stream"/);
            const send = (some) => stream.enqueue(new TextEncoder().encode(some));
            if (end < 0) return send(text);
            send(text.slice(0, end));
            window.ending = true;
            await new Promise((done) => { sent = done; setTimeout(done, 5000); });
            window.ending = false;
            send(text.slice(end));
        };
        return new Response(answer.body.pipeThrough(new TransformStream({ transform: late })), answer);
    };
}"""
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@contextmanager
def proxied(upstream: str) -> Iterator[str]:
    """The address of a reverse proxy that strips `PREFIX`, streams, and tells its own host as Gradio asks it to."""

    @asynccontextmanager
    async def client(app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
        async with httpx.AsyncClient(base_url=upstream, timeout=None) as opened:
            yield {"client": opened}

    async def forward(request: Request) -> StreamingResponse:
        headers = request.headers.mutablecopy()
        headers["x-forwarded-host"] = request.headers["host"]
        url = httpx.URL(path="/" + request.path_params["path"], query=request.url.query.encode())
        asked = request.state.client.build_request(
            request.method, url, headers=headers.raw, content=request.stream() if request.method == "POST" else None
        )
        answer = await request.state.client.send(asked, stream=True)
        told = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        told.raw_headers = [(name, value) for name, value in answer.headers.raw if name.decode() not in HOP_BY_HOP]
        return told

    routes = [Route(PREFIX + "/{path:path}", forward, methods=["GET", "HEAD", "POST"])]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes, lifespan=client), port=0, log_level="critical"))
    server.config.load()
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, args=[[socket]])
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}{PREFIX}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(PATIENCE)


@contextmanager
def visiting(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:
    """A page, and the requests that were answered badly, that left the address, where none may leave for real, or
    that fetch what the page does without."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    strays: list[str] = []
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
    context.on(
        "request", lambda one: None if one.url.startswith((address, "data:", "blob:")) else strays.append(one.url)
    )
    context.on("request", lambda one: strays.append(one.url) if "ffmpeg" in one.url else None)
    context.on("response", lambda one: strays.append(f"{one.status} {one.url}") if one.status >= 400 else None)
    page = context.new_page()
    page.add_init_script(LATE)
    page.on("pageerror", lambda error: strays.append(str(error)))
    visit(page, address)
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_visible()
    yield page, strays
    context.close()


def try_all(page: Page) -> None:
    """An example with its result, then an edit of it: players, maps, posters and downloads load, and a tab that is
    opened while the stream of answers ends."""
    page.get_by_role("button", name=EXAMPLE).click()
    shown(page)
    expect(page.locator("#trim .fm-used img")).to_have_count(8)
    press_edit(page)
    state(page, "running")
    state(page, "done")
    shown(page)
    with page.expect_download() as download:
        page.locator("#files a[download='report.json']").click()
    assert Path(download.value.path()).stat().st_size > 100
    page.get_by_role("tab", name="Sheet").click()
    page.wait_for_function("window.ending")
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator("#timeline img")).to_be_visible()


def shown(page: Page) -> None:
    explorer(page, words="car")
    page.wait_for_function(
        "Array.from(document.querySelectorAll('#studio video')).filter((v) => v.videoWidth).length === 3"
    )
    page.get_by_role("group", name="Source prompt").get_by_role("button", name="grass").click()
    explorer(page, words="grass")
    page.wait_for_function("document.querySelector('#clip video')?.videoWidth > 0")


def test_behind_a_proxys_path_nothing_is_fetched_from_elsewhere(
    browser: Browser, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_ROOT_PATH", PREFIX)
    with served(tap, tmp_path) as upstream, proxied(upstream) as address, visiting(browser, address) as (page, strays):
        expect(page.locator("#run")).to_have_css("background-color", "rgb(76, 58, 158)")
        card = "getComputedStyle(document.querySelector('#task label'), '::before').backgroundImage"
        assert page.evaluate(card).startswith('url("data:image/jpeg')
        try_all(page)
        assert not strays


HEAR = """() => {
    const region = document.querySelector("#status [role=status]"), heard = [];
    const hear = () => heard.push(region.textContent);
    new MutationObserver(hear).observe(region, { subtree: true, childList: true, characterData: true });
    window.heard = () => (region.isConnected ? heard : "another region");
}"""


def test_a_screen_reader_hears_of_each_stage_once(browser: Browser, clip: Path, tmp_path: Path) -> None:
    turn = threading.Semaphore(0)

    def in_turns(clip: Path, settings: Settings, out: Path, kept: Path) -> Generator[Step, None, dict[str, Any]]:
        """Painted circles, a step a turn; while it edits, each step has a glance at the edit."""
        steps = parts.painted_circles(clip, settings, out, kept, pause=lambda: turn.acquire(timeout=PATIENCE))
        seen = np.zeros((64, 64, 3), np.uint8)
        return (yield from mapped(steps, lambda step: replace(step, picture=seen) if step.stage == "edit" else step))

    with served(in_turns, tmp_path, [example(clip, steps=3)]) as address, visiting(browser, address) as (page, strays):
        page.get_by_role("button", name="Red car, blue car").click()
        expect(page.locator("#facts")).to_contain_text("64×64")
        press_edit(page)
        line, where = page.locator("#status"), "(s) => [s.offsetTop, s.offsetHeight]"
        expect(line).to_contain_text("Loading the model")
        page.evaluate(HEAR)
        before = line.evaluate(where)
        turn.release()
        for title in ("Inverting", "Editing"):
            expect(line).to_contain_text(title)
            for index in (1, 2):
                turn.release()
                expect(line).to_contain_text(f"step {index} of 3")
            expect(line.locator("img")).to_have_count(int(title == "Editing"))
            assert line.evaluate(where) == before
            turn.release()
        expect(line).to_contain_text("Writing the videos")
        for _ in range(4):
            turn.release()
        state(page, "done")
        *stages, done = page.evaluate("window.heard()")
        assert stages == ["Inverting", "Editing", "Writing the videos", "Edited. Checking what the inversion lost"]
        assert done.startswith("Done in") and not strays


PASTE = """async ([name, type, base64]) => {
    const bytes = await (await fetch(`data:${type};base64,${base64}`)).arrayBuffer();
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], name, { type }));
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
}"""


def test_a_pasted_video_is_taken(page: Page, clip: Path, tmp_path: Path) -> None:
    def paste(path: Path, kind: str) -> None:
        page.evaluate(PASTE, [path.name, kind, base64.b64encode(path.read_bytes()).decode()])

    (tmp_path / "note.txt").write_text("no video")
    paste(tmp_path / "note.txt", "text/plain")
    paste(clip, "video/mp4")
    expect(page.locator("#facts")).to_contain_text("64×64")
    expect(page.locator("#trim .fm-used img")).to_have_count(8)
    longer = tmp_path / "longer.mp4"
    write_clip(longer, Clip(np.zeros((16, 96, 96, 3), np.uint8), 8.0))
    paste(longer, "video/mp4")
    expect(page.locator("#facts")).to_contain_text("96×96")


def test_a_webcams_clip_is_described_trimmed_and_edited(page: Page) -> None:
    """What a browser records tells no duration in its header."""
    clip = page.locator("#clip")
    clip.get_by_role("button", name="Capture from camera").click()
    clip.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#clip video').currentTime > 0")
    record = clip.get_by_role("button", name="start recording")  # the same button stops it
    record.click()
    began = page.evaluate("document.querySelector('#clip video').currentTime")
    page.wait_for_function("began => document.querySelector('#clip video').currentTime > began + 3", arg=began)
    record.click()
    expect(page.locator("#facts")).to_contain_text("640×480")
    expect(page.locator("#trim .fm-used img")).to_have_count(8)
    page.get_by_label("What the clip shows").fill(SOURCE)
    page.get_by_label("What it should show").fill(EDIT)
    press_edit(page)
    state(page, "done")
    shown(page)
