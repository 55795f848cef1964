"""Faults in the middle: what was finished is there afterwards, and nothing partial is shown as done."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from serving import free_port
from tiny import write_disc

from freemask import page
from freemask.errors import DeviceLost, MemoryShortage, SettingError, StorageError
from freemask.jobs.kept import DIGITS, KEPT, read_inversion, save_inversion
from freemask.jobs.run import load_editor, run_steps
from freemask.jobs.worker import HandedBack, Worker
from freemask.masks.mmc import read_codebook
from freemask.masks.trace import save_trace
from freemask.methods.editor import Editor
from freemask.page.visits import DAY, Run, Visits
from freemask.page.wire import shown
from freemask.presets import load_method, load_preset
from freemask.settings import REPORT, make_settings
from freemask.steps import Step, finish, mapped

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
TOKEN, LIMIT = "t" * 32, 1e9
GIVEN: dict[str, Any] = {"source": "a red car driving on the grass", "edit": "a blue car driving on the grass"}
GIVEN |= {"task": "attribute", "steps": 2, "frames": 2}
QUICK = make_settings(**GIVEN, size=(64, 64))
GIVEN["size"] = "64x64"  # as the page has it
STAGES = ("load", "invert", "keep", "edit", "write", "reconstruct")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc(tmp_path_factory.mktemp("clips") / "disc.mp4")


# kill -9

WRITING = {"keep": "invert", "write": "decode"}  # the step before which files are written


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def edit_until(stage: str, clip: Path, folder: Path) -> None:
    """A visitor's edit on a server that is killed at that stage."""

    def look(step: Step) -> Step:
        if step.stage == stage and step.index == 1 - (stage == "load"):
            die()
        if step.stage == WRITING.get(stage):
            os.replace = die  # by which a file that is whole takes its place
        return step

    one = SimpleNamespace(session_hash="a")
    desk = page.Desk(Worker(), lambda *asked: mapped(page.diffusion(*asked), look), folder=folder, limit=LIMIT)
    list(desk.arrive(TOKEN, "", one))
    list(desk.edit(one, clip=str(clip), **GIVEN))


@pytest.fixture(scope="module")
def killed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each stage, in which a server was killed while a visitor's edit was there."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    folder = tmp_path_factory.mktemp("killed")
    load_editor("mini")
    for stage in STAGES:
        child = os.fork()
        if not child:
            try:
                signal.alarm(int(PATIENCE))
                edit_until(stage, clip, folder / stage)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, stage
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_after_a_kill_a_start_is_clean_and_finds_what_was_finished(stage: str, killed: Path, clip: Path) -> None:
    before = list((killed / stage).rglob(".*.part"))
    assert bool(before) == (stage in ("keep", "write"))  # or what follows would show nothing
    one = SimpleNamespace(session_hash="b")
    with Worker() as worker:
        desk = page.Desk(worker, page.diffusion, folder=killed / stage, limit=LIMIT)
        assert not list((killed / stage).rglob("*.part"))
        (found,) = desk.arrive(TOKEN, "", one)
        (visit,) = (killed / stage).iterdir()
        kept, runs = list(visit.glob("inversions/*.safetensors")), [path for path in visit.iterdir() if path.is_dir()]
        if stage in ("load", "invert", "keep"):
            assert not kept
        else:
            assert [file for file in kept if read_inversion(file, torch.device("cpu"))] == kept and len(kept) == 1
        if stage == "reconstruct":
            assert found[-1].report["verdict"] is None and "nothing was measured" in found[0] and found[2] is None
            assert desk.recall(TOKEN, "", one)[1] == GIVEN["source"] and len(runs) == 2
        else:
            assert not isinstance(found[-1], Run) and {path.name for path in runs} <= {"inversions"}
        if stage == "edit":
            *_, done = desk.edit(one, clip=str(clip), **GIVEN)
            assert done[-1].report["inversion"] == "kept from an earlier edit" and done[-1].report["verdict"]


