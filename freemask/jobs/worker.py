"""One background thread that runs generators in turn: queue, progress, cancel, result.

Nothing here knows what is run. A job is a factory that returns a generator; the generator yields a `Step` as each piece
of work is done and may return a value. Its caller watches the `Job`; cancelling closes the generator where it last
yielded, so a job ends within one step and its `finally` blocks run in the thread that owns it.

    worker = Worker(limit=8)
    job = worker.submit(lambda: work(clip))
    for state in job.follow():            # a snapshot each time something changed
        print(state.place, state.step, state.eta)
    job.result()
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from traceback import clear_frames
from types import TracebackType
from typing import Any, Literal, Self

from ..errors import FreeMaskError
from ..steps import Step

__all__ = ["Cancelled", "Countdown", "HandedBack", "Job", "QueueFull", "Snapshot", "State", "Work", "Worker"]

State = Literal["waiting", "running", "done", "cancelled", "failed"]


Work = Callable[[], Generator[Step, None, Any]]


class QueueFull(FreeMaskError):
    """The queue holds as many jobs as it may: try again when one has ended."""


class Cancelled(FreeMaskError):
    """The job was cancelled, so it has no result."""


class HandedBack(FreeMaskError):
    """The worker ended before the job did; the message says why, and what to do."""


CLOSED = "The server stops, so the edit was handed back: load the page again in a minute and press Edit."
DIED = "The thread that makes edits died under this one, and a fresh one has its place: press Edit again."


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment.

    place:   jobs ahead in the queue, the running one counted; 0 once it runs or has ended.
    step:    the latest step, None before the first.
    elapsed: seconds since the job began to run, 0 while it waits.
    eta:     seconds left in the present stage, None while nothing is known.
    since:   seconds since the latest step.
    shown:   what can be shown already: the latest step's `result` that was one.
    timed:   how many of a stage's steps were timed and the seconds that they took, by stage. The first step of a stage
             is not, since what comes before it (loading, warming up) is no step.
    """

    state: State
    place: int
    step: Step | None
    elapsed: float
    eta: float | None
    since: float = 0.0
    timed: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    shown: Any = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "cancelled", "failed")


class Countdown:
    """The seconds left as a person is told them: they fall, and where a new estimate is higher they stand still until
    time has caught up with it. Only one that is higher by half is told as it is: the work has become slower."""

    def __init__(self) -> None:
        self._told: float | None = None

    def tell(self, left: float) -> float:
        """What is told where `left` is the newest estimate."""
        if self._told is None or left < self._told or left > 1.5 * self._told + 5.0:
            self._told = left
        return self._told


