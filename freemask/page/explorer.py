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
from .curves import CURVES, draw_curves, save_curves, which_tab
from .desk import Desk, numbered_runs, own_folder, with_others
from .fields import made_with
from .parts import Results
from .studio import follow_sheet, open_tabs
from .visits import Run
from .wire import EACH, LATEST, QUIET, collecting, file_data, follow, hear, in_turn, shown

__all__ = ["Explorer"]


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
        about, drawn = [results.curves_word, results.layer, results.run], [results.timeline, results.cell]
        tab, turn = gr.State(""), gr.State(0)
        told, offered = gr.Textbox(visible=False), gr.Textbox(visible=False)  # whose the fields are, in the browser too
        chosen = results.tabs.select(which_tab, None, tab, **QUIET)
        sheet = [results.word, results.frame]
        opened = opened.then(in_turn(open_tabs), results.run, [*sheet, *about[:2], told], **each)
        pair = [tab, results.other, results.moment, results.run]
        others = [results.other, results.moment, results.name, results.delete, offered]
        for event in (chosen, opened):
            ready = event.then(in_turn(self.others), [results.run, told, offered], others, **each)
            ready.then(time.monotonic_ns, None, turn, **each)  # one handler draws a tab: what was asked last stays
        follow([turn.change], follow_sheet, [tab, *sheet, offered, results.run], results.masks, **LATEST, **QUIET)
        inputs = [about[0].input, about[1].input, turn.change]
        follow(inputs, self.follow_curves, [tab, offered, *about], drawn, **LATEST, **QUIET)
        inputs = [results.other.input, results.moment.input, turn.change]
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
        with collecting() as errors:
            return draw_curves(run, own_folder(run, self._desk.visit(request)), str(word), str(layer))
        raise shown(errors[0])

    def follow_curves(
        self, tab: str, offered: str, word: str, layer: str, run: Run | None, request: gr.Request
    ) -> tuple[Any, Any]:
        """The same for the page, where their tab is open. `offered`: whose words the fields offer; another edit's are
        not looked for."""
        seen = run and (tab, offered) == (CURVES, run.folder.name)
        return self.show_curves(word, layer, run, request) if seen else (gr.skip(), gr.skip())

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

    def others(self, shown: Run | None, told: str, offered: str, request: gr.Request) -> tuple[Any, ...]:
        """The runs that the shown one can be compared with, and what can be done with it where it is the visitor's. Its
        name is told once, so that it stays under the hands of who types another. `told` is the edit whose words the
        fields offer, and `offered` that of the last answer: where it is no longer the shown one, the next asks again.
        """
        visit, here = self._desk.visit(request), shown.folder.name if shown else ""
        if told != here:
            return (gr.skip(),) * 5
        names = [(label, name) for label, name in numbered_runs(visit.runs) if name != here]
        mine = visit.holds(shown)
        frames = shown.report["clip"]["frames"] if shown else 1
        return (
            gr.Dropdown(choices=names, value=names[-1][1] if names else None, visible=bool(names)),
            gr.Slider(1, max(2, frames), value=1, interactive=frames > 1, visible=bool(names)),
            gr.skip() if here and here == offered else gr.Textbox(shown.name if shown and mine else "", visible=mine),
            gr.Button(visible=mine),
            here,
        )

    def compare(self, tab: str, other: str, frame: float, run: Run | None, request: gr.Request) -> tuple[Any, ...]:
        """The run that is shown beside another of this visitor's, where their tab is open."""
        visit = self._desk.visit(request)
        second = next((one for one in visit.runs if one.folder.name == other), None)
        if tab != COMPARE:
            return (gr.skip(),) * 4
        if run is None or second is None:
            return status.note("Edit once more to compare two edits."), None, None, None
        with collecting() as errors:
            table, *files = compare_runs(second, run, int(frame) - 1, visit.beside(run))
            return table, *(file_data(one) if one else None for one in files)
        raise shown(errors[0])
