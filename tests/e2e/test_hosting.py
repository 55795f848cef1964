"""The page as it is hosted: behind a proxy's path, without a network; and the other ways that a clip comes in."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from visitor import PATIENCE, Tap, explorer, press_edit, served, state

PREFIX = "/demo/freemask"
EXAMPLE = "Red car to blue car"
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
    """A page, and the requests that were answered badly or that left the address: none may leave for real."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    strays: list[str] = []
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
    context.on(
        "request", lambda one: None if one.url.startswith((address, "data:", "blob:")) else strays.append(one.url)
    )
    context.on("response", lambda one: strays.append(f"{one.status} {one.url}") if one.status >= 400 else None)
    page = context.new_page()
    page.on("pageerror", lambda error: strays.append(str(error)))
    page.goto(address)
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_visible()
    yield page, strays
    context.close()


def try_all(page: Page) -> None:
    """An example with its result, then an edit of it: players, maps, posters and downloads load."""
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


def shown(page: Page) -> None:
    explorer(page, words="car")
    page.wait_for_function(
        "Array.from(document.querySelectorAll('#studio video')).filter((v) => v.videoWidth).length === 3"
    )
    page.get_by_role("group", name="Source prompt").get_by_role("button", name="grass").click()
    explorer(page, words="grass")
    page.wait_for_function("document.querySelector('#clip video')?.videoWidth > 0")


def test_behind_a_proxys_path(browser: Browser, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ROOT_PATH", PREFIX)
    with served(tap, tmp_path) as upstream, proxied(upstream) as address, visiting(browser, address) as (page, strays):
        expect(page.locator("#run")).to_have_css("background-color", "rgb(76, 58, 158)")
        card = "getComputedStyle(document.querySelector('#task label'), '::before').backgroundImage"
        assert page.evaluate(card).startswith('url("data:image/jpeg')
        try_all(page)
        assert not strays


def test_nothing_is_fetched_from_elsewhere(browser: Browser, tap: Tap, tmp_path: Path) -> None:
    with served(tap, tmp_path) as address, visiting(browser, address) as (page, strays):
        try_all(page)
        assert not strays
