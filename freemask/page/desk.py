"""The desk: takes visitors' requests to the worker, brings back what it made, and remembers what is whose.

A visitor is a browser tab: it keeps a token, so that after a reload it finds the job that still runs, or the last
result. Everything a visitor has lies in one folder with a name that cannot be guessed: uploads of masks, kept
inversions, the folders of the last runs. It is deleted a while after the tab was left.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import secrets
import shutil
import tempfile
import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np

from ..errors import SettingError
from ..explorer import unpack_bits
from ..gallery import save_mask_zip
from ..jobs import Job, Step, Worker
from ..presets import Example, Settings, make_settings
from ..prompts import check
from ..video import read_clip
from . import status
from .bodies import Body
from .estimate import Estimates
from .fields import FIELDS, field_values, optional, read_size
from .wire import collecting, file_data, picture_uri, shown
from .zero import in_context

__all__ = ["Desk", "Run"]

AWAY = 15 * 60.0  # seconds that a visitor's files and job outlive the tab
WARM, PATIENCE = 4, 60.0  # steps of the warming up, and seconds that an estimate waits for it
RUNS = 6  # of a visitor that are kept, the newest
VIDEOS = ("source", "reconstruction", "edited")
SKIPPED: tuple[Any, ...] = (gr.skip(),) * 6


@dataclass(frozen=True)
class Run:
    """A finished edit: the folder with its files, which only this visitor is given, and the report."""

    folder: Path
    report: dict[str, Any]


@dataclass
class Visit:
    """What one visitor has: a folder, jobs, the last runs, what was asked last, and how many pages look on."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    asked: tuple[Path, Settings] | None = None
    pages: int = 0
    left: threading.Timer | None = None


