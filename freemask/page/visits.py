"""Who is here and what is theirs: a visitor is a browser tab, or a client of the API.

A tab keeps a token, so that after a reload it finds the job that still runs, or the last result. What a visitor's edits
make lies in one folder with a name that cannot be guessed, and is deleted a while after nobody looks on any more.
Uploads lie in Gradio's own cache, for a day at most.

The folder's name is a digest of the token, so that a tab finds its edits and inversions after the server has begun
anew. A server that has its folder to itself then clears what was left half made there, and bounds what all visitors
together take.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..jobs.worker import Job
from ..pictures.sheets import SCREEN, Ink
from ..settings import REPORT, Settings

__all__ = ["Run", "Visit", "Visits"]

RUNS = 6  # of a visitor that are kept, the newest
DAY = 24 * 60 * 60.0
NAME = ".name"  # in a run's folder
CLIP = ".clip"  # in a run's folder, the path of its clip
INVERSIONS = "inversions"


@dataclass(frozen=True, eq=False)  # Gradio tells by identity whether another is shown
class Run:
    """An edit that can be shown: the folder with its files, which only this visitor is given, the report, and the clip.
    Its reconstruction and its figures may be yet to come, or not, if it was cancelled then."""

    folder: Path
    report: dict[str, Any]
    clip: Path

    @property
    def name(self) -> str:
        """What its visitor calls it; at first its edit prompt."""
        with suppress(OSError):
            return (self.folder / NAME).read_text(encoding="utf-8")
        return str(self.report["settings"]["edit"])


@dataclass
class Visit:
    """What one visitor has: a folder, jobs, the last runs, what was asked last, and who looks on (sessions, calls)."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    asked: tuple[Path, Settings] | None = None
    looking: Job | None = None  # for the maps of a word
    eyes: set[str] = field(default_factory=set)
    cancelled: int = 0  # how often; an edit whose input is still being checked then ends as it begins
    due: float | None = None  # when it goes, by the monotonic clock, where nobody looks on
    ink: Ink = SCREEN  # of what is drawn for its page
    _runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Finds the runs that an earlier server left in the folder."""
        reports = sorted(self.folder.glob(f"*/{REPORT}"), key=lambda path: path.stat().st_mtime_ns)
        self._runs += [run for report in reports if (run := _run(report.parent))]

    @property
    def inversions(self) -> Path:
        """The folder where inversions are kept."""
        return self.folder / INVERSIONS

    @property
    def runs(self) -> list[Run]:
        """The last runs whose files are still there."""
        return [run for run in list(self._runs) if (run.folder / "edited.mp4").exists()]

    def keep(self, run: Run) -> None:
        """Add a run, in the place of what was shown of it before; the oldest goes."""
        with suppress(OSError):  # where the disk is full, it is not found after another start
            (run.folder / CLIP).write_text(str(run.clip), encoding="utf-8")
        self._runs = [*(one for one in self._runs if one.folder != run.folder), run]
        while len(self._runs) > RUNS:
            self.drop()

    def rename(self, run: Run, name: str) -> None:
        """Another name for a run; "" for the first. One that is just being deleted needs none."""
        path = run.folder / NAME
        with suppress(FileNotFoundError):
            path.write_text(name, encoding="utf-8") if name else path.unlink()

    def holds(self, run: Run | None) -> bool:
        """Whether a run is one of the last, rather than another's or what ships."""
        return run is not None and any(one.folder == run.folder for one in self.runs)

    def beside(self, run: Run) -> Path:
        """The folder for what is made of a run and does not belong into its own."""
        return self.folder / f"of-{run.folder.name}"

    def delete(self, run: Run) -> None:
        """Delete a run, its files, and what was made of it."""
        self._runs = [one for one in self._runs if one.folder != run.folder]
        for folder in (run.folder, self.beside(run)):
            shutil.rmtree(folder, ignore_errors=True)

    def drop(self) -> None:
        """Delete the oldest run."""
        self.delete(self._runs[0])

    @property
    def active(self) -> list[Job]:
        """Jobs that wait or run and were not cancelled."""
        return [job for job in self.jobs if not job.snapshot.ended and not job.cancelled]


