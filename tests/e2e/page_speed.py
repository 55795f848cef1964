"""How fast the page answers while an edit computes: `python tests/e2e/page_speed.py` prints milliseconds, median and
maximum, first while nothing runs, then while mini edits on all cores: what the server takes to serve the page and to
answer a prompt that was typed, and what a visitor sees, of typing and of an example until its fields and until its
studio are there. The visitor's browser computes on the same cores, so only the server's figures tell of the server."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from gradio_client import Client, handle_file
from playwright.sync_api import Page, Request, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from visitor import CHROMIUM, FLAGS, SOURCE, served  # noqa: E402

from freemask import page as parts  # noqa: E402
from freemask.settings import examples  # noqa: E402

TIMES, STEPS = 5, 200
Answer = Callable[[Page, int], None]


def serve(page: Page, turn: int) -> None:
    with urllib.request.urlopen(page.url) as answer:
        answer.read()


def answer_prompt(page: Page, turn: int) -> None:
    """The request that typing sends, sent again."""
    asked = urllib.request.Request(TYPED[0].url, TYPED[0].post_data_buffer, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        answer.read()


def keep_typed(request: Request) -> None:
    if not TYPED and "/run/predict" in request.url and "bus" in (request.post_data or ""):
        TYPED.append(request)


def type_prompt(page: Page, turn: int) -> None:
    thing = ("bus", "cat", "dog", "duck", "boat", "tree")[turn % 6]
    page.locator("#edit textarea, #edit input").first.fill(SOURCE.replace("car", thing))
    page.locator("#aligned mark.new", has_text=thing).wait_for()


def pick_example(page: Page, turn: int) -> None:
    chosen = SHIPPED[turn % len(SHIPPED)]
    page.get_by_role("button", name=chosen.name).click()
    page.wait_for_function(
        "text => document.querySelector('#edit :is(textarea, input)').value === text", arg=chosen.settings.edit
    )


def open_studio(page: Page, turn: int) -> None:
    page.locator("#studio [data-ready]").evaluate_all("nodes => nodes.forEach((node) => delete node.dataset.ready)")
    pick_example(page, turn)
    page.locator("#studio [data-ready='1']").wait_for(state="attached")


SHIPPED = examples()
TYPED: list[Request] = []
ANSWERS: dict[str, Answer] = {
    "page, server": serve,
    "prompt, server": answer_prompt,
    "typing": type_prompt,
    "example": pick_example,
    "studio": open_studio,
}


def measure(page: Page, answer: Answer) -> str:
    """Median and maximum of some turns."""
    times = []
    for turn in range(TIMES):
        began = time.perf_counter()
        answer(page, turn)
        times.append(1000 * (time.perf_counter() - began))
    return f"{statistics.median(times):.0f} / {max(times):.0f}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["GRADIO_TEMP_DIR"] = folder
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with served(parts.diffusion, Path(folder), judge=True) as url:
            page = browser.new_page()
            page.goto(url)
            page.get_by_role("button", name=SHIPPED[0].name).click()
            page.locator("#studio [data-ready='1']").wait_for(state="attached")
            page.on("request", keep_typed)
            for turn in (1, 0):
                type_prompt(page, turn)
            print("idle", json.dumps({name: measure(page, answer) for name, answer in ANSWERS.items()}), flush=True)
            own = SHIPPED[0].settings
            asked = {"source": own.source, "edit": own.edit, "task": own.task, "steps": STEPS}
            edit = Client(url, verbose=False).submit(handle_file(str(SHIPPED[0].clip)), **asked, api_name="/edit")
            assert any("Inverting" in line for line, *_ in edit), "the edit ended before it had begun to invert"
            print("busy", json.dumps({name: measure(page, answer) for name, answer in ANSWERS.items()}), flush=True)
            assert not edit.done(), "the edit ended before the page had answered: raise STEPS"
            edit.cancel()
        browser.close()


if __name__ == "__main__":
    main()
