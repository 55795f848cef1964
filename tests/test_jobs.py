"""The worker: first in first out, bounded, cancelled within one step, and honest about what happened."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from types import SimpleNamespace

import pytest

from freemask.jobs.worker import Cancelled, Countdown, HandedBack, QueueFull, Worker
from freemask.steps import Step

PATIENCE = 10.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(limit=2) as running:
        yield running


class Gated:
    """Work of `total` steps, each of which waits for `allow()`; `ended` is set by its own `finally`."""

    def __init__(self, total: int = 3) -> None:
        self.total, self.done = total, 0
        self.started, self.ended = threading.Event(), threading.Event()
        self._gate = threading.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        self._gate.release(steps)

    def __call__(self) -> Generator[Step, None, int]:
        try:
            self.started.set()
            for index in range(1, self.total + 1):
                assert self._gate.acquire(timeout=PATIENCE)
                self.done = index
                yield Step("work", index, self.total)
            return self.done
        finally:
            self.ended.set()


def test_result_and_steps(worker: Worker) -> None:
    work = Gated(3)
    job = worker.submit(work)
    seen = []
    for state in job.follow():
        if state.step and state.step not in seen:
            seen.append(state.step)
        work.allow()
    assert job.result(PATIENCE) == 3
    assert seen == [Step("work", i, 3) for i in (1, 2, 3)]
    assert job.snapshot.state == "done"
    assert job.error is None


def test_first_in_first_out_with_places(worker: Worker) -> None:
    first, second, third = Gated(1), Gated(1), Gated(1)
    jobs = [worker.submit(first)]
    assert first.started.wait(PATIENCE)
    jobs += [worker.submit(second), worker.submit(third)]
    assert [job.snapshot.place for job in jobs] == [0, 1, 2]
    assert len({job.id for job in jobs}) == 3
    first.allow()
    assert second.started.wait(PATIENCE)
    assert not third.started.is_set()
    assert [job.snapshot.place for job in jobs] == [0, 0, 1]
    second.allow()
    third.allow()
    assert [job.result(PATIENCE) for job in jobs] == [1, 1, 1]


def test_the_queue_is_bounded(worker: Worker) -> None:
    running = Gated(1)
    worker.submit(running)
    assert running.started.wait(PATIENCE)
    waiting = [worker.submit(Gated(1)) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 jobs"):
        worker.submit(Gated(1))
    waiting[0].cancel()
    worker.submit(Gated(1)).cancel()
    waiting[1].cancel()
    running.allow()


def test_cancel_ends_a_running_job_within_one_step(worker: Worker) -> None:
    work = Gated(100)
    job = worker.submit(work)
    work.allow(2)
    assert any(state.step and state.step.index == 2 for state in job.follow(every=PATIENCE))
    heard = threading.Event()
    following = iter(job.follow(every=10 * PATIENCE))
    next(following)
    threading.Thread(target=lambda: next(following) and heard.set(), daemon=True).start()
    job.cancel()
    assert heard.wait(PATIENCE) and job.snapshot.state == "running"  # those who follow hear of it before it ends
    work.allow(1)  # the step that was under way
    assert job.wait(PATIENCE)
    assert work.ended.is_set()
    assert work.done == 3
    assert job.snapshot.state == "cancelled"
    with pytest.raises(Cancelled):
        job.result()


def test_cancel_takes_a_waiting_job_out_at_once(worker: Worker) -> None:
    running, waiting, last = Gated(1), Gated(1), Gated(1)
    worker.submit(running)
    assert running.started.wait(PATIENCE)
    job, behind = worker.submit(waiting), worker.submit(last)
    job.cancel()
    assert job.snapshot.state == "cancelled"
    assert not waiting.started.is_set()
    assert behind.snapshot.place == 1
    running.allow()
    last.allow()
    assert behind.result(PATIENCE) == 1


def test_a_failure_is_the_jobs_own_and_the_next_one_runs(worker: Worker) -> None:
    def broken() -> Generator[Step, None, None]:
        yield Step("work", 1, 2)
        raise ValueError("a broken step")

    job = worker.submit(broken)
    with pytest.raises(ValueError, match="a broken step"):
        job.result(PATIENCE)
    assert job.snapshot.state == "failed"
    after = Gated(1)
    after.allow()
    assert worker.submit(after).result(PATIENCE) == 1


def test_a_failure_while_closing_is_told(worker: Worker) -> None:
    gate = Gated(2)

    def work() -> Generator[Step, None, None]:
        try:
            yield from gate()
        finally:
            raise OSError("cannot tidy up")

    job = worker.submit(work)
    assert gate.started.wait(PATIENCE)
    job.cancel()
    gate.allow()
    with pytest.raises(OSError, match="tidy"):
        job.result(PATIENCE)


def test_eta_falls_to_nothing_and_starts_anew_with_a_stage(worker: Worker) -> None:
    gate = Gated(5)

    def work() -> Generator[Step, None, None]:
        for step in gate():
            yield Step("one", step.index, 3) if step.index <= 3 else Step("two", step.index - 3, 2)

    job = worker.submit(work)
    etas: list[float | None] = []
    gate.allow()
    for state in job.follow(every=PATIENCE):
        if state.step and state.state == "running":
            etas.append(state.eta)
            gate.allow()
    assert etas[0] is None
    assert etas[1] is not None and etas[1] >= 0
    assert etas[2] == 0
    assert etas[3] is None


def test_the_time_left_falls_and_waits_for_a_late_step(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("freemask.jobs.worker.time", SimpleNamespace(monotonic=lambda: clock.now))
    took = [3.0, 0.5, 0.6, 0.5, *[1.0, 1.2, 0.8, 1.0] * 9]  # the first few are quicker than the rest
    gate = Gated(len(took))

    def work() -> Generator[Step, None, None]:
        for step, seconds in zip(gate(), took, strict=True):
            clock.now += seconds
            yield step

    job, countdown, etas, told = worker.submit(work), Countdown(), [], []
    gate.allow()
    for state in job.follow(every=PATIENCE):
        if state.step and state.eta is not None:
            etas.append(state.eta)
            told.append(countdown.tell(state.eta))
            if state.step.index == 8:
                clock.now += 0.25
                each = state.eta / 32
                assert job.snapshot.eta == pytest.approx(31.75 * each, rel=0.01) and job.snapshot.since == 0.25
                clock.now += 9.0
                assert job.snapshot.eta == pytest.approx(31 * each)
                clock.now -= 9.25
            assert state.timed == {"work": (state.step.index - 1, pytest.approx(sum(took[1 : state.step.index])))}
        gate.allow()
    assert any(after > before for before, after in zip(etas, etas[1:], strict=False))
    assert told == sorted(told, reverse=True)
    for index, left in enumerate(told[16:], start=18):
        assert left == pytest.approx(sum(took[index:]), abs=0.2 + 0.2 * sum(took[index:]))


def test_work_that_has_become_much_slower_is_told() -> None:
    countdown = Countdown()
    assert [countdown.tell(left) for left in (60.0, 80.0, 50.0, 70.0, 300.0, 290.0, 310.0)] == [
        *(60.0, 60.0, 50.0, 50.0, 300.0, 290.0, 290.0)
    ]


def test_closing_the_worker_ends_everything() -> None:
    running, waiting = Gated(10), Gated(1)
    worker = Worker()
    jobs = [worker.submit(running)]
    assert running.started.wait(PATIENCE)
    jobs.append(worker.submit(waiting))
    running.allow(10)
    worker.close()
    assert [job.snapshot.ended for job in jobs] == [True, True]
    with pytest.raises(HandedBack, match="load the page again"):
        worker.submit(waiting)