class Visits:
    """The visits of a server. `folder` is where their files are kept, `away` how long in seconds nobody looks on
    before they go. `limit` bytes bound all of them in a folder that is FreeMask's own: what an earlier server left
    half made or for over a day there is cleared first. Any thread may call."""

    def __init__(self, folder: Path, *, away: float, limit: float | None = None) -> None:
        self._folder, self._away, self._limit, self._lock = folder, away, limit, threading.Lock()
        self._visits: dict[str, Visit] = {}  # who left last is last
        self._found: dict[Path, float] = {}  # an earlier server's folders, and when they go
        self._timer: threading.Timer | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            with _sole(folder) as sole:
                if sole:
                    self._clear()
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
                lasting = session in self._tokens
                visit = self._visits[key] = Visit(_place(self._folder, key if lasting else secrets.token_urlsafe(16)))
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
            self._visits[key] = self._visits.pop(key)
            visit.due = time.monotonic() + self._away
            self._wake()

    def _look(self, visit: Visit, eye: str) -> None:
        visit.eyes.add(eye)
        visit.due = None

    def _wake(self) -> None:
        """One timer waits for the first that is due, however many there are. Needs the lock."""
        due = [*self._found.values(), *(visit.due for visit in self._visits.values() if visit.due is not None)]
        if self._timer is None and due:
            self._timer = threading.Timer(max(0.0, min(due) - time.monotonic()), self._sweep)
            self._timer.daemon = True
            self._timer.start()

    def _sweep(self) -> None:
        """Forgets what is due."""
        with self._lock:
            self._timer, now = None, time.monotonic()
            gone = [key for key, visit in self._visits.items() if visit.due is not None and visit.due <= now]
            found = [folder for folder, due in self._found.items() if due <= now]
            here = [visit.folder for visit in self._visits.values()]
            for folder in found:
                del self._found[folder]
                if folder not in here:
                    shutil.rmtree(folder, ignore_errors=True)
        for key in gone:
            self._forget(key)
        with self._lock:
            self._wake()

    def _forget(self, key: str) -> None:
        with self._lock:
            visit = self._visits.get(key)
            if visit is None or visit.eyes:
                return
            del self._visits[key]
            self._tokens = {session: token for session, token in self._tokens.items() if token != key}
        jobs = [*visit.jobs, *([visit.looking] if visit.looking else [])]
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.wait()
        shutil.rmtree(visit.folder, ignore_errors=True)

    def bound(self, present: Visit) -> None:
        """Where all files take more than they may, those go that nobody looks at, who left first first, then the older
        runs of who is here; but not the last of the `present` visit, in whose job this is called."""
        if self._limit is None or _size(self._folder) <= self._limit:
            return
        for key, visit in list(self._visits.items()):
            if visit is not present and not visit.eyes and not visit.active:
                self._forget(key)
                if _size(self._folder) <= self._limit:
                    return
        for visit in list(self._visits.values()):
            while len(visit.runs) > 1:
                visit.drop()
                if _size(self._folder) <= self._limit:
                    return

    def _clear(self) -> None:
        """Clears what an earlier server left: half-made files now, visits to which nobody comes back in a while."""
        for folder in self._folder.glob("visit-*"):
            for part in folder.rglob(".*.part"):
                part.unlink()
            for one in folder.iterdir():
                if one.is_dir() and one.name != INVERSIONS and not _run(one):
                    shutil.rmtree(one, ignore_errors=True)
            self._found[folder] = time.monotonic() + self._away
        for upload in self._folder.glob("[0-9a-f]" * 64):
            if time.time() - upload.stat().st_mtime > DAY:
                shutil.rmtree(upload, ignore_errors=True)
        with self._lock:
            self._wake()


def _run(folder: Path) -> Run | None:
    """The run in a folder, None where it is not whole."""
    try:
        report, clip = ((folder / name).read_text(encoding="utf-8") for name in (REPORT, CLIP))
        return Run(folder, json.loads(report), Path(clip))
    except (OSError, ValueError):
        return None


def _place(folder: Path, token: str) -> Path:
    """A visit's folder, whose name tells nothing of its token."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).decode()
    return folder / f"visit-{digest[:22]}"


@contextmanager
def _sole(folder: Path) -> Iterator[bool]:
    """Whether no other server uses a folder, for which others wait meanwhile; that this one does is known until its
    process ends. False where the system cannot tell."""
    try:
        import fcntl

        held = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        fcntl.flock(held, fcntl.LOCK_SH)


def _size(folder: Path) -> int:
    """Bytes of all files in the visits of a folder."""
    total = 0
    for path in folder.glob("visit-*/**/*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total
