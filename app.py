"""FreeMask's page: `python app.py` serves it on 127.0.0.1:7860.

FREEMASK_BACKBONE       the backbone chosen at first: mini (the default), zeroscope, modelscope, a hub id or a folder;
                        one that cannot be used here is told of in the log, and the page begins with mini
FREEMASK_CACHE_GB       what the files of all visitors may take on disk, 20 where left out; beyond it those go first
                        that nobody looks at
FREEMASK_FAKE=1         paint circles instead of running a model, to try the page itself
GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_ROOT_PATH   as Gradio reads them
GRADIO_TEMP_DIR         where visitors' files lie, in a folder that is FreeMask's own; `freemask` among the temporary
                        files where left out

SIGTERM hands the edits back that wait and run, each with a sentence; a page that is loaded again after the next start
finds its edits and inversions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  on ZeroGPU it must come before torch

import gradio as gr

from freemask import page
from freemask.errors import FreeMaskError
from freemask.families.reach import obstacle, refusal, zero_gpu
from freemask.families.specs import backbone_name
from freemask.jobs.arenas import share_arenas
from freemask.jobs.worker import Worker
from freemask.page import browser, zero
from freemask.presets import task_names
from freemask.settings import EXTRAS, examples

log = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
WAITING = 8  # jobs that may wait behind the running one
DAY = 24 * 60 * 60
CACHE_GB = 20.0
TELLING = 1.0  # seconds in which pages hear that their edit was handed back
LAUNCH: dict[str, Any] = {
    "theme": page.theme(),
    "css_paths": [HERE / "static" / "style.css"],
    "css": page.cards(examples()),
    "head": browser.HEAD,
    "allowed_paths": [HERE / "static" / "clips", HERE / "static" / "examples"],
    "max_file_size": "200mb",
    "ssr_mode": False,
    "state_session_capacity": 200,
    "footer_links": ["api"],
}


def build(
    worker: Worker,
    *,
    body: page.Body = page.diffusion,
    backbone: str = "mini",
    estimates: page.Estimates | None = None,
    warm: bool = False,
    judge: bool = True,
    limit: float | None = None,
) -> gr.Blocks:
    """The page over a worker; the caller launches it with `LAUNCH`. `warm`: measure the server for the first one;
    `judge`: look at uploads for what a toy backbone cannot edit; `limit`: bytes of all visitors' files, in a folder
    that is FreeMask's own."""
    shipped = [example for example in examples() if example.clip.exists()]

    with gr.Blocks(title="FreeMask", analytics_enabled=False, delete_cache=(3600, DAY), fill_width=True) as demo:
        page.header()
        toy = gr.HTML(page.toy_world(backbone), elem_id="toy")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                inputs = page.Inputs.build(shipped, backbone=backbone)
            with gr.Column(scale=8, min_width=320):
                results = page.Results.build()
        token, query = gr.Textbox(visible=False), gr.Textbox(visible=False)
        advanced = inputs.advanced
        offered = [name for _, name in advanced.backbone.choices]
        desk = page.Desk(
            worker,
            body,
            folder=Path(inputs.clip.GRADIO_CACHE),
            estimates=estimates,
            backbones=offered,
            warm=shipped[0] if warm else None,
            greeting=shipped[0] if shipped else None,
            limit=limit,
        )

        def forget(request: gr.Request) -> None:
            """Lets go of what Gradio keeps of a session for deep links of its own, which are no part of this page."""
            sessions = demo.state_holder.session_data
            if request.session_hash in sessions:
                sessions[request.session_hash].config_values.clear()

        agents = os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"
        quiet = page.QUIET
        live = quiet | {"queue": False, "trigger_mode": "always_last"}
        plain = quiet | {"postprocess": False}

        # What you want: the fields follow each other.
        page.follow([inputs.clip.change], page.describe_clip, inputs.clip, inputs.facts, **live)
        inputs.preview.unplayable(
            page.make_preview, inputs.clip, inputs.preview, trigger_mode="always_last", concurrency_limit=2, **plain
        )
        page.follow([inputs.clip.clear], lambda: None, None, inputs.preview, **live)
        page.follow(
            [inputs.clip.change, advanced.frames.change, advanced.start.change, advanced.fps.change],
            page.follow_trim,
            [inputs.clip, advanced.frames, advanced.start, advanced.fps],
            inputs.trim,
            trigger_mode="always_last",
            concurrency_limit=1,
            **quiet,
        )
        taken = [advanced.frames, advanced.start, advanced.fps, advanced.backbone]
        if judge:
            page.follow(
                [inputs.clip.change, inputs.source.change, *(part.change for part in taken)],
                page.tell_world,
                [inputs.clip, *taken, inputs.source],
                [inputs.outside, inputs.caution],
                trigger_mode="always_last",
                concurrency_limit=1,
                **quiet,
            )
        own = [advanced.site, advanced.timestep, advanced.masks]
        page.follow([inputs.clip.clear], lambda: (0, ""), None, [advanced.start, advanced.fps], **live)
        page.follow(
            [inputs.clip.clear, inputs.own_mask.click],
            page.in_turn(page.drop_mask),
            [advanced.site, advanced.tau],
            [*own, advanced.tau],
            **live,
        )
        inputs.own_mask.click(None, js="() => document.querySelector('#run').focus()", **quiet)
        told = [*own, advanced.changes]
        page.follow([part.change for part in told], page.in_turn(page.own_mask), told, inputs.own_mask, **live)
        inputs.trim.trim(page.in_turn(page.take_trim), advanced.frames, [advanced.start, advanced.fps], **live)
        filled = page.follow(
            [inputs.examples.click],
            lambda index: page.fill_example(shipped[index]),
            inputs.examples,
            inputs.all,
            **page.LATEST,
            **plain,
        )
        inputs.settings.upload(lambda file: page.fill_settings(file, offered), inputs.settings, inputs.all[1:], **plain)
        page.follow(
            [advanced.method.change], page.in_turn(page.follow_method), advanced.method, advanced.method, **live
        )
        page.follow([advanced.backbone.change], page.in_turn(page.toy_world), advanced.backbone, toy, **live)
        usual = browser.usual_guidance(offered)
        advanced.backbone.input(None, advanced.backbone, advanced.guidance, js=usual, **quiet)
        told = [inputs.source, inputs.edit, inputs.task, inputs.word, advanced.backbone, advanced.method]
        page.follow(
            [part.change for part in told],
            page.in_turn(page.follow_prompts),
            told,
            [inputs.word, inputs.aligned],
            **live,
        )
        inputs.source.change(None, [inputs.source, inputs.word], inputs.word, js=browser.LET_GO, **quiet)
        inputs.aligned.pick(page.in_turn(page.take_word), None, inputs.word, **live)
        several = [inputs.source, inputs.edit, advanced.changes, advanced.method]
        changing: Any = page.in_turn(page.follow_changes), [*several, results.run], [advanced.changes, inputs.changes]
        page.follow([*(part.change for part in several), results.run.change], *changing, **live)
        picked = inputs.changes.choose(page.in_turn(page.take_changes), None, advanced.changes, **live)
        picked.then(*changing, **live)  # the folded field tells of no change
        guessed = gr.State(task_names()[0])
        page.follow(
            [inputs.source.change, inputs.edit.change],
            page.in_turn(page.follow_difference),
            [inputs.source, inputs.edit, inputs.task, guessed],
            [inputs.task, guessed],
            **live,
        )
        page.follow([inputs.task.input], lambda: None, None, guessed, **live)
        cards = [inputs.task, advanced.method]
        page.follow(
            [part.change for part in cards],
            page.in_turn(page.follow_task),
            cards,
            [inputs.summary, *advanced.own],
            **live,
        )
        paced = [advanced.steps, advanced.solver]
        inputs.pace.input(None, inputs.pace, paced, js=browser.TAKE_PACE, **quiet)
        lent = gr.Checkbox(True, visible=False)  # the pace is an example's or the page's own, none that was chosen
        own = [inputs.clip.upload, inputs.clip.stop_recording]
        gr.on(own, None, lent, paced, js=browser.own_pace(), **quiet)
        choosing = [inputs.pace.input, *(part.input for part in paced), inputs.settings.upload]
        gr.on(choosing, None, None, lent, js="() => false", **quiet)
        filled.success(None, None, lent, js="() => true", **quiet)
        shown = [*paced, inputs.pace]
        gr.on([part.change for part in paced], None, shown, inputs.pace, js=browser.FOLLOW_PACE, **quiet)
        costly = [
            inputs.clip,
            inputs.task,
            advanced.backbone,
            advanced.steps,
            advanced.solver,
            advanced.frames,
            advanced.size,
        ]
        costly += [advanced.features, advanced.low_vram, advanced.method, advanced.null_text_steps]
        costly += [advanced.strength, advanced.source_guidance]
        page.follow([part.change for part in costly], desk.tell_cost, costly, inputs.estimate, **live)

        # The edit. The worker is the queue that visitors see, and refuses what it cannot hold: none waits before it.
        watching: dict[str, Any] = {"concurrency_limit": None}
        cell = results.studio.use(page.take_cell, results.run, inputs.all, **plain)
        painted = results.studio.paint(desk.take_painting, results.run, inputs.all, **plain)
        bent = results.studio.bend(page.take_bend, results.run, inputs.all, **plain)
        # Before the page's own, which would take its name. Agents keep no session: a tool fails over a state that it
        # returns, and "the last edit" is nobody's.
        gr.Button(visible=False).click(
            desk.edit_for_agents if agents else desk.edit,
            page.program_inputs(inputs),
            results.outputs[:-1] if agents else results.outputs,
            postprocess=False,
            api_name="edit",
            **watching,
        )
        edits = []
        for press in (inputs.run.click, cell.success, painted.success, bent.success):
            edits.append(
                press(
                    desk.edit,
                    inputs.all,
                    results.outputs,
                    postprocess=False,
                    trigger_mode="multiple",  # else a press just after Cancel is lost; the desk refuses a second edit
                    **quiet,
                    **watching,
                )
            )
        inputs.cancel.click(desk.cancel, None, results.status, queue=False, **quiet)

        # What came of it.
        recalled = f"() => [({browser.ARRIVE})(), ({browser.QUERY})()]"
        held = f"() => {{ {browser.HOLD}; return ({recalled})(); }}"
        arrived = demo.load(desk.arrive, [token, query], results.outputs, js=recalled, concurrency_limit=None, **plain)
        filled_in = demo.load(desk.recall, [token, query], [*inputs.all, lent], js=held, **plain)
        filled_in.then(None, js=browser.FREE, **quiet)
        chosen = page.follow(
            [results.choice.input], desk.show_run, results.choice, results.outputs, **page.LATEST, **plain
        )
        chosen.success(desk.fill_run, results.run, inputs.all, **page.EACH, **plain)
        chosen.success(None, None, lent, js="() => false", **quiet)
        results.status.change(None, results.status, inputs.progress, js=browser.PROGRESS, **quiet)
        filled.success(
            lambda index: desk.show_example(shipped[index]), inputs.examples, results.outputs, **page.EACH, **plain
        )
        filled.success(lambda: None, None, results.choice, **page.EACH, **quiet)
        # A run is shown before its reconstruction and its figures are there, and comes once more with them.
        opened = page.follow(
            [results.run.change], page.in_turn(page.open_studio), results.run, results.studio, **page.LATEST, **plain
        )
        opened.then(desk.tell_cost, costly, inputs.estimate, **page.EACH, **quiet)
        for name, button in results.extras.items():
            made = button.click(desk.adds_file(name), results.run, results.files, **plain)
            made.success(None, js=browser.fetch(name), **quiet)
        gr.Button(visible=False).click(
            desk.make_file,
            [gr.Dropdown(list(EXTRAS), label="Name", visible=False), results.run],
            gr.File(label="File", visible=False),
            postprocess=False,
            api_name="file",
            api_visibility="undocumented" if agents else "public",
        )
        for finished in edits:
            finished.success(None, js=browser.REVEAL, **quiet)
        for finished in (*edits, arrived):
            finished.success(desk.history, results.run, [results.choice, results.history], **page.EACH, **quiet)
        explorer = page.Explorer(desk)
        gr.on(
            [results.word.input, results.frame.input],
            explorer.show_masks,
            [results.word, results.frame, results.run],
            results.masks,
            api_name="masks",
            **page.LATEST | quiet | {"api_visibility": "undocumented" if agents else "public"},
        )
        history = [results.choice, results.history]
        for event in (results.name.submit, results.name.blur):
            event(desk.rename, [results.name, results.offered, results.run], history, **quiet)
        gone = results.delete.click(desk.delete, results.run, results.outputs, **plain)
        gone.success(desk.history, results.run, history, **quiet)
        explorer.wire(results, opened, api_visibility="undocumented" if agents else "public")
        demo.load(desk.tell_first_cost, costly, inputs.estimate, concurrency_limit=None, **quiet)
        demo.unload(desk.leave)
        demo.unload(forget)
    demo.queue(max_size=20, default_concurrency_limit=4)
    demo._queue.sleep_when_free = 0.01  # seconds; Gradio itself looks for work a thousand times in each, at rest too
    return demo


