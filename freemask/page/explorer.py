"""What a visitor asks about finished edits: answers for the studio, curves, and two edits beside each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import gradio as gr

from ..errors import FreeMaskError, SettingError
from ..families.specs import known_words
from ..jobs.questions import read_question
from ..jobs.worker import Cancelled
from ..pictures.word_maps import concept_file
from ..words.prompts import words
from . import browser, status
from .compare import COMPARE, compare_runs
from .curves import CURVES, SHEET, draw_curves, save_curves
from .desk import Desk, numbered_runs, own_folder, with_others
from .fields import made_with
from .parts import Results
from .studio import draw_masks, open_tabs
from .visits import Run
from .wire import EACH, LATEST, QUIET, collecting, file_data, follow, hear, in_turn, shown

__all__ = ["Explorer"]

DRAWN = SHEET, CURVES, COMPARE  # the tabs whose pictures are drawn when they are seen


class Explorer:
    """The tabs and the studio's questions, at a desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def wire(self, results: Results, opened: Any, *, api_visibility: str) -> None:
        """The events of the tabs; `opened` is the one after which another edit is shown."""
        plain = QUIET | {"postprocess": False}
        each = QUIET | EACH
        results.studio.ask(
            self.answer, results.run, results.studio, trigger_mode="multiple", concurrency_limit=None, **plain
        )
        sheet, about = [results.word, results.frame], [results.curves_word, results.layer, results.run]
        drawn, pair = [results.timeline, results.cell], [results.other, results.moment, results.run]
        offered = results.offered
        tab, turns = gr.State(""), {name: gr.State(0) for name in DRAWN}
        others = [results.other, results.moment, results.name, results.delete, *turns.values()]
        tabs = [*sheet, *about[:2], results.link, results.null_text, offered]
        opened.then(in_turn(self.open_run), [tab, results.run, offered], [*tabs, *others], **each)
        results.tabs.select(in_turn(self.open_tab), [results.run, offered], [tab, *others], **each)
        inputs = [turns[SHEET].change]
        follow(inputs, self.follow_sheet, [*sheet, results.run, offered], results.masks, **LATEST, **QUIET)
        inputs = [turns[CURVES].change, results.curves_word.input, results.layer.input]
        follow(inputs, self.follow_curves, [*about, offered], drawn, **LATEST, **QUIET)
        inputs = [turns[COMPARE].change, results.other.input, results.moment.input]
        follow(inputs, self.compare, pair, results.compared, **LATEST, **plain)
        layer = gr.Textbox(visible=False, label="Layer")  # a program has not been offered the choices of a page
        asked = [results.curves_word, layer, results.run]
        gr.Button(visible=False).click(self.show_curves, asked, drawn, api_name="curves", api_visibility=api_visibility)
        for name, button in results.tables.items():
            made = button.click(self.adds_curves(name), about, results.files, **plain)
            made.success(None, js=browser.fetch(name), **QUIET)

    async def answer(
        self, run: Run | None, event: gr.EventData, request: gr.Request
    ) -> AsyncGenerator[dict[str, Any], None]:
        """An answer about the edit that is shown, for the studio, as a job of its own behind the edits that wait: what
        is told meanwhile, and last the answer, or why there is none. Each tells the `number` of the question."""
        if run is None:
            raise shown(SettingError("There is no edit yet: edit a clip first."))
        about = {"run": run.folder.name, "number": hear(event, "number", int)}
        visit = self._desk.visit(request)
        folder = own_folder(run, visit) or run.folder
        with collecting() as errors:
            question = read_question(dict(event._data))
            file = concept_file(folder, question.text)
            told: dict[str, Any] = {}
            if question.kind != "concept" or not file.exists():
                job = self._desk.look(request, run.clip, made_with(run), folder, question)
                before = None
                while not (now := job.snapshot).ended:
                    if (line := status.looking(now)) != before:
                        yield {"answer": about | {"told": (before := line)}}
                    await asyncio.sleep(0.05)
                told = job.result()
            if question.kind == "concept":
                known = known_words(run.report["settings"]["backbone"])
                unseen = known is not None and not {word.lower() for word in words(question.text)} <= set(known)
                told = {"maps": file_data(file), "unseen": unseen}
            yield {"answer": about | {"found": told}}
        for error in errors:
            if not isinstance(error, Cancelled):  # by another question, which is told of in its place
                why = str(error) if isinstance(error, FreeMaskError) else shown(error).message
                yield {"answer": about | {"failed": why}}

    def show_curves(self, word: str, layer: str, run: Run | None, request: gr.Request) -> tuple[Any, str]:
        """A word's maps over the timesteps, at a layer of the last edit in this session, and Python that draws them.

        Args:
            word: A word of that edit's prompts, or another that was looked for.
            layer: The layer, by its short name such as "up 2.0".
        """
        if run is None:
            raise shown(SettingError("There are no maps yet: edit a clip first."))
        visit = self._desk.visit(request)
        with collecting() as errors:
            return draw_curves(run, own_folder(run, visit), str(word), str(layer), visit.ink)
        raise shown(errors[0])

    def follow_curves(
        self, word: str, layer: str, run: Run | None, offered: str, request: gr.Request
    ) -> tuple[Any, Any]:
        """The same for the page; the words of another edit than `run` are not looked for."""
        if run is None or offered != run.folder.name:
            return gr.skip(), gr.skip()
        return self.show_curves(word, layer, run, request)

    def show_masks(self, word: str, frame: float, run: Run | None, request: gr.Request) -> tuple[Any, Any]:
        """The attention maps of a word, by layer and timestep, of the last edit in this session.

        Args:
            word: A word of that edit's source prompt; "dog#2" is the second dog.
            frame: Which frame, counted from 1.
        """
        if run is None:
            raise shown(SettingError("There are no masks yet: edit a clip first."))
        with collecting() as errors:
            return draw_masks(run, str(word or ""), int(frame) - 1, self._desk.visit(request).ink)
        raise shown(errors[0])

    def follow_sheet(
        self, word: str, frame: float, run: Run | None, offered: str, request: gr.Request
    ) -> tuple[Any, Any]:
        """The sheet of the edit that is shown, for the page; the words of another are not looked for."""
        if run is None:
            return None, None
        return self.show_masks(word, frame, run, request) if offered == run.folder.name else (gr.skip(), gr.skip())

    def adds_curves(self, name: str) -> Callable[[str, str, Run | None, gr.Request], list[Any]]:
        """A handler that makes that file of the curves, and gives it with the others."""

        def add(word: str, layer: str, run: Run | None, request: gr.Request) -> list[Any]:
            if run is None:
                return []
            own = own_folder(run, self._desk.visit(request))
            with collecting() as errors:
                made = save_curves(run, own, str(word), str(layer), name, own or run.folder)
                return with_others(file_data(made), run)
            raise shown(errors[0])

        return add

    def open_tab(self, run: Run | None, offered: str, event: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        """The name of the tab that was opened, and what it needs."""
        return str(event.value), *self._others(run, offered, str(event.value), request)

    def open_run(self, tab: str, run: Run | None, offered: str, request: gr.Request) -> tuple[Any, ...]:
        """What the tabs offer of another edit, and whose that is; and what the tab needs that is open."""
        return *open_tabs(run), run.folder.name if run else "", *self._others(run, offered, tab, request)

    def _others(self, shown: Run | None, offered: str, tab: str, request: gr.Request) -> tuple[Any, ...]:
        """The runs that the shown one can be compared with, and what can be done with it where it is the visitor's. Its
        name is told once, so that it stays under the hands of who types another; `offered` is the run whose name was.
        Last whose turn it is to be drawn: pictures that are not seen are not drawn."""
        visit, here = self._desk.visit(request), shown.folder.name if shown else ""
        names = [(label, name) for label, name in numbered_runs(visit.runs) if name != here]
        mine = visit.holds(shown)
        frames = shown.report["clip"]["frames"] if shown else 1
        return (
            gr.Dropdown(choices=names, value=names[-1][1] if names else None, visible=bool(names)),
            gr.Slider(1, max(2, frames), value=1, interactive=frames > 1, visible=bool(names)),
            gr.skip() if here and here == offered else gr.Textbox(shown.name if shown and mine else "", visible=mine),
            gr.Button(visible=mine),
            *(time.monotonic_ns() if name == tab else gr.skip() for name in DRAWN),
        )

    def compare(self, other: str, frame: float, run: Run | None, request: gr.Request) -> tuple[Any, ...]:
        """The run that is shown beside another of this visitor's."""
        visit = self._desk.visit(request)
        second = next((one for one in visit.runs if one.folder.name == other), None)
        if run is None or second is None:
            return status.note("Edit once more to compare two edits."), None, None, None
        with collecting() as errors:
            table, *files = compare_runs(second, run, int(frame) - 1, visit.beside(run), visit.ink)
            return table, *(file_data(one) if one else None for one in files)
        raise shown(errors[0])
