"""Who is here and what is theirs: a visitor is a browser tab, or a client of the API.

A tab keeps a token, so that after a reload it finds the job that still runs, or the last result. What a visitor's edits
make lies in one folder with a name that cannot be guessed, and is deleted a while after nobody looks on any more.
Uploads lie in Gradio's own cache, for a day at most.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..jobs.worker import Job
from ..settings import Settings

__all__ = ["Run", "Visit", "Visits"]

RUNS = 6  # of a visitor that are kept, the newest


@dataclass(frozen=True, eq=False)  # Gradio tells by identity whether another is shown
class Run:
    """An edit that can be shown: the folder with its files, which only this visitor is given, the report, and the clip.
    Its reconstruction and its figures may be yet to come, or not, if it was cancelled then."""

    folder: Path
    report: dict[str, Any]
    clip: Path


@dataclass
class Visit:
    """What one visitor has: a folder, jobs, the last runs, what was asked last, and who looks on (sessions, calls)."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    asked: tuple[Path, Settings] | None = None
    eyes: set[str] = field(default_factory=set)
    cancelled: int = 0  # how often; an edit whose input is still being checked then ends as it begins
    left: threading.Timer | None = None
    _runs: list[Run] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """The last runs whose files are still there."""
        return [run for run in list(self._runs) if (run.folder / "edited.mp4").exists()]

    def keep(self, run: Run) -> None:
        """Add a run, in the place of what was shown of it before; the oldest goes."""
        self._runs = [*(one for one in self._runs if one.folder != run.folder), run]
        while len(self._runs) > RUNS:
            shutil.rmtree(self._runs.pop(0).folder, ignore_errors=True)

    @property
    def active(self) -> list[Job]:
        """Jobs that wait or run and were not cancelled."""
        return [job for job in self.jobs if not job.snapshot.ended and not job.cancelled]


class Visits:
    """The visits of a server. `folder` is where their files are kept, `away` how long in seconds nobody looks on
    before they go. Any thread may call."""

    def __init__(self, folder: Path, *, away: float) -> None:
        self._folder, self._away, self._lock = folder, away, threading.Lock()
        self._visits: dict[str, Visit] = {}
        self._tokens: dict[str, str] = {}  # of the sessions that a page began

    def greet(self, token: str, session: str) -> Visit:
        """The visit of a page that tells its tab's token."""
        with self._lock:
            if len(token) >= 16 and session:
                self._tokens[session] = token
        return self.of(session)

    def is_page(self, session: str) -> bool:
        """Whether a page began the session, rather than a client of the API."""
        return session in self._tokens

    def of(self, session: str) -> Visit:
        """The visit of a session; a page that asks for it is there to see it."""
        with self._lock:
            key = self._tokens.get(session, session)
            visit = self._visits.get(key)
            if visit is None:
                visit = self._visits[key] = Visit(self._folder / f"visit-{secrets.token_urlsafe(16)}")
            if session in self._tokens:
                self._look(visit, session)
            return visit

    def look(self, visit: Visit, eye: str) -> None:
        """Somebody looks on."""
        with self._lock:
            self._look(visit, eye)

    def leave(self, session: str, eye: str | None = None) -> None:
        """A session, or another eye on its visit, is gone: unless somebody looks on, the visit goes in a while."""
        with self._lock:
            key = self._tokens.get(session, session)
            visit = self._visits.get(key)
            if visit is None:
                return
            visit.eyes.discard(eye or session)
            if visit.eyes:
                return
            if visit.left:
                visit.left.cancel()
            visit.left = threading.Timer(self._away, self._forget, [key])
            visit.left.daemon = True
            visit.left.start()

    def _look(self, visit: Visit, eye: str) -> None:
        visit.eyes.add(eye)
        if visit.left:
            visit.left.cancel()
            visit.left = None

    def _forget(self, key: str) -> None:
        with self._lock:
            visit = self._visits.get(key)
            if visit is None or visit.eyes:
                return
            del self._visits[key]
            self._tokens = {session: token for session, token in self._tokens.items() if token != key}
        for job in visit.jobs:
            job.cancel()
        for job in visit.jobs:
            job.wait()
        shutil.rmtree(visit.folder, ignore_errors=True)