def test_a_start_beside_another_server_clears_nothing(tmp_path: Path) -> None:
    half = tmp_path / "visit-a" / "half" / "edited.mp4"
    for cleared in (True, False):
        half.parent.mkdir(parents=True)
        half.touch()
        Visits(tmp_path, away=PATIENCE, limit=LIMIT)
        assert half.exists() != cleared


def test_many_who_have_left_cost_no_thread_each(tmp_path: Path) -> None:
    visits, before = Visits(tmp_path, away=PATIENCE), threading.active_count()
    for k in range(20):
        visits.of(str(k))
        visits.leave(str(k))
    assert threading.active_count() <= before + 1


def test_to_whom_nobody_comes_back_and_what_is_older_than_a_day_goes(tmp_path: Path) -> None:
    """By a clock that may have been set: an hour more or less changes nothing."""
    hour, (new, ahead, behind, gone) = 3600.0, ("0123"[k] * 64 for k in range(4))
    now, old = time.time(), {"visit-a": 0.0, new: 0.0, ahead: -hour, behind: hour, gone: DAY + hour, "own": 9 * DAY}
    for name, age in old.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").touch()
        os.utime(tmp_path / name, (now - age, now - age))
    visits = Visits(tmp_path, away=0.1, limit=LIMIT)
    assert {path.name for path in tmp_path.iterdir()} - {"visit-a"} == {new, ahead, behind, "own"}
    while visits._timer:
        visits._timer.join(PATIENCE)
    assert not (tmp_path / "visit-a").exists()


def test_all_files_together_are_bounded(tmp_path: Path, clip: Path) -> None:
    visits = Visits(tmp_path, away=PATIENCE, limit=11_000)

    def add(name: str, runs: int) -> Any:
        visit = visits.greet(name * 16, name) if name.isupper() else visits.of(name)
        for k in range(runs):
            folder = visit.folder / f"{name}{k}"
            folder.mkdir(parents=True)
            (folder / REPORT).write_text("{}")
            (folder / "edited.mp4").write_bytes(bytes(2000))
            visit.keep(Run(folder, {}, clip))
        visits.leave(name) if name.islower() else None
        return visit

    gone, here, last = add("a", 1), add("B", 2), add("c", 1)
    visits.bound(last)
    assert gone.folder.exists()  # they have room
    add("d", 1)
    new = add("E", 1)
    visits.bound(new)
    assert not gone.folder.exists() and last.folder.exists() and len(here.runs) == 2
    for k in range(2, 4):
        add("B" if k % 2 else "B", 0)
        folder = here.folder / f"B{k}"
        folder.mkdir()
        (folder / "edited.mp4").write_bytes(bytes(4000))
        here.keep(Run(folder, {}, clip))
    visits.bound(new)
    assert not last.folder.exists() and new.runs and [run.folder.name for run in here.runs] == ["B2", "B3"]


# what ends from outside

SERVER = """
import sys
from pathlib import Path
import app
from freemask.errors import DeviceLost
from freemask.page import painted_circles

def body(clip, settings, out, kept):
    lost = Path(sys.argv[1])
    if not lost.exists():
        lost.touch()
        raise DeviceLost("The GPU failed under this edit.")
    return (yield from painted_circles(clip, settings, out, kept))

app.page.diffusion = body
app.first_backbone = lambda: "zeroscope"  # no warming up
app.main()
"""


