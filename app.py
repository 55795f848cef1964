"""FreeMask's page: `python app.py` serves it on 127.0.0.1:7860.

FREEMASK_BACKBONE       the backbone chosen at first: mini (the default), a hub id or a folder
FREEMASK_FAKE=1         paint circles instead of running a model, to try the page itself
GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_ROOT_PATH   as Gradio reads them
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr

from freemask import page
from freemask.jobs import Worker
from freemask.presets import examples

HERE = Path(__file__).resolve().parent
WAITING = 8  # jobs that may wait behind the running one
DAY = 24 * 60 * 60
LAUNCH: dict[str, Any] = {
    "theme": page.theme(),
    "css_paths": [HERE / "static" / "style.css"],
    "allowed_paths": [HERE / "static" / "clips"],
    "max_file_size": "200mb",
    "ssr_mode": False,
    "footer_links": ["api"],
}


def build(worker: Worker, *, body: page.Body = page.diffusion, backbone: str = "mini") -> gr.Blocks:
    """The page over a worker; the caller launches it with `LAUNCH`."""
    shipped = [example for example in examples() if example.clip.exists()]

    with gr.Blocks(title="FreeMask", analytics_enabled=False, delete_cache=(3600, DAY), fill_width=True) as demo:
        page.header()
        toy = gr.HTML(page.toy_world(backbone), elem_id="toy")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                inputs = page.Inputs.build(shipped, backbone=backbone)
            with gr.Column(scale=8, min_width=320):
                results = page.Results.build(gr.State(None, delete_callback=page.forget))
        advanced = inputs.advanced
        desk = page.Desk(worker, body, folder=Path(inputs.clip.GRADIO_CACHE))

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        live = quiet | {"queue": False, "trigger_mode": "always_last"}
        inputs.clip.change(page.describe_clip, inputs.clip, inputs.facts, **live)
        inputs.examples.click(
            lambda index: page.fill_fields(shipped[index]), inputs.examples, inputs.all, postprocess=False, **quiet
        )
        advanced.backbone.change(page.toy_world, advanced.backbone, toy, **live)
        gr.on(
            [inputs.source.change, inputs.edit.change, inputs.task.change, inputs.word.change],
            page.follow_prompts,
            [inputs.source, inputs.edit, inputs.task, inputs.word, inputs.inferred],
            [inputs.word, inputs.inferred, inputs.aligned],
            **live,
        )
        inputs.task.change(
            page.follow_task,
            inputs.task,
            [inputs.summary, *advanced.own],
            **live,
        )
        # The worker is the queue that visitors see: as many edits as it holds may watch it, and one of them computes.
        edited = inputs.run.click(
            desk.edit,
            inputs.all,
            results.outputs,
            api_name="edit",
            postprocess=False,
            show_progress="hidden",
            concurrency_limit=WAITING + 1,
            concurrency_id="edit",
        )
        edited.success(
            page.open_masks, results.run, [results.word, results.frame, *results.masks], concurrency_limit=4, **quiet
        )
        inputs.cancel.click(desk.cancel, None, results.status, cancels=[edited], queue=False, **quiet)
        gr.on(
            [results.word.input, results.frame.input],
            page.show_masks,
            [results.word, results.frame, results.run],
            results.masks,
            api_name="masks",
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=4,
        )
        demo.unload(desk.leave)
    demo.queue(max_size=20, default_concurrency_limit=4)
    return demo


def main() -> None:
    body = page.painted_circles if os.environ.get("FREEMASK_FAKE") == "1" else page.diffusion
    with Worker(limit=WAITING) as worker:
        build(worker, body=body, backbone=os.environ.get("FREEMASK_BACKBONE") or "mini").launch(**LAUNCH)


if __name__ == "__main__":
    main()