@dataclass(eq=False)
class Job:
    """A submitted piece of work. Read it from any thread; only its worker writes to it."""

    id: str
    _work: Work | None
    _worker: Worker = field(repr=False)
    _state: State = "waiting"
    _step: Step | None = None
    _version: int = 0
    _cancel: bool = False
    _began: float = 0.0
    _ended: float = 0.0
    _timed: dict[str, tuple[int, float]] = field(default_factory=dict)
    _last: float = 0.0
    _shown: Any = None
    _value: Any = None
    _error: BaseException | None = None

    @property
    def snapshot(self) -> Snapshot:
        with self._worker._changed:
            return self._look()

    @property
    def error(self) -> BaseException | None:
        """What the generator raised, None where it raised nothing."""
        return self._error

    @property
    def cancelled(self) -> bool:
        """Whether it was told to end, and not handed back."""
        return self._cancel and self._error is None

    def cancel(self, why: HandedBack | None = None) -> None:
        """End the job: at once while it waits, within one step while it runs. Those who follow it hear of it now.
        Harmless on a job that has ended. `why` is the error that it then failed with."""
        worker = self._worker
        with worker._changed:
            if self._look().ended:
                return
            self._cancel, self._error = True, self._error or why
            if self._state == "waiting":
                worker._waiting.remove(self)
                worker._settle(self, "failed" if self._error else "cancelled")
            worker._tell(self, *worker._waiting)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end. False when `timeout` seconds passed first."""
        with self._worker._changed:
            return self._worker._changed.wait_for(lambda: self._look().ended, timeout)

    def follow(self, *, every: float = 1.0) -> Iterator[Snapshot]:
        """Snapshots until the end, which is the last one: one at each change, and one each `every` seconds without."""
        seen = -1

        def changed() -> bool:
            return self._version != seen

        while True:
            with self._worker._changed:
                self._worker._changed.wait_for(changed, every)
                seen, now = self._version, self._look()
            yield now
            if now.ended:
                return

    def result(self, timeout: float | None = None) -> Any:
        """What the generator returned. Raises its error, `HandedBack` at once, `Cancelled`, or `TimeoutError`."""
        if self._error is None and not self.wait(timeout):
            raise TimeoutError(f"job {self.id} has not ended within {timeout} seconds")
        if self._error is not None:
            raise self._error
        if self._state == "cancelled":
            raise Cancelled("The job was cancelled.")
        return self._value

    def _look(self) -> Snapshot:
        now = self._ended or time.monotonic()
        elapsed = now - self._began if self._began else 0.0
        since = now - self._last if self._step else 0.0
        place, timed = self._worker._place(self), dict(self._timed)
        return Snapshot(self._state, place, self._step, elapsed, self._eta(since), since, timed, self._shown)

    def _eta(self, since: float) -> float | None:
        """The stage's mean time a step over the steps that are left, less what has passed since the last one; a step
        that is late does not count for more than one."""
        step = self._step
        done, took = self._timed.get(step.stage, (0, 0.0)) if step else (0, 0.0)
        if step is None or not done or self._state != "running":
            return None
        each, left = took / done, step.total - step.index
        return each * left - min(since, each) if left else 0.0

    def _progress(self, step: Step) -> None:
        now, before = time.monotonic(), self._step
        if before and before.stage == step.stage:
            done, took = self._timed.get(step.stage, (0, 0.0))
            self._timed[step.stage] = done + step.index - before.index, took + now - self._last
        self._step, self._last = step, now
        if step.result is not None:
            self._shown = step.result


class Worker:
    """A thread that runs one job at a time, first in, first out.

    limit: jobs that may wait; `submit` raises `QueueFull` beyond it.
    """

    def __init__(self, *, limit: int = 8, name: str = "worker") -> None:
        self._limit = limit
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._name = name
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Queue `work`, which is called in the worker's thread when its turn comes. Raises QueueFull, HandedBack once
        the worker is closed."""
        with self._changed:
            if self._closed:
                raise HandedBack(CLOSED)
            if len(self._waiting) >= self._limit:
                raise QueueFull(f"{self._limit} jobs are waiting already. Try again when one of them has ended.")
            job = Job(secrets.token_urlsafe(12), work, self)
            self._waiting.append(job)
            self._changed.notify_all()
            return job

    def close(self, *, timeout: float | None = 10.0) -> None:
        """Hand back what waits and, within one step, what runs, and end the thread. Harmless the second time."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                job.cancel(HandedBack(CLOSED))
            self._changed.notify_all()
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _place(self, job: Job) -> int:
        if job._state != "waiting":
            return 0
        return self._waiting.index(job) + (self._running is not None)

    def _settle(self, job: Job, state: State) -> None:
        """Write the end of a job, and forget its work so that what the closure held is freed. Needs the lock."""
        job._state, job._ended, job._work = state, time.monotonic(), None

    def _tell(self, *jobs: Job) -> None:
        """These jobs changed: wake those who follow them. Needs the lock."""
        for job in jobs:
            job._version += 1
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                state = self._consume(job)
                with self._changed:
                    self._running = None
                    self._settle(job, state)
                    self._tell(job, *self._waiting)
                del job
        finally:
            with self._changed:
                self._outlive()

    def _outlive(self) -> None:
        """Where the thread dies, its job is handed back and a fresh one serves the others. Needs the lock."""
        if job := self._running:
            self._running, job._error = None, HandedBack(DIED)
            self._settle(job, "failed")
            self._tell(job, *self._waiting)
        if not self._closed:
            self._start()

    def _next(self) -> Job | None:
        """The first in the queue, now running; None once the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._waiting))
            if not self._waiting:
                return None
            job = self._running = self._waiting.popleft()
            job._state, job._began = "running", time.monotonic()
            self._tell(job, *self._waiting)
            return job

    def _consume(self, job: Job) -> State:
        """Run the generator to its end, its failure or its cancelling. Never raises: the thread serves the next job."""
        assert job._work is not None
        try:
            steps = job._work()
            while not job._cancel:
                try:
                    step = next(steps)
                except StopIteration as end:
                    job._value, job._error = end.value, None
                    return "done"
                with self._changed:
                    job._progress(step)
                    self._tell(job)
            steps.close()
            return "failed" if job._error else "cancelled"
        except BaseException as error:
            clear_frames(error.__traceback__)  # or the error would hold all that the job held
            job._error = error
            return "failed"