def test_a_lost_gpu_starts_the_server_anew_and_sigterm_hands_edits_back(clip: Path, tmp_path: Path) -> None:
    port = free_port()
    own = {"GRADIO_TEMP_DIR": str(tmp_path / "served"), "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path / "lost")],
            cwd=ROOT,
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )

    def visitor() -> Client:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and server.poll() is None:
            try:
                return Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path / "got"))
            except Exception:  # httpx has many while a server starts
                time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text())

    given = {"clip": handle_file(str(clip))} | GIVEN | {"backbone": "mini"}
    try:
        with pytest.raises(AppError, match="The GPU failed"):
            visitor().predict(**given, api_name="/edit")
        while (tmp_path / "log").read_text().count("Running on") < 2 and server.poll() is None:
            time.sleep(0.1)
        assert "Done" in visitor().predict(**given, api_name="/edit")[0]
        running, waiting = (visitor().submit(**given | {"steps": 200}, api_name="/edit") for _ in range(2))
        assert "ahead" in next(iter(waiting))[0] or "running" in next(iter(waiting))[0]
        server.terminate()
        for job in (running, waiting):
            with pytest.raises(AppError, match="The server stops, so the edit was handed back"):
                job.result(PATIENCE)
        assert server.wait(PATIENCE) == 0
        assert not [path for path in (tmp_path / "served").rglob("*.part")]
    finally:
        server.kill()
        server.wait(PATIENCE)


def test_a_closed_worker_tells_why_and_keeps_what_was_done() -> None:
    began, go = threading.Event(), threading.Event()

    def work() -> Generator[Step, None, str]:
        began.set()
        assert go.wait(PATIENCE)
        yield Step("work", 1, 2)
        return "done"

    worker = Worker()
    running, waiting = worker.submit(work), worker.submit(work)
    assert began.wait(PATIENCE)
    threading.Timer(0.2, go.set).start()
    worker.close()
    for job in (running, waiting):
        with pytest.raises(HandedBack, match="press Edit"):
            job.result(PATIENCE)
        assert job.snapshot.state == "failed" and not job.cancelled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["_consume", "_next"])
def test_a_dead_thread_is_told_of_and_the_next_job_has_a_fresh_one(where: str, monkeypatch: Any) -> None:
    with Worker() as worker:
        dead, own = worker._thread, getattr(Worker, where)

        def die(*given: Any) -> Any:
            monkeypatch.setattr(Worker, where, own)
            raise MemoryError

        monkeypatch.setattr(Worker, where, die)

        def work() -> Generator[Step, None, int]:
            yield Step("work", 1, 1)
            return 1

        jobs = [worker.submit(work) for _ in range(3)]
        told = [job.wait(PATIENCE) and job.snapshot.state for job in jobs]
        assert told == (["failed", "done", "done"] if where == "_consume" else ["done"] * 3)
        dead.join(PATIENCE)
        assert worker._thread.is_alive() and (where == "_next" or not dead.is_alive())
        if where == "_consume":
            with pytest.raises(HandedBack, match="a fresh one has its place"):
                jobs[0].result()


def test_a_lost_gpu_is_told_of(editor: Editor, clip: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Editor, "edit_steps", broken)
    with pytest.raises(torch.AcceleratorError):  # the GPU still answers: it was this call's own fault
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        finish(run_steps(clip, QUICK, tmp_path / "out", editor=editor))
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    anew: list[int] = []
    body = page.outliving(lambda *given: run_steps(*given, editor=editor), lambda: anew.append(1))
    with pytest.raises(DeviceLost, match="load it again in a minute"):
        finish(body(clip, QUICK, tmp_path / "out"))
    assert anew == [1]


# disks


