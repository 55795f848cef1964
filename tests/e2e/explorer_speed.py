"""How fast the explorer answers at full size: `python tests/e2e/explorer_speed.py` prints milliseconds from a click to
the painted frame and the payload's size, for 16 sites × 50 timesteps × 8 frames of a clip of 512 × 512 as zeroscope has
them; with `wan` for 30 sites × 50 timesteps × 21 latent frames of 81 frames of 832 × 480, as Wan 2.1 has them, and with
`wan PICTURE` a picture of its page is written too."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from serving import launch  # noqa: E402
from visitor import CHROMIUM, EDIT, FLAGS, SOURCE  # noqa: E402

import app  # noqa: E402
from freemask import page as parts  # noqa: E402
from freemask.clips.strides import latent_frames, of_frames  # noqa: E402
from freemask.clips.video import Clip, write_clip  # noqa: E402
from freemask.jobs.worker import Worker  # noqa: E402
from freemask.pictures.word_maps import save_word_files  # noqa: E402
from freemask.settings import Settings  # noqa: E402
from freemask.steps import Step, mapped  # noqa: E402
from freemask.words.prompts import words  # noqa: E402

WAN = sys.argv[1:2] == ["wan"]
GRIDS = {(30, 52): 30} if WAN else {(64, 64): 5, (32, 32): 5, (16, 16): 5, (8, 8): 1}  # grid: sites
UP = [f"up_blocks.{i // 3}.attentions.{i % 3}.transformer_blocks.0.attn2" for i in range(16)]
SITES = [f"blocks.{i}.attn2" for i in range(30)] if WAN else UP
STEPS, FRAMES, WIDTH, HEIGHT = (50, 81, 832, 480) if WAN else (50, 8, 512, 512)
TIMED = """async ([selector, attribute]) => {
    const drawn = document.querySelector("#studio [data-ready]"), node = document.querySelector(selector);
    const before = drawn.dataset[attribute], began = performance.now();
    node.click();
    while (drawn.dataset[attribute] === before) await new Promise((go) => setTimeout(go));
    await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
    return performance.now() - began;
}"""


def full_size(clip: Path, settings: Settings, out: Path, kept: Path) -> Generator[Step, None, dict[str, Any]]:
    """A run of full size whose maps are soft spots at random: they are there when the edit is first shown."""

    def enlarged(step: Step) -> Step:
        if step.result is not None:
            save_spots(settings, out)
            step.result["mask"]["site"] = SITES[9]
        return step

    painted = parts.painted_circles(clip, settings, out, kept, pause=lambda: None)
    return (yield from mapped(painted, enlarged))


def save_spots(settings: Settings, out: Path) -> None:
    rng, tokens = np.random.default_rng(0), words(settings.source)
    names, kept = SITES, latent_frames(FRAMES, 4) if WAN else FRAMES
    stored: dict[str, Any] = {"timesteps": np.arange(1, 1000, 20), "tokens": np.array(tokens), "sites": np.array(names)}
    stored["edit_words"] = np.zeros(0, np.int64)
    stored["chosen"] = np.zeros((STEPS, len(names)), bool)
    stored["chosen"][10, 9], stored["mask"] = True, np.zeros((FRAMES, 60, 64), bool)
    stored["mask"][:, 20:40, 16:48] = True
    stored["of_frames"] = of_frames(FRAMES, 4 if WAN else 1)
    first = 0
    for (h, w), count in GRIDS.items():
        shape = (STEPS, count, len(tokens), kept)
        drawn = [cv2.resize(rng.random((4, 6), np.float32), (w, h), interpolation=cv2.INTER_CUBIC) for _ in range(997)]
        spots = (np.stack(drawn).clip(0, 1) ** 3 * 255).astype(np.uint8)
        stored[f"maps_{h}x{w}"] = spots[rng.integers(0, 997, shape)]
        stored[f"scales_{h}x{w}"] = rng.random(shape, np.float32)
        stored[f"sites_{h}x{w}"] = np.array(names[first : first + count])
        first += count
    save_word_files(out, stored)


def median(page: Page, selector: str, attribute: str, picks: int = 9) -> float:
    """The median time of clicks on different elements that match, or on the only one again and again."""
    count = page.locator(selector).count()
    times = []
    for i in np.linspace(0, count - 1, picks if count == 1 else min(picks, count)).astype(int):
        page.locator(selector).nth(int(i)).evaluate("(node) => node.setAttribute('data-timed', '')")
        times.append(page.evaluate(TIMED, ["[data-timed]", attribute]))
        page.locator("[data-timed]").evaluate("(node) => node.removeAttribute('data-timed')")
    return round(statistics.median(times), 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Worker() as worker, sync_playwright() as playwright:
        os.environ["GRADIO_TEMP_DIR"] = folder
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, Clip(np.random.default_rng(1).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8), 8.0))
        demo = app.build(worker, body=full_size)
        url = launch(demo)
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{url}?frames={FRAMES}&size={WIDTH}x{HEIGHT}")
        page.set_input_files("#clip input[type=file]", clip)
        page.get_by_label("What the clip shows").fill(SOURCE)
        page.get_by_label("What it should show").fill(EDIT)
        page.locator("#facts", has_text=f"{WIDTH}×{HEIGHT}").wait_for()
        page.get_by_role("button", name="Edit", exact=True).click()
        page.locator("#studio [data-ready='1']").wait_for(state="attached")
        page.get_by_role("button", name="Pause (Space)").click()
        page.wait_for_timeout(15_000 if WAN else 5_000)  # until the words that are fetched beforehand are there
        sizes = [path.stat().st_size / 2**20 for path in Path(folder).glob("visit-*/*/words/*.gz")]
        print(
            json.dumps(
                {
                    "cell_ms": median(page, "#studio [role=gridcell]", "cell"),
                    "frame_ms": median(page, "#studio .fm-transport button[aria-label^=Next]", "frame"),
                    "word_ms": median(
                        page, "#studio .fm-words:first-of-type button:not([aria-pressed=true])", "words", 3
                    ),
                    "word_mib": round(statistics.mean(sizes), 2),
                }
            )
        )
        if sys.argv[2:]:
            page.set_viewport_size({"width": 1440, "height": 900})
            page.locator("#studio").screenshot(path=sys.argv[2])
        demo.close()


if __name__ == "__main__":
    main()