class Desk:
    """`folder` is where visitors' files are kept, `away` how long they stay when the tab was left, in seconds; `warm`
    is an example to measure the server with."""

    def __init__(
        self,
        worker: Worker,
        body: Body,
        *,
        folder: Path,
        estimates: Estimates | None = None,
        warm: Example | None = None,
        away: float = AWAY,
    ) -> None:
        self._worker, self._body, self._folder, self._away = worker, body, folder, away
        self._visits: dict[str, Visit] = {}
        self._tokens: dict[str, str] = {}  # of the sessions that a page began
        self._warm, self._warming, self._lock = warm, cast(Job | None, None), threading.Lock()
        self.estimates = estimates or Estimates()

    def edit(
        self,
        request: gr.Request,
        clip: str | None,
        source: str | None,
        edit: str | None,
        task: str = "style",
        word: str | None = None,
        backbone: str = "mini",
        steps: float = 25,
        guidance: float = 7.5,
        frames: float = 8,
        start: float | None = None,
        fps: str | None = None,
        size: str | None = None,
        tau: str | None = None,
        alpha_self: str | None = None,
        alpha_cross: str | None = None,
        alpha_temporal: str | None = None,
        alpha_latent: str | None = None,
        dilate: str | None = None,
        union: bool = False,
        selection: str | None = None,
        site: str | None = None,
        timestep: str | None = None,
        masks: str | None = None,
        features: str = "replay",
        eta: float = 0,
        seed: float | None = None,
    ) -> Generator[tuple[Any, ...], None, None]:
        """Edit a clip by text. Yields the progress at each step, then the videos, the report and all files.

        `word` is the source prompt's word that is edited: empty infers it. `start` is in seconds; `fps` empty takes 8
        or, where that is lower, the clip's own; `size` is WIDTHxHEIGHT in pixels, empty for the backbone's own. tau
        and the alphas are shares from 0 to 1, `dilate` cells of the latent grid, `union` joins the mask with the edit
        word's own, `selection` is codebook, adaptive or consensus: empty means the task's own. Or a mask of your own:
        `site`, a layer such as "up 3.0", with `timestep` or each step's own; or `masks`, a zip of PNGs, one a frame.
        """
        with collecting() as errors:
            settings = make_settings(
                source=source or "",
                edit=edit or "",
                task=task,
                word=(word or "").strip() or None,
                backbone=backbone,
                steps=steps,
                guidance=guidance,
                frames=frames,
                start=start or 0.0,
                fps=optional(fps),
                size=read_size(size or ""),
                tau=optional(tau),
                alpha_self=optional(alpha_self),
                alpha_cross=optional(alpha_cross),
                alpha_temporal=optional(alpha_temporal),
                alpha_latent=optional(alpha_latent),
                dilate=optional(dilate),
                union=union or None,
                selection=optional(selection),
                site=(site or "").strip() or None,
                timestep=optional(timestep),
                masks=masks or None,
                features=features,
                eta=eta,
                seed=seed or 0,
            )
            path = Path(clip) if clip else None
            check(path, settings)
            assert path is not None  # or check has refused it
            visit = self._visit(request)
            context = contextvars.copy_context()
            job = self._worker.submit(lambda: in_context(context, self._work(path, settings, visit)))
        for error in errors:
            yield status.failed((told := shown(error)).message), *SKIPPED
            raise told
        visit.jobs = [old for old in visit.jobs if not old.snapshot.ended] + [job]
        visit.asked = path, settings
        returns = request.session_hash in self._tokens
        try:
            yield from self._follow(job)
        finally:
            if not returns:  # a client of the API
                job.cancel()
                self.leave(request)

    def arrive(self, token: str, request: gr.Request) -> Generator[tuple[Any, ...], None, None]:
        """A page was opened, maybe again: follow the visitor's job or show the last result."""
        visit = self._greet(token, request)
        visit.pages += 1
        jobs = [job for job in visit.jobs if not job.snapshot.ended]
        if jobs:
            yield from self._follow(jobs[-1])
        elif visit.runs:
            run = visit.runs[-1]
            yield _results(run, status.done(run.report, run.report["seconds"]["total"]))
        else:
            yield gr.skip(), *SKIPPED

    def recall(self, token: str, request: gr.Request) -> list[Any]:
        """The fields as the last edit of a visitor who comes back had them."""
        asked = self._greet(token, request).asked
        if asked is None or not asked[0].exists():
            return [gr.skip()] * FIELDS
        return [file_data(asked[0]), *field_values(asked[1])]

    def leave(self, request: gr.Request) -> None:
        """A page was closed or is loaded again: what is its visitor's goes, unless they come back in time."""
        key = self._key(request)
        self._tokens.pop(request.session_hash or "", None)
        visit = self._visits.get(key)
        if visit is None:
            return
        visit.pages = max(0, visit.pages - 1)
        if visit.left:
            visit.left.cancel()
        visit.left = threading.Timer(self._away, self._forget, [key])
        visit.left.daemon = True
        visit.left.start()

    def cancel(self, request: gr.Request) -> str:
        """Cancel what this visitor has queued or running."""
        jobs = [job for job in self._visit(request).jobs if not job.snapshot.ended]
        for job in jobs:
            job.cancel()
        return status.cancelled() if jobs else status.idle()

    def history(self, request: gr.Request) -> tuple[Any, str]:
        """The choices among this visitor's last runs, and the table that compares them."""
        runs = self._visit(request).runs
        names = [(f"{i + 1}", i) for i in range(len(runs))]
        choices = gr.Radio(choices=names, value=len(runs) - 1 if runs else None, visible=len(runs) > 1)
        return choices, status.history([(one.report, _poster(one.folder)) for one in runs])

    def show_run(self, index: int, request: gr.Request) -> tuple[Any, ...]:
        """One of this visitor's last runs again."""
        runs = self._visit(request).runs
        run = runs[min(int(index), len(runs) - 1)]
        return _results(run, status.done(run.report, run.report["seconds"]["total"]))

    def show_example(self, example: Example) -> tuple[Any, ...]:
        """The edit that ships with an example, where it does."""
        path = example.made / "report.json"
        if not path.exists():
            return gr.skip(), *SKIPPED
        run = Run(example.made, json.loads(path.read_text(encoding="utf-8")))
        return _results(run, status.done(run.report, None))

    def take_painting(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Masks painted in the studio, kept as a zip, as the next edit's selection, site, timestep, masks and τ."""
        painted = event._data
        with collecting() as errors:
            h, w = int(painted["h"]), int(painted["w"])
            if not (0 < h <= 2048 and 0 < w <= 2048):
                raise SettingError("The painted mask is too large: 2048 x 2048 at most.")
            masks = unpack_bits(str(painted["data"]), (h, w))
        for error in errors:
            raise shown(error)
        folder = self._visit(request).folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"painted-{secrets.token_urlsafe(8)}.zip"
        save_mask_zip(path, masks)
        return "", "", "", file_data(path), gr.skip()

    def tell_first_cost(self, *settings: Any) -> str:
        """`tell_cost` for a page that has just been painted. The server's first page sets off the warming up: an
        example in a few steps, which loads the model and measures what edits cost here."""
        with self._lock:
            if self._warm and not self._warming:
                own, clip = replace(self._warm.settings, steps=WARM), self._warm.clip
                self._warming = self._worker.submit(lambda: self._warm_up(clip, own))
        if self._warming:
            self._warming.wait(PATIENCE)
        return self.tell_cost(*settings)

    def _warm_up(self, clip: Path, settings: Settings) -> Generator[Step, None, None]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            out.mkdir()
            self.estimates.learn(settings, (yield from self._body(clip, settings, out, Path(folder))))

    def tell_cost(self, task: str, backbone: str, steps: float, frames: float, size: str, features: str) -> str:
        """What an edit with these settings will cost on this server."""
        try:
            settings = make_settings(
                source="",
                edit="",
                task=task,
                backbone=backbone,
                steps=steps,
                frames=frames,
                size=read_size(size),
                features=features,
            )
        except SettingError:
            return status.note("&nbsp;")
        return status.estimate(self.estimates.seconds(settings), self.estimates.memory(settings))

    def _follow(self, job: Job) -> Generator[tuple[Any, ...], None, None]:
        """The status at each change, then the results."""
        glance = ""
        for now in job.follow():
            if now.step and now.step.picture is not None:
                glance = picture_uri(now.step.picture)
            if not now.ended:
                yield status.running(now, glance), *SKIPPED
        if now.state == "cancelled":
            yield status.cancelled(), *SKIPPED
            return
        with collecting() as errors:
            run: Run = job.result()
        for error in errors:
            yield status.failed((told := shown(error)).message), *SKIPPED
            raise told
        yield _results(run, status.done(run.report, job.snapshot.elapsed))

    def _work(self, clip: Path, settings: Settings, visit: Visit) -> Generator[Step, None, Run]:
        """One job in a fresh folder; nothing is left of it unless it ends well."""
        folder = visit.folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        try:
            report = yield from self._body(clip, settings, folder, visit.folder / "inversions")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.estimates.learn(settings, report)
        run = Run(folder, report)
        visit.runs.append(run)
        for old in visit.runs[:-RUNS]:
            visit.runs.remove(old)
            shutil.rmtree(old.folder, ignore_errors=True)
        return run

    def _greet(self, token: str, request: gr.Request) -> Visit:
        """The visit of a tab that tells its token."""
        if len(token) >= 16 and request.session_hash:
            self._tokens[request.session_hash] = token
        return self._visit(request)

    def _key(self, request: gr.Request) -> str:
        session = request.session_hash or ""
        return self._tokens.get(session, session)

    def _visit(self, request: gr.Request) -> Visit:
        """What is this visitor's, who is here; the browser names the token, so it is not used as a path."""
        key = self._key(request)
        name = f"visit-{hashlib.sha256(key.encode()).hexdigest()}"
        visit = self._visits.setdefault(key, Visit(self._folder / name))
        if visit.left:
            visit.left.cancel()
        return visit

    def _forget(self, key: str) -> None:
        visit = self._visits.get(key)
        if visit is None or visit.pages:
            return
        del self._visits[key]
        for job in visit.jobs:
            job.cancel()
        for job in visit.jobs:
            job.wait()
        shutil.rmtree(visit.folder, ignore_errors=True)


def _results(run: Run, line: str) -> tuple[Any, ...]:
    """A run as the page's and the API's outputs."""
    videos = [file_data(run.folder / f"{name}.mp4") for name in VIDEOS]
    files = [file_data(path) for path in sorted(run.folder.iterdir()) if path.is_file()]
    return line, *videos, run.report, files, run


def _poster(folder: Path) -> str:
    """The first and the last frame of an edit as a data URI."""
    clip = read_clip(folder / "edited.mp4", frames=2, fps=None, size=None)
    return picture_uri(np.hstack(list(clip.frames)))