@contextmanager
def largest(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_edit_without_room_for_its_inversion_is_made_all_the_same(
    editor: Editor, clip: Path, tmp_path: Path
) -> None:
    with largest(50_000):
        report = finish(run_steps(clip, QUICK, tmp_path / "out", editor=editor, kept=tmp_path / "kept"))
    assert not list((tmp_path / "kept").iterdir()) and report["verdict"]
    assert any("not kept for later edits" in told for told in report["words"]["warnings"])


def test_an_edit_without_room_for_its_videos_says_so_and_shows_nothing(
    editor: Editor, clip: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / REPORT).write_text("{}")  # of an earlier edit
    with largest(500), pytest.raises(StorageError, match="cannot be written"):
        finish(run_steps(clip, QUICK, out, editor=editor))
    assert not (out / REPORT).exists() and not (out / "edited.mp4").exists() and not list(out.rglob("*.part"))
    monkeypatch.setattr("freemask.page.desk.obstacle", lambda name: None)
    one, served = SimpleNamespace(session_hash="a"), tmp_path / "served"
    with Worker() as worker, largest(500):
        desk = page.Desk(worker, lambda *given: run_steps(*given[:3], editor=editor), folder=served)
        with pytest.raises(gr.Error, match="The server cannot write its files"):
            list(desk.edit(one, clip=str(clip), **GIVEN))
    (visit,) = served.iterdir()
    assert not list(visit.iterdir())


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path: Path) -> None:
    """On a file system of 100 kB, which only this process sees."""
    code = """
import sys, numpy as np
from pathlib import Path
from freemask.clips.video import Clip, write_clip, write_gif
from freemask.errors import StorageError
at = Path(sys.argv[1])
noise = Clip(np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), np.uint8), 8.0)
for name, write in (("a.mp4", write_clip), ("b.gif", write_gif)):
    try:
        write(at / name, noise)
    except StorageError as error:
        print(error, list(at.iterdir()))
"""
    mounted = f'mount -t tmpfs -o size=100k tmpfs "{tmp_path}" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no file system for a test")
    command += [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line, name in zip(lines, ("a.mp4", "b.gif"), strict=True):
        assert line == f'"{tmp_path / name}" cannot be written: {os.strerror(errno.ENOSPC)}; make room on that disk. []'


def test_a_folder_that_cannot_be_written_is_told_of_before_the_model_runs(
    clip: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("freemask.jobs.stages.load_editor", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(StorageError, match="choose another place"):
            finish(run_steps(clip, QUICK, out))
    (tmp_path / "read-only").mkdir(mode=0o500)
    if os.access(tmp_path / "read-only", os.W_OK):
        pytest.skip("who runs this may write into a folder that is read-only")
    for out in (tmp_path / "read-only", tmp_path / "read-only" / "out"):
        with pytest.raises(StorageError, match="choose another place"):
            finish(run_steps(clip, QUICK, out))


# what lies on disk


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"title: [", b"- a\n- b\n", None])
def test_a_damaged_preset_is_named(damage: bytes | None, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.setattr("freemask.presets.PRESETS", tmp_path / "presets")
    for name, load in (("shape.yaml", lambda: load_preset("shape")), ("method.yaml", lambda: load_method("freemask"))):
        load_preset.cache_clear(), load_method.cache_clear()
        path = tmp_path / "presets" / "freemask" / name
        whole = path.read_bytes()
        path.write_bytes(damage) if damage is not None else path.unlink()
        with pytest.raises(SettingError, match=f"{name} is damaged or gone: take it anew from FreeMask's repository"):
            load()
        path.write_bytes(whole)
    load_preset.cache_clear(), load_method.cache_clear()
    assert load_preset("shape").name == "shape"
    monkeypatch.undo()
    load_preset.cache_clear(), load_method.cache_clear()


def test_a_damaged_codebook_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "codebooks" / "mini.json"
    path.parent.mkdir()
    whole = (ROOT / "presets" / "codebooks" / "mini.json").read_bytes()
    monkeypatch.setattr("freemask.masks.mmc.PRESETS", tmp_path)
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" + whole, b"[]", b'{"site": 1}'):
        path.write_bytes(damaged)
        with pytest.raises(SettingError, match="mini.json is no codebook: .*Measure it again or delete it"):
            read_codebook("mini")
    path.write_bytes(whole)
    assert read_codebook("mini")


# clocks


def test_a_clock_that_was_set_back_makes_the_newest_inversion_no_older(tmp_path: Path, trace: Any) -> None:
    files = [tmp_path / f"inversion-{k:032}.safetensors" for k in range(KEPT + 2)]
    for k, file in enumerate(files[:KEPT]):
        save_trace(file, trace)
        os.utime(file, (time.time() + 3600 + k,) * 2)
    for file in files[KEPT:]:
        save_inversion(file, trace)
    assert sorted(tmp_path.iterdir()) == files[2:]


def test_an_edits_times_are_told_by_a_clock_that_nobody_sets(monkeypatch: Any) -> None:
    now = time.time()
    jumps = iter([now, now - 3600, now + 3600] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))

    def work() -> Generator[Step, None, None]:
        for k in range(4):
            yield Step("work", k, 4)

    with Worker() as worker:
        told = list(worker.submit(work).follow())
    assert all(0 <= now.elapsed < PATIENCE and 0 <= (now.eta or 0) < PATIENCE for now in told)


# memory


@pytest.fixture
def trace(editor: Editor) -> Any:
    from freemask.clips.video import Clip

    clip = Clip(np.zeros((2, 32, 32, 3), np.uint8), 8.0)
    return finish(editor.invert_steps(clip, prompt="a red car", steps=2))


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("check", "freemask.jobs.check.read_clip"),
        ("load", "freemask.jobs.stages.load_editor"),
        ("encode", "freemask.families.backbone.Backbone.encode"),
        ("read", "freemask.jobs.kept.load_trace"),
        ("keep", "freemask.masks.stored.save_file"),
        ("edit", "freemask.methods.editor.Editor.edit_steps"),
        ("decode", "freemask.methods.editor.Editor.decode"),
        ("write", "freemask.jobs.files.save_word_files"),
        ("encoders", "freemask.jobs.files.write_clip"),
        ("measure", "freemask.jobs.stages.clip_metrics"),
    ],
)
def test_where_memory_runs_out_a_sentence_says_so_and_what_was_made_stays(
    stage: str, where: str, editor: Editor, clip: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    given: dict[str, Any] = {"editor": None if stage == "load" else editor, "kept": kept}
    if stage == "read":
        before = run_steps(clip, QUICK, out, **given)
        next(step for step in before if step.stage == "edit")
        before.close()
    on_host = stage in ("check", "write", "encoders", "keep")
    error = MemoryError() if on_host else torch.OutOfMemoryError("CUDA out of memory.")

    def scarce(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, scarce)
        with pytest.raises(MemoryShortage, match="Take a smaller size") as told:
            finish(run_steps(clip, QUICK, out, **given))
        assert "smaller size" in shown(told.value).message
    assert (out / REPORT).exists() == (stage == "measure")  # then it is shown, without a verdict
    assert not list(tmp_path.rglob("*.part"))
    made = list(kept.glob(f"inversion-{'?' * DIGITS}.safetensors"))
    assert bool(made) == (stage not in ("check", "load", "encode", "keep"))


def test_memory_that_runs_out_beside_an_edit_is_told_of() -> None:
    assert "memory ran out" in shown(MemoryError()).message
    assert "cannot write its files" in shown(OSError(errno.ENOSPC, "full")).message
    assert "unexpectedly" in shown(OSError(errno.EBADF, "a fault of our own")).message


ARENAS = """
import ctypes, threading
from freemask.jobs.arenas import share_arenas
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
share_arenas()
libc.malloc_info(0, out)
gate = threading.Barrier(12)

def take():
    libc.malloc(1000)
    gate.wait()  # an arena whose thread has ended is another's

threads = [threading.Thread(target=take) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, out)
libc.fflush(out)
"""


def test_the_threads_of_a_server_share_what_they_allocate_from() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_info  # noqa: B018
    except (OSError, AttributeError):
        pytest.skip("this system's C library is not glibc")
    told = subprocess.run([sys.executable, "-c", ARENAS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, after = (one.count("<heap nr=") for one in told.split("</malloc>")[:2])
    assert 0 < after <= max(before, 2)
