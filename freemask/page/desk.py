"""The desk: takes visitors' requests to the worker and brings back what it made."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import ipaddress
import json
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr

from ..errors import InputError, SettingError
from ..families.reach import obstacle, refusal
from ..jobs.check import check, fitting
from ..jobs.questions import Question
from ..jobs.worker import Job, QueueFull, Worker
from ..pictures.mask_zip import save_mask_zip
from ..pictures.sheets import PAPER, SCREEN
from ..settings import EXAMPLES, Example, Settings, infer_settings, make_settings, read_size
from ..steps import Step, mapped
from . import status
from .advanced import MASK_OWN
from .bodies import Body
from .changes import painted_change
from .estimate import Estimates, sized
from .fields import (
    FIELDS,
    NAMES,
    edit_fields,
    fill_example,
    fill_run,
    follow_link,
    is_light,
    is_link,
    optional,
    read_fields,
    same_clip,
)
from .programs import told_of_settings
from .visits import Run, Visit, Visits
from .wire import collecting, file_data, painted_masks, picture_uri, poster, shown
from .zero import in_context

__all__ = ["VIDEOS", "Desk", "numbered_runs", "own_folder", "with_others"]

log = logging.getLogger(__name__)
OF_ADDRESS = 4  # edits that wait or run at once for one address of the internet
AWAY = 60 * 60.0  # seconds that a visitor's files and job outlive the last look at them
WARM = 4  # steps of the warming up
VIDEOS = ("source", "reconstruction", "edited")
LABELS = {name: f"“{label}”" for name, label in MASK_OWN.items()}
SKIPPED: tuple[Any, ...] = (gr.skip(),) * 6


class Desk:
    """`folder` is where visitors' files are kept, `away` how long they outlive the last look, and `limit` their bytes
    where the folder is FreeMask's own (`Visits`); `backbones` are what the page offers, `warm` is an example to measure
    the server with, and `greeting` one whose edit greets newcomers."""

    def __init__(
        self,
        worker: Worker,
        body: Body,
        *,
        folder: Path,
        estimates: Estimates | None = None,
        backbones: Sequence[str] = ("mini",),
        warm: Example | None = None,
        greeting: Example | None = None,
        away: float = AWAY,
        limit: float | None = None,
    ) -> None:
        self._worker, self._body, self._backbones, self._warm = worker, body, backbones, warm
        self._folder, self._visits = folder, Visits(folder, away=away, limit=limit)
        self._warming: Job | None = None
        self._of_address: dict[str, list[Job]] = {}
        self._greeting = greeting if greeting and _report(greeting).exists() else None
        self.estimates = estimates or Estimates()

    @told_of_settings
    def edit(
        self, request: gr.Request, clip: str | None, *values: Any, **named: Any
    ) -> Generator[tuple[Any, ...], None, None]:
        """Edit a clip by text. Yields the progress at each step, then the videos, the report and all files."""
        session = request.session_hash or ""
        before = self._cancelled(session)
        with collecting() as errors:
            self._refuse_crowd(address := _address(request))
            given = read_fields(dict(zip(NAMES[1:], values, strict=False)) | named)
            settings = infer_settings(given, LABELS if self._visits.is_page(session) else None)
            if met := obstacle(settings.backbone):
                raise refusal(settings.backbone, met)
            path = Path(clip) if clip else None
            fitted = check(path, settings).settings
            assert path is not None  # or check has refused it
            visit = self._visits.of(session)
            if self._visits.is_page(session) and visit.active:
                raise SettingError("Your last edit is not done yet: wait for it, or press Cancel first.")
            context = contextvars.copy_context()
            job = self._worker.submit(lambda: in_context(context, self._work(path, fitted, visit)))
        for error in errors:
            yield status.failed((told := shown(error)).message), *SKIPPED
            raise told
        visit.asked = path, settings
        visit.jobs = [*visit.active, job]
        self._of_address.setdefault(address, []).append(job)
        if self._cancelled(session) != before:  # while the input was checked
            job.cancel()
        self._visits.look(visit, job.id)
        try:
            yield from self._follow(job, sized(fitted, path))
        finally:
            if not self._visits.is_page(session):  # nobody can come back for it
                job.cancel()
            self._visits.leave(session, job.id)

    def visit(self, request: gr.Request) -> Visit:
        """Whose request it is."""
        return self._visits.of(request.session_hash or "")

    def look(self, request: gr.Request, clip: Path, settings: Settings, folder: Path, question: Question) -> Job:
        """A visitor's question about an edit in a folder, which ends the search for an earlier answer. Raises
        SettingError and QueueFull as an edit does."""
        visit = self.visit(request)
        if visit.looking:
            visit.looking.cancel()
        self._refuse_crowd(address := _address(request))
        given, context = (clip, settings, folder, visit.inversions), contextvars.copy_context()
        job = visit.looking = self._worker.submit(lambda: in_context(context, self._body(*given, question)))
        self._of_address.setdefault(address, []).append(job)
        return job

    def _refuse_crowd(self, address: str) -> None:
        """Raises SettingError where one address of the internet has as many edits in the queue as it may. Those of a
        local network and of proxies that do not say for whom they ask are not counted."""
        known = {one: [job for job in jobs if not job.snapshot.ended] for one, jobs in self._of_address.items()}
        self._of_address = {one: jobs for one, jobs in known.items() if jobs}
        if len(self._of_address.get(address, ())) >= OF_ADDRESS and _is_public(address):
            raise SettingError(
                f"{OF_ADDRESS} edits from your address wait or run already: try again when one of them has ended."
            )

    @functools.wraps(edit)
    def edit_for_agents(self, *given: Any) -> Generator[tuple[Any, ...], None, None]:
        for told in self.edit(*given):
            yield told[:-1]

    def _greet(self, token: str, query: str, request: gr.Request) -> Visit:
        visit = self._visits.greet(token, request.session_hash or "")
        visit.ink = PAPER if is_light(query) else SCREEN
        return visit

    def arrive(self, token: str, query: str, request: gr.Request) -> Generator[tuple[Any, ...], None, None]:
        """A page was opened, maybe again: follow the visitor's job or show the last result. Who comes first, and by no
        link, is greeted by an example."""
        visit = self._greet(token, query, request)
        if visit.active and visit.asked:
            yield from self._follow(visit.active[-1], sized(visit.asked[1], visit.asked[0]))
        elif visit.runs:
            run = visit.runs[-1]
            yield _results(run, status.done(run.report, run.report["seconds"]["total"]))
        elif self._greeting and not is_link(query):
            yield self.show_example(self._greeting)
        else:
            yield gr.skip(), *SKIPPED

    def recall(self, token: str, query: str, request: gr.Request) -> list[Any]:
        """The fields of a page that was opened: as its link says, as the last edit of who comes back had them, or those
        of the example that greets who comes first; and whether their pace is lent, as `browser.own_pace` asks."""
        visit = self._greet(token, query, request)
        asked = visit.asked
        linked = follow_link(query, self._backbones)
        if linked is not None:
            return [gr.skip(), *linked, False]
        if asked is None and visit.runs:  # of an earlier server
            return [*fill_run(visit.runs[-1]), False]
        if asked is None and self._greeting:
            return [*fill_example(self._greeting), True]
        if asked is None or not asked[0].exists():
            return [*[gr.skip()] * FIELDS, True]
        clip, settings = asked
        return [*edit_fields(clip, settings, settings.masks), False]

    def leave(self, request: gr.Request) -> None:
        """A page was closed, is loaded again, or lost its connection."""
        self._visits.leave(request.session_hash or "")

    def cancel(self, request: gr.Request) -> Any:
        """Cancel what this visitor has queued or running. The edit itself tells of it, as its last word: were it told
        here, what the edit told just before could come after it and stay."""
        visit = self.visit(request)
        visit.cancelled += 1
        for job in (jobs := visit.active):
            job.cancel()
        return gr.skip() if jobs else status.idle()

    def history(self, shown: Run | None, request: gr.Request) -> tuple[Any, str]:
        """The choices among this visitor's last runs, with the one that is shown, and the table that compares them."""
        runs = self.visit(request).runs
        names = numbered_runs(runs)
        here = shown.folder.name if shown else None
        value = here if here in [name for _, name in names] else names[-1][1] if names else None
        choices = gr.Radio(choices=names, value=value, visible=bool(names))
        return choices, status.history([(one.report, poster(one.folder / "edited.mp4")) for one in runs])

    def rename(self, name: str, offered: str, run: Run | None, request: gr.Request) -> tuple[Any, str]:
        """Another name for the run whose name the field `offered`, where it is the visitor's: it may have been deleted
        since, or another is shown. And the history with it."""
        visit = self.visit(request)
        for one in visit.runs:
            if one.folder.name == offered:
                visit.rename(one, " ".join(str(name).split())[:100])
        return self.history(run, request)

    def delete(self, run: Run | None, request: gr.Request) -> tuple[Any, ...]:
        """Deletes the run that is shown, where it is the visitor's, and shows the one before it, or the greeting."""
        visit = self.visit(request)
        if run is None or not visit.holds(run):
            raise shown(SettingError("This edit is not one of yours: there is nothing to delete."))
        if visit.active:  # which may still write into it
            raise shown(SettingError("Your last edit is not done yet: wait for it, or press Cancel first."))
        visit.delete(run)
        if visit.runs:
            return self.show_run(visit.runs[-1].folder.name, request)
        return self.show_example(self._greeting) if self._greeting else (status.idle(), *[None] * 6)

    def show_run(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """One of this visitor's last runs again."""
        for run in self.visit(request).runs:
            if run.folder.name == name:
                return _results(run, status.done(run.report, run.report["seconds"]["total"]))
        raise shown(SettingError("That run is gone: choose another, or edit again."))

    def fill_run(self, run: Run, request: gr.Request) -> list[Any]:
        """The fields of a run that is shown again, but while an edit goes on, whose fields they are then."""
        active = self.visit(request).active
        return [gr.skip()] * FIELDS if active else fill_run(run)

    def show_example(self, example: Example) -> tuple[Any, ...]:
        """The edit that ships with an example, where it does."""
        path = _report(example)
        if not path.exists():
            return gr.skip(), *SKIPPED
        run = Run(example.made, json.loads(path.read_text(encoding="utf-8")), example.clip)
        return _results(run, status.done(run.report, None))

    def make_file(self, name: str, run: Run | None, request: gr.Request) -> Any:
        """One more file of the last edit in this session, made when it is asked for.

        Args:
            name: Which file.
        """
        if run is None:
            raise shown(SettingError("There is no edit yet: edit a clip first."))
        into = own_folder(run, self.visit(request))
        with collecting() as errors:
            from ..jobs.extras import make_extra  # which imports torch, and the page is painted before that

            return file_data(make_extra(run.folder, name, into))
        raise shown(errors[0])

    def adds_file(self, name: str) -> Callable[[Run | None, gr.Request], list[Any]]:
        """A handler that makes that file, and gives it with the others."""

        def add(run: Run | None, request: gr.Request) -> list[Any]:
            made = self.make_file(name, run, request)
            return with_others(made, run) if run else []

        return add

    def take_painting(self, run: Run | None, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Masks painted in the studio, kept as a zip, as fields of the next edit of the clip that is shown."""
        if run is None:
            raise shown(SettingError("There is no edit yet: edit a clip first."))
        with collecting() as errors:
            masks, changes = painted_change(run, painted_masks(event._data), event)
        for error in errors:
            raise shown(error)
        folder = self.visit(request).folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"painted-{secrets.token_urlsafe(8)}.zip"
        save_mask_zip(path, masks)
        return same_clip(run, selection="", site="", timestep="", masks=file_data(path), changes=changes)

    async def tell_first_cost(self, *settings: Any) -> str:
        """`tell_cost` for a page that has just been painted. The server's first page sets off the warming up: an
        example in a few steps, which loads the model and measures what edits cost here."""
        if self._warm and not self._warming:
            clip, own = self._warm.clip, replace(self._warm.settings, steps=WARM)
            try:
                self._warming = self._worker.submit(lambda: self._warm_up(clip, own))
            except QueueFull:  # visitors' own edits measure it
                return self.tell_cost(*settings)
        while self._warming and not self._warming.snapshot.ended:
            await asyncio.sleep(0.2)
        return self.tell_cost(*settings)

    def _warm_up(self, clip: Path, settings: Settings) -> Generator[Step, None, None]:
        with tempfile.TemporaryDirectory(prefix="visit-", dir=self._folder) as folder:
            out = Path(folder) / "out"
            out.mkdir()
            try:
                self.estimates.learn(settings, (yield from self._body(clip, settings, out, Path(folder))))
            except Exception:
                log.exception("the warming up failed, so the first edit will measure this server")

    def tell_cost(
        self,
        clip: str | None,
        task: str,
        backbone: str,
        steps: float,
        solver: str,
        frames: float,
        size: str,
        features: str,
        low_vram: bool,
        method: str,
        null_text_steps: str = "",
        strength: str = "",
        source_guidance: str = "",
    ) -> str:
        """What an edit of a clip with these settings will cost on this server."""
        try:
            settings = make_settings(
                source="",
                edit="",
                task=task,
                method=method,
                backbone=backbone,
                steps=steps,
                solver=solver,
                frames=frames,
                size=read_size(size),
                features=features,
                low_vram=low_vram,
                null_text_steps=optional(null_text_steps),
                strength=optional(strength),
                source_guidance=optional(source_guidance),
            )
            settings = fitting(Path(clip), settings) if clip else settings
        except InputError:
            return status.note("&nbsp;")
        settings = sized(settings, Path(clip) if clip else None)
        return status.estimate(self.estimates.seconds(settings), self.estimates.memory(settings))

    def _cancelled(self, session: str) -> int:
        """How often a page's visitor has pressed Cancel."""
        return self._visits.of(session).cancelled if self._visits.is_page(session) else 0

    def _follow(self, job: Job, settings: Settings) -> Generator[tuple[Any, ...], None, None]:
        """The status at each change, then the results."""
        glance, left, early = "", self.estimates.countdown(settings), False
        for now in job.follow():
            if job.cancelled and now.state != "done":
                yield status.cancelled(now.shown is not None), *SKIPPED
                return
            if job.error:
                break
            if now.step and now.step.picture is not None:
                glance = picture_uri(now.step.picture)
            if not now.ended:
                line = status.running(now, "" if now.shown else glance, *left(now))
                yield _results(now.shown, line) if now.shown and not early else (line, *SKIPPED)
                early = now.shown is not None
        with collecting() as errors:
            run: Run = job.result()
        for error in errors:
            yield status.failed((told := shown(error)).message, early), *SKIPPED
            raise told
        yield _results(run, status.done(run.report, job.snapshot.elapsed))

    def _work(self, clip: Path, settings: Settings, visit: Visit) -> Generator[Step, None, Run]:
        """One job in a fresh folder; nothing is left of it unless it comes as far as to be shown."""
        folder = visit.folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        run: Run | None = None

        def keep(step: Step) -> Step:
            nonlocal run
            if step.result is None:
                return step
            visit.keep(run := Run(folder, step.result, clip))
            return replace(step, result=run)

        try:
            report = yield from mapped(self._body(clip, settings, folder, visit.inversions), keep)
        except BaseException:
            if run is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self.estimates.learn(settings, report)
        visit.keep(run := Run(folder, report, clip))
        self._visits.bound(visit)
        return run


def own_folder(run: Run, visit: Visit) -> Path | None:
    """Where what a visitor asks for of a run is kept, if it is not the run's own folder: what ships is everybody's."""
    return visit.beside(run) if run.folder.is_relative_to(EXAMPLES) else None


def _report(example: Example) -> Path:
    """Of the edit that ships with an example."""
    return example.made / "report.json"


def _results(run: Run, line: str) -> tuple[Any, ...]:
    """A run as the page's and the API's outputs; what is yet to come of it is None."""
    videos = [run.folder / f"{name}.mp4" for name in VIDEOS]
    return line, *(file_data(path) if path.exists() else None for path in videos), run.report, _files(run), run


def with_others(made: Any, run: Run) -> list[Any]:
    """A file that was made of a run, then all others of it."""
    return [made, *(one for one in _files(run) if one["orig_name"] != made["orig_name"])]


def numbered_runs(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """A choice of runs: what each is called, by its number, and its folder's name."""
    return [(f"{i + 1}: {shorten(run.name, 44, placeholder='…')}", run.folder.name) for i, run in enumerate(runs)]


def _files(run: Run) -> list[Any]:
    """All of a run's files; those that begin with a dot are still being written."""
    paths = sorted(path for path in run.folder.iterdir() if not path.name.startswith("."))
    return [file_data(path) for path in paths if path.is_file()]


def _address(request: gr.Request) -> str:
    """The network address that a request came from, as the server sees it; "" where it has none."""
    return getattr(getattr(request, "client", None), "host", None) or ""


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