def first_backbone() -> str:
    """FREEMASK_BACKBONE where it can be used here; else mini, and the log says why."""
    name = backbone_name(os.environ.get("FREEMASK_BACKBONE") or "mini")
    try:
        if met := obstacle(name):
            raise refusal(name, met)
    except FreeMaskError as error:
        log.warning("FREEMASK_BACKBONE: %s The page begins with mini.", error)
        return "mini"
    return name


def end_on(worker: Worker) -> Callable[[], None]:
    """Hands back all edits on SIGTERM and ends; the function that is returned does the same and starts anew."""
    anew = threading.Event()

    def end(*_: object) -> None:
        worker.close(timeout=5)
        time.sleep(TELLING)
        if anew.is_set():
            os.execv(sys.executable, sys.orig_argv)
        raise SystemExit

    def start_anew() -> None:
        anew.set()
        time.sleep(TELLING)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    return lambda: threading.Thread(target=start_anew, daemon=True).start()


def main() -> None:
    share_arenas()
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / "freemask"))
    backbone, estimates = first_backbone(), page.Estimates()
    body: page.Body = page.painted_circles if os.environ.get("FREEMASK_FAKE") == "1" else page.diffusion
    if zero_gpu():
        from freemask.jobs.run import load_editor

        load_editor(backbone)  # into the process that every borrowed GPU's process is made from
        body = zero.borrowing(body, estimates)
    with Worker(limit=WAITING) as worker:
        start_anew = end_on(worker)
        build(
            worker,
            body=body if zero_gpu() else page.outliving(body, start_anew),
            backbone=backbone,
            estimates=estimates,
            warm=backbone == "mini" and not zero_gpu(),
            judge=body is not page.painted_circles,
            limit=1e9 * float(os.environ.get("FREEMASK_CACHE_GB") or CACHE_GB),
        ).launch(**LAUNCH)


if __name__ == "__main__":
    main()
