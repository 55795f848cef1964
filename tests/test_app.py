"""The page over HTTP with a worker that paints circles: what it gives, refuses, cancels and keeps apart."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from serving import free_port, launch
from tiny import write_disc, write_noise

import app
from freemask import page
from freemask.clips.video import Clip, write_clip
from freemask.errors import MaskError, SettingError
from freemask.families.specs import backbones
from freemask.jobs.check import check
from freemask.jobs.questions import Question
from freemask.jobs.worker import Job, Snapshot, Worker
from freemask.page import browser, status, zero
from freemask.page.advanced import PACES, first_pace
from freemask.page.estimate import ATTENTION, TRUST, Estimates, rows, sized
from freemask.page.fields import NAMES, field_values, link, read_fields
from freemask.page.wire import shown
from freemask.pictures.mask_zip import read_mask_zip, save_mask_zip
from freemask.pictures.word_maps import pack_bits
from freemask.presets import load_preset, task_names
from freemask.settings import EXTRAS, Example, Settings, examples, make_settings
from freemask.steps import Step

PATIENCE = 20.0
SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"


def painted(*given: Any) -> Generator[Step, None, dict[str, Any]]:
    """Paints circles, as fast as it can."""
    return (yield from page.painted_circles(*given, pause=lambda: None))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc(tmp_path_factory.mktemp("clips") / "disc.mp4")


class Gate:
    """A body whose steps wait for `open`; it tells when it began and how it ended."""

    def __init__(self) -> None:
        self.began, self.open, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.folder: Path | None = None
        self.kept: list[Path] = []
        self.steps = 0

    def __call__(self, clip: Path, settings: Settings, out: Path, kept: Path) -> Generator[Step, None, dict[str, Any]]:
        self.kept.append(kept)
        if settings.seed != 1:
            return (yield from page.painted_circles(clip, settings, out, kept, pause=lambda: None))
        try:
            self.folder = out
            (out / "half.mp4").write_bytes(b"half")
            for index in range(1, 1000):
                self.steps = index
                yield Step("invert", index, 1000)
                self.began.set()
                assert self.open.wait(PATIENCE)
            raise AssertionError("was not cancelled")
        finally:
            self.ended.set()


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def address(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, Worker(limit=4) as worker:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served")))
        patch.setattr("freemask.families.reach.has_gpu", lambda: False)
        demo = app.build(worker, body=gate)
        url = launch(demo)
        yield url
        demo.close()


def visitor(address: str, folder: Path) -> Client:
    return Client(address, verbose=False, download_files=str(folder))


def fields(clip: Path | None, **changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"source": SOURCE, "edit": EDIT, "task": "attribute"}
    return {"clip": handle_file(str(clip)) if clip else None} | given | changed


def test_edit_and_masks(address: str, clip: Path, tmp_path: Path) -> None:
    client = visitor(address, tmp_path)
    with pytest.raises(AppError, match="edit a clip first"):
        client.predict("car", 1, api_name="/masks")
    line, source, reconstruction, edited, report, files = client.predict(**fields(clip, steps=4), api_name="/edit")
    assert "Done" in line
    assert report["words"]["word"] == "car"
    assert report["settings"]["steps"] == 4
    for video in (source, reconstruction, edited):
        assert Path(video["video"] if isinstance(video, dict) else video).stat().st_size > 500
    names = {Path(file).name for file in files}
    assert names == {"source.mp4", "edited.mp4", "reconstruction.mp4", "masks.zip", "report.json"}
    made = {name: Path(client.predict(name, api_name="/file")) for name in EXTRAS}
    assert {name: path.name for name, path in made.items()} == {name: name for name in EXTRAS}
    assert cv2.imread(str(made["masks.png"])) is not None and "maps_16x16" in np.load(made["words.npz"])
    with pytest.raises(AppError, match=r"notes\.txt"):
        client.predict("notes.txt", api_name="/file")
    written = next(Path(file) for file in files if Path(file).name == "report.json")
    assert json.loads(written.read_text())["words"]["word"] == "car"
    first, _curves = client.predict("car", 1, api_name="/masks")
    last, _curves = client.predict("grass", 8, api_name="/masks")
    sheets = [cv2.imread(str(sheet)) for sheet in (first, last)]
    assert sheets[0] is not None and sheets[1] is not None
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()
    with pytest.raises(AppError, match="choose one of a, red, car"):
        client.predict("boat", 1, api_name="/masks")
    figure, code = client.predict("car", "up 1.1", api_name="/curves")
    assert cv2.imread(str(figure)) is not None and "editor.maps(trace, 'car')" in code
    for word, layer, told in (("car", "up 9.9", "no layer 'up 9.9'"), ("boat", "mid", "choose one of a, red, car")):
        with pytest.raises(AppError, match=told):
            client.predict(word, layer, api_name="/curves")


def test_a_program_gives_the_clip_and_the_prompts_alone(address: str, clip: Path, tmp_path: Path) -> None:
    client = visitor(address, tmp_path)
    for edit, task in ((EDIT, "attribute"), (SOURCE.replace("car", "bus"), "shape"), ("a cat in the night", "style")):
        *_, report, _ = client.predict(clip=handle_file(str(clip)), source=SOURCE, edit=edit, api_name="/edit")
        told = report["settings"]
        assert (told["task"], told["guidance"], told["steps"], told["solver"]) == (task, 3.0, 25, "ddim")


def test_the_guidance_left_out_is_the_backbones(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freemask.page.desk.obstacle", lambda name: None)
    monkeypatch.setattr("freemask.page.fields.obstacle", lambda name: None)
    given = {"clip": str(clip), "source": SOURCE, "edit": EDIT, "steps": 2, "backbone": "zeroscope"}
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path)
        *_, last = desk.edit(SimpleNamespace(session_hash="a"), **given)
    assert last[-1].report["settings"]["guidance"] == 7.5 and last[-1].report["settings"]["task"] == "attribute"
    at = NAMES.index("guidance") - 1
    for query, guidance in (("&backbone=zeroscope", 7.5), ("&backbone=zeroscope&guidance=3", 3.0), ("", gr.skip())):
        linked = page.follow_link("?source=a+car&edit=a+bus" + query, ["mini", "zeroscope"])
        assert linked is not None and linked[at] == guidance and linked[2] == "shape"


def test_methods_are_a_choice_beside_the_four_tasks(address: str, clip: Path, tmp_path: Path) -> None:
    client, short = (
        visitor(address, tmp_path),
        {"clip": handle_file(str(clip)), "source": SOURCE, "edit": EDIT, "steps": 2, "frames": 2},
    )
    with gr.Blocks():
        assert [name for _, name in page.Inputs.build([], backbone="mini").task.choices] == list(task_names())
    for task, method in (("attribute", "released"), ("shape", "fatezero"), ("style", "plain")):
        *_, report, files = client.predict(**short, task=task, method=method, api_name="/edit")
        assert (report["settings"]["task"], report["settings"]["method"]) == (task, method)
        written = next(file for file in files if Path(file).name == "report.json")
        filled = page.fill_settings(written, ["mini"])
        shown = dict(zip(NAMES[1:], filled, strict=True))
        assert (shown["task"], shown["method"]) == (task, method)
        *_, again, _ = client.predict(handle_file(str(clip)), *filled, api_name="/edit")
        assert again["settings"] == report["settings"]
        summary, tau, *_ = page.follow_task(task, method)
        preset = load_preset(task, method)
        assert preset.summary in summary and tau.placeholder == f"{preset.tau:g}"
    assert "of one grid level" in page.follow_prompts(SOURCE, EDIT, "shape", "car", "mini", "released")[-1]
    old = page.follow_link("?source=a+car&edit=a+bus&task=official-style", ["mini"])
    assert old is not None and (old[2], old[-1]) == ("style", "released")


def test_only_these_names_are_public(address: str, tmp_path: Path) -> None:
    api = visitor(address, tmp_path).view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == {"/curves", "/edit", "/file", "/masks"}
    told = [one["label"] for end in api["named_endpoints"].values() for one in end["returns"]]
    assert told and not [label for label in told if re.fullmatch(r"value_\d+", label)]


def test_pages_of_other_origins_are_refused(address: str) -> None:
    """As Gradio does where a server is on this machine alone: their scripts are not let read an answer."""
    for origin, let in (("http://evil.example", False), (address.rstrip("/"), True)):
        answer = httpx.get(f"{address}config", headers={"Origin": origin})
        assert (answer.headers.get("access-control-allow-origin") == origin) is let


def test_no_clip_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="clip"):
        visitor(address, tmp_path).predict(**fields(None), api_name="/edit")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": ""}, "empty"),
        ({"edit": SOURCE}, "same"),
        ({"word": "boat"}, "boat"),
        ({"word": "<b>x</b>"}, "&lt;b&gt;"),
        ({"size": "large"}, "128x128"),
        ({"tau": "3"}, "0 to 1"),
        ({"alpha_self": "much"}, "0 to 1"),
        ({"start": 100}, "start"),
        ({"task": "colour"}, "colour"),
        ({"backbone": "/etc"}, "/etc"),
        ({"backbone": "zeroscope"}, "there is no GPU: run FreeMask on a machine that has one, or choose mini"),
        ({"guidance": 99}, "30"),
        ({"steps": 1}, "2"),
    ],
)
def test_refusals(address: str, clip: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AppError, match=message):
        visitor(address, tmp_path).predict(**fields(clip, **changed), api_name="/edit")


def test_a_file_that_is_no_video_is_refused(address: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video at all")
    with pytest.raises(AppError, match=r"notes\.mp4"):
        visitor(address, tmp_path).predict(**fields(bad), api_name="/edit")


def test_a_picture_is_edited_as_a_still(clip: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), np.full((48, 64, 3), 90, np.uint8))
    one = SimpleNamespace(session_hash="a")
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path)
        list(desk.arrive("t" * 32, "", one))
        for _ in range(2):
            *_, done = desk.edit(one, **(fields(None, steps=2, start=3) | {"clip": str(tmp_path / "still.png")}))
        assert done[-1].report["clip"]["frames"] == done[-1].report["settings"]["frames"] == 1
        assert "Run 2: first and last frame" in desk.history(done[-1], one)[1]
    assert "a still, edited as one frame" in page.describe_clip(str(tmp_path / "still.png"))
    assert page.follow_trim(str(tmp_path / "still.png"), 8, 0, "") is None
    desk.estimates.learn(Settings(source="a", edit="b", steps=10), measured())
    still, one_frame, many = (
        desk.tell_cost(told, "attribute", "mini", 10, "ddim", frames, "", "replay", False, "freemask")
        for frames, told in ((16, str(tmp_path / "still.png")), (1, None), (16, str(clip)))
    )
    assert still == one_frame != many


def test_cancel_ends_the_job_and_leaves_nothing(
    address: str, clip: Path, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, heard = Job.cancel, threading.Event()
    monkeypatch.setattr(Job, "cancel", lambda job: (cancel(job), heard.set()))
    client = visitor(address, tmp_path)
    job = client.submit(**fields(clip, seed=1), api_name="/edit")
    assert gate.began.wait(PATIENCE)
    cancelling = threading.Thread(target=job.cancel)
    cancelling.start()
    cancelling.join(PATIENCE)
    assert heard.wait(PATIENCE)  # the client does not wait for it
    steps = gate.steps
    gate.open.set()
    assert gate.ended.wait(PATIENCE)
    assert gate.steps <= steps + 1
    # The worker takes the next job only after it has cleared this one away.
    client.predict(**fields(clip, steps=2), api_name="/edit")
    assert gate.folder is not None and not gate.folder.exists()


def test_who_leaves_without_a_word_ends_their_job(
    address: str, clip: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections of a client end, as where its process was killed."""
    cancel, heard = Job.cancel, threading.Event()
    monkeypatch.setattr(Job, "cancel", lambda job: (cancel(job), heard.set()))
    gate.began.clear(), gate.open.clear(), gate.ended.clear()
    api, session = f"{address}gradio_api", {"session_hash": "gone"}
    asker = Client(address, verbose=False)
    edit = next(one for one in asker.config["dependencies"] if one["api_name"] == "edit")
    begun = {one["id"]: one["props"].get("value") for one in asker.config["components"]}
    given = dict(zip(NAMES, [begun[part] for part in edit["inputs"]], strict=True))
    with httpx.Client(timeout=PATIENCE) as http:
        (where,) = http.post(f"{api}/upload", files={"files": ("disc.mp4", clip.read_bytes())}).json()
        given |= fields(None, seed=1) | {"clip": {"path": where, "meta": {"_type": "gradio.FileData"}}}
        with http.stream("GET", f"{api}/heartbeat/gone"):
            event = {"data": list(given.values()), "fn_index": edit["id"], **session}
            http.post(f"{api}/queue/join", json=event).raise_for_status()
            with http.stream("GET", f"{api}/queue/data", params=session) as told:
                assert any("Inverting" in line for line in told.iter_lines())
    assert heard.wait(PATIENCE)
    steps = gate.steps
    gate.open.set()
    assert gate.ended.wait(PATIENCE) and gate.steps <= steps + 1


def test_the_one_too_many_gets_a_sentence_and_keeps_the_fields(clip: Path, gate: Gate, tmp_path: Path) -> None:
    visitors = [SimpleNamespace(session_hash=name) for name in "abc"]
    gate.began.clear(), gate.open.clear(), gate.ended.clear()
    asked = fields(None, steps=2, seed=1) | {"clip": str(clip)}
    with Worker(limit=1) as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)
        for one in visitors:
            list(desk.arrive(one.session_hash * 32, "", one))
        running, waiting, refused = (desk.edit(one, **asked) for one in visitors)
        next(running)
        assert gate.began.wait(PATIENCE)
        assert "1 job is ahead of yours" in next(waiting)[0]
        line, *others = next(refused)
        assert "waiting already" in line and set(map(str, others)) == {str(gr.skip())}
        with pytest.raises(gr.Error, match="Try again when one of them has ended"):
            next(refused)
        desk.cancel(visitors[0])
        gate.open.set()
        assert gate.ended.wait(PATIENCE)
        told = itertools.dropwhile(lambda line: "ahead" in line[0], waiting)
        assert next(told)  # the place falls
        desk.cancel(visitors[1])


def test_visitors_do_not_share(address: str, clip: Path, tmp_path: Path) -> None:
    one, other = visitor(address, tmp_path / "one"), visitor(address, tmp_path / "other")
    one.predict(**fields(clip, steps=2), api_name="/edit")
    with pytest.raises(AppError, match="edit a clip first"):
        other.predict("car", 1, api_name="/masks")


def test_a_visitor_has_one_place_for_inversions(address: str, clip: Path, gate: Gate, tmp_path: Path) -> None:
    one, other = visitor(address, tmp_path / "one"), visitor(address, tmp_path / "other")
    gate.kept.clear()
    for client in (one, one, other):
        client.predict(**fields(clip, steps=2), api_name="/edit")
    first, second, third = gate.kept
    assert first == second != third and first.name == "inversions"
    assert re.fullmatch(r"visit-[\w-]{22}", first.parent.name)


def test_what_is_a_visitors_goes_after_they_left(clip: Path, tmp_path: Path) -> None:
    request, away = SimpleNamespace(session_hash="one"), 0.1
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path, away=away)
        settings = fields(None, steps=2) | {"clip": str(clip)}
        *_, last = desk.edit(request, **settings)  # a session that no page began, as a client of the API
        folder = last[-1].folder
        assert folder.exists()
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer) and timer.interval <= away:
                timer.join(PATIENCE)
        assert not folder.exists() and not any(tmp_path.iterdir())


def test_a_deletion_waits_for_the_edit(clip: Path, gate: Gate, tmp_path: Path) -> None:
    """What still runs may write into the folder; what was made of a run goes with it."""
    request = SimpleNamespace(session_hash="a")
    gate.began.clear(), gate.open.clear(), gate.ended.clear()
    with Worker() as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)
        list(desk.arrive("t" * 32, "", request))
        *_, last = desk.edit(request, **(fields(None, steps=2) | {"clip": str(clip)}))
        run, visit = last[-1], desk.visit(request)
        watching = desk.edit(request, **(fields(None, steps=2, seed=1) | {"clip": str(clip)}))
        next(watching)
        assert gate.began.wait(PATIENCE)
        with pytest.raises(gr.Error, match="not done yet"):
            desk.delete(run, request)
        desk.cancel(request)
        gate.open.set()
        list(watching)
        visit.beside(run).mkdir()
        desk.delete(run, request)
        assert not run.folder.exists() and not visit.beside(run).exists()
        with pytest.raises(gr.Error, match="nothing to delete"):
            desk.delete(run, request)


def test_a_name_is_that_of_the_run_whose_field_it_was_typed_into(clip: Path, tmp_path: Path) -> None:
    """Who leaves the field by the button that deletes its run gives the name to no other."""
    request = SimpleNamespace(session_hash="a")
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path)
        list(desk.arrive("t" * 32, "", request))
        first, second = (
            list(desk.edit(request, **(fields(None, steps=2, seed=seed) | {"clip": str(clip)})))[-1][-1]
            for seed in (0, 1)
        )
        usual = first.name
        desk.rename("  mine ", second.folder.name, first, request)
        assert (first.name, second.name) == (usual, "mine")
        desk.delete(second, request)
        told, _ = desk.rename("hers", second.folder.name, first, request)
        assert first.name == usual and told.choices == [(f"1: {usual}", first.folder.name)]


def test_a_question_ends_with_its_visit(clip: Path, tmp_path: Path) -> None:
    """Else it would make the folder anew that has just gone."""
    request = SimpleNamespace(session_hash="a")

    def endless(*_: Any) -> Generator[Step, None, dict[str, Any]]:
        while True:
            time.sleep(0.001)
            yield Step("look", 0, 1)

    with Worker() as worker:
        desk = page.Desk(worker, endless, folder=tmp_path, away=0.1)
        list(desk.arrive("t" * 32, "", request))
        visit, settings = desk.visit(request), make_settings(source=SOURCE, edit=EDIT)
        asked = desk.look(request, clip, settings, visit.folder, Question(kind="concept", text="sky"))
        desk.leave(request)
        assert asked.wait(PATIENCE) and asked.cancelled


def test_a_reloaded_page_finds_its_job_and_its_result(clip: Path, gate: Gate, tmp_path: Path) -> None:
    first, second, token = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b"), "t" * 32
    gate.began.clear(), gate.open.clear(), gate.ended.clear()
    with Worker() as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)
        list(desk.arrive(token, "", first))
        watching = desk.edit(first, **(fields(None, steps=2, seed=1) | {"clip": str(clip)}))
        next(watching)
        assert gate.began.wait(PATIENCE)
        watching.close()
        desk.leave(first)
        again = desk.arrive(token, "", second)
        assert "Inverting" in next(again)[0]
        assert desk.cancel(second) == gr.skip()
        assert next(again)[0] == status.cancelled()  # though the step that runs has not ended
        assert next(again, None) is None and desk.cancel(second) == status.idle()
        gate.open.set()
        assert gate.ended.wait(PATIENCE)
        *_, done = desk.edit(second, **(fields(None, steps=2) | {"clip": str(clip)}))
        *_, shown = desk.arrive(token, "", SimpleNamespace(session_hash="c"))
        assert shown[-1] is done[-1]
        *_, nothing = desk.arrive("u" * 32, "", SimpleNamespace(session_hash="d"))
        assert not isinstance(nothing[-1], page.Run)


def test_a_visitors_runs_masks_and_fields(clip: Path, tmp_path: Path) -> None:
    one, token = SimpleNamespace(session_hash="a"), "t" * 32
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path)
        list(desk.arrive(token, "", one))
        runs = []
        for seed in range(7):
            *_, done = desk.edit(one, **(fields(None, steps=2, seed=seed) | {"clip": str(clip)}))
            runs.append(done[-1])
        assert not runs[0].folder.exists() and all(run.folder.exists() for run in runs[1:])
        choices, table = desk.history(runs[-1], one)
        assert [name for _, name in choices.choices] == [run.folder.name for run in runs[1:]]
        assert choices.value == runs[-1].folder.name
        assert desk.history(runs[3], one)[0].value == runs[3].folder.name
        assert "seed" in table and "guidance" not in table
        assert desk.show_run(runs[3].folder.name, one)[-1] is runs[3]
        back = desk.fill_run(runs[3], one)
        assert len(back) == len(NAMES) and back[NAMES.index("word")] == "car"
        assert back[0]["path"] == str(clip) and back[NAMES.index("seed")] == 3 and back[NAMES.index("masks")] is None
        for gone in (runs[0].folder.name, "../..", None):
            with pytest.raises(gr.Error, match="choose another"):
                desk.show_run(gone, one)
        painting = {"h": 64, "w": 64, "data": pack_bits(np.ones((8, 64, 64), bool))}
        filled = desk.take_painting(runs[3], SimpleNamespace(_data=painting), one)
        masks = Path(filled[NAMES.index("masks")]["path"])
        assert read_mask_zip(masks, frames=8).all() and filled[NAMES.index("source")] == SOURCE
        assert filled[NAMES.index("edit")] == gr.skip()
        for bad in (
            {"h": 1, "w": 1, "data": "A" * 10_000},
            {"h": 64, "w": 64, "data": "A"},
            {"h": 9999, "w": 1, "data": ""},
            painting | {"data": pack_bits(np.zeros((8, 64, 64), bool))},
        ):
            with pytest.raises(gr.Error, match="too large|paint it again|Nothing is painted"):
                desk.take_painting(runs[3], SimpleNamespace(_data=bad), one)
        *_, masked = desk.edit(one, **(fields(None, steps=2) | {"clip": str(clip), "masks": masks}))
        kept = Path(desk.fill_run(masked[-1], one)[NAMES.index("masks")]["path"])
        assert read_mask_zip(kept, frames=8).any() and not kept.is_relative_to(masked[-1].folder)
        recalled = desk.recall(token, "", SimpleNamespace(session_hash="b"))
        assert recalled[0]["path"] == str(clip) and recalled[NAMES.index("masks")]["path"] == str(masks)
        linked = desk.recall(token, "?source=a+cat&edit=a+dog&task=shape", SimpleNamespace(session_hash="c"))
        assert linked[0] == gr.skip() and linked[1:4] == ["a cat", "a dog", "shape"]


def test_who_comes_first_is_greeted_by_an_example(clip: Path, tmp_path: Path) -> None:
    """Its edit, finished, and its fields; by a link they are the link's, and who has edited sees that edit."""
    example = examples()[0]
    one, other, token = (SimpleNamespace(session_hash=name) for name in ("a", "b", "t" * 32))
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path, greeting=example)
        (met,) = desk.arrive(token.session_hash, "", one)
        assert met[-1].folder == example.made and 'data-state="done"' in met[0]
        told = desk.recall(token.session_hash, "", one)
        assert told == [*page.fill_example(example), True] and told[1] == example.settings.source
        query = "?source=a+cat&edit=a+dog"
        (linked,) = desk.arrive("u" * 32, query, other)
        assert not isinstance(linked[-1], page.Run) and desk.recall("u" * 32, query, other)[1] == "a cat"
        (tracked,) = desk.arrive("v" * 32, "?utm=x", SimpleNamespace(session_hash="c"))
        assert tracked[-1].folder == example.made  # a query that names no field is no link to an edit
        *_, done = desk.edit(one, **(fields(None, steps=2) | {"clip": str(clip)}))
        *_, again = desk.arrive(token.session_hash, "", one)
        assert again[-1] is done[-1] and desk.recall(token.session_hash, "", one)[1] == SOURCE
        bare = page.Desk(worker, painted, folder=tmp_path, greeting=replace(example, made=tmp_path / "none"))
        assert not isinstance(next(bare.arrive("w" * 32, "", one))[-1], page.Run)


def test_a_second_press_waits_for_the_first_edit(clip: Path, gate: Gate, tmp_path: Path) -> None:
    one = SimpleNamespace(session_hash="a")
    gate.began.clear(), gate.open.clear()
    with Worker() as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)
        list(desk.arrive("t" * 32, "", one))
        first = desk.edit(one, **(fields(None, seed=1) | {"clip": str(clip)}))
        next(first)
        with pytest.raises(gr.Error, match="press Cancel first"):
            list(desk.edit(one, **(fields(None) | {"clip": str(clip)})))
        assert set(map(str, desk.fill_run(None, one))) == {str(gr.skip())}  # the fields are that edit's
        desk.cancel(one)
        gate.open.set()
        *_, done = desk.edit(one, **(fields(None, steps=2) | {"clip": str(clip)}))
        assert isinstance(done[-1], page.Run)


def test_one_address_of_the_internet_holds_four_places(clip: Path, tmp_path: Path) -> None:
    """By however many sessions; a local network's, and those of a proxy that does not tell, are not counted."""
    gate = Gate()
    with Worker(limit=12) as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)

        def ask(session: int, host: str) -> Any:
            request = SimpleNamespace(session_hash=str(session), client=SimpleNamespace(host=host))
            told = desk.edit(request, **(fields(None, seed=1) | {"clip": str(clip)}))
            next(told)
            return told

        asked = [ask(k, "93.184.216.34") for k in range(4)]
        with pytest.raises(gr.Error, match="4 edits from your address wait or run already"):
            list(ask(4, "93.184.216.34"))
        asked += [ask(10 + k, host) for k, host in enumerate(["127.0.0.1"] * 5 + ["2606:2800:220:1::1", "10.0.0.7"])]
        asked[1].close()  # who leaves gives the place back
        asked.append(ask(5, "93.184.216.34"))
        gate.open.set()
        for told in asked:
            told.close()


def test_a_cancel_is_heard_while_the_input_is_checked(
    clip: Path, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SimpleNamespace(session_hash="a")
    with Worker() as worker:
        desk = page.Desk(worker, gate, folder=tmp_path)
        list(desk.arrive("t" * 32, "", one))
        monkeypatch.setattr("freemask.page.desk.check", lambda *given: (desk.cancel(one), check(*given))[1])
        told = list(desk.edit(one, **(fields(None) | {"clip": str(clip)})))
        assert [line for line, *_ in told] == [status.cancelled()]


def test_the_trimmer_tells_what_is_wrong_and_stays(clip: Path, tmp_path: Path) -> None:
    told = page.follow_trim(str(clip), 8, 0, "")
    assert told and len(told["used"]) == 8 and told["problem"] == "" and told["end"] <= told["duration"] + 0.01
    for start, fps, message in (
        (90, "", "choose a start before its end"),
        (0, "fast", "no number"),
        (1.0, "60", "fewer"),
    ):
        wrong = page.follow_trim(str(clip), 60, start, fps)
        assert wrong and message in wrong["problem"] and wrong["strip"] == told["strip"] and not wrong["used"]
        assert 0 <= wrong["start"] < wrong["duration"]
    start, fps = page.take_trim(8, SimpleNamespace(_data={"start": 0.25, "end": 0.75}))
    assert (start, fps) == (0.25, "16")


def test_a_pace_is_what_its_fields_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for pace in PACES.values():
        settings = Settings(source="a", edit="b", **pace)
        assert field_values(settings)[NAMES.index("solver") - 1] == pace["solver"]
    for gpu, name in ((True, "Usual"), (False, "Fast")):
        monkeypatch.setattr("freemask.page.advanced.has_gpu", lambda gpu=gpu: gpu)
        with gr.Blocks():
            inputs = page.Inputs.build([], backbone="mini")
        begun = inputs.advanced.steps.value, inputs.advanced.solver.value
        assert begun == tuple(PACES[inputs.pace.value].values()) and inputs.pace.value == first_pace()
        assert first_pace().startswith(name)
        assert json.dumps(list(begun)) in browser.own_pace()


def test_the_shipped_examples_open_in_the_studio() -> None:
    for example in examples():
        run = page.Run(example.made, json.loads((example.made / "report.json").read_text()), example.clip)
        told = page.open_studio(run)
        assert told
        texts, source, edit = ([one["text"] for one in told["words"]], example.settings.source, example.settings.edit)
        assert texts[: told["source_words"]] == source.split()
        assert {*edit.split()} - {*source.split()} <= {*texts[told["source_words"] :]} <= {*edit.split()}
        assert [texts[one["at"]] for one in told["edit_words"]] == edit.split()
        assert told["cell"]["timestep"] in told["timesteps"] and told["lmmc"] and told["frames"] == 8
        settings = Settings(**{name: value for name, value in run.report["settings"].items()})
        assert replace(settings, word=example.settings.word) == example.settings


def test_the_list_of_backbones_is_that_of_the_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freemask.page.advanced.obstacle", lambda name: None)
    with gr.Blocks():
        for given, shown in (
            ("cerspense/zeroscope_v2_576w", "zeroscope"),
            ("mini", "mini"),
            ("owner/model", "owner/model"),
        ):
            advanced = page.Inputs.build([], backbone=given).advanced
            listed = [name for _, name in advanced.backbone.choices]
            known = [spec.name for spec in backbones()]
            assert listed[: len(known)] == known and advanced.backbone.value == shown in listed
    assert page.follow_link("?backbone=cerspense/zeroscope_v2_576w", ["zeroscope"])[4] == "zeroscope"


def test_settings_and_links_fill_the_fields_again(address: str, clip: Path, tmp_path: Path) -> None:
    client = visitor(address, tmp_path)
    given = fields(clip, steps=4, tau="0.4", size="64x64", site="up 1.1", timestep="201", eta=0.5, seed=7)
    *_, report, files = client.predict(**given, api_name="/edit")
    written = next(file for file in files if Path(file).name == "report.json")
    filled = page.fill_settings(written, ["mini"])
    assert filled == page.follow_link(link(report["settings"]), ["mini"])
    shown = dict(zip(NAMES[1:], filled, strict=True))
    assert make_settings(**read_fields(shown)) == make_settings(**report["settings"])
    with pytest.warns(UserWarning, match="does not offer the backbone"):
        assert page.follow_link(link(report["settings"]), ["zeroscope"])[4] == gr.skip()
    *_, again, _ = client.predict(handle_file(str(clip)), *filled, api_name="/edit")
    assert again["settings"] == report["settings"] and again["mask"]["origin"] == "picked"
    assert "clip" not in link(report["settings"]) and page.follow_link("?__theme=dark", []) is None
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(gr.Error, match="no settings"):
        page.fill_settings(str(tmp_path / "bad.json"), [])


def measured(*, scale: float = 1.0, side: int = 128, load: float = 0.0, rest: float = 1.0) -> dict[str, Any]:
    """The report of an edit in 10 steps that took 5 s for the UNet and 1 s beside it."""
    rows_of = {"invert": 10, "reconstruct": 10, "edit": 30}
    seconds = {"load": load, "invert": 1.0 * scale, "reconstruct": 1.0 * scale, "edit": 3.0 * scale}
    return {
        "unet": {stage: {"forwards": 10, "rows": n} for stage, n in rows_of.items()},
        "seconds": seconds | {"total": sum(seconds.values()) + rest},
        "clip": {"width": side, "height": side, "frames": 8},
        "memory": {"peak_mib": 900.0},
    }


def test_a_stage_that_most_edits_lack_is_guessed_until_it_was_measured() -> None:
    costs, about = Estimates(), {"source": "a", "edit": "b", "steps": 10, "method": "videodirector"}
    long = Settings(**about)
    costs.learn(Settings(source="a", edit="b", steps=10), measured())
    expected = 1.0 + 0.1 * sum(rows(long).values())  # a backward pass as two rows
    assert costs.seconds(long) == pytest.approx(expected)
    assert rows(long)["null-text"] == 10 * (2 + 4 + 3 * 5) and rows(replace(long, null_text_steps=0))["null-text"] == 0
    report = measured()
    report["unet"]["null-text"] = {"forwards": 90, "rows": 90, "backwards": 60}
    report["seconds"] |= {"null-text": 42.0, "total": report["seconds"]["total"] + 42.0}
    costs.learn(long, report)
    assert costs.seconds(long) == pytest.approx(expected + 0.1 * 210)  # twice as slow as was guessed


def test_the_cost_is_told_once_it_was_measured() -> None:
    costs = Estimates()
    short, long = (Settings(source="a", edit="b", steps=steps) for steps in (10, 20))
    assert costs.seconds(short) is None and "measures" in status.estimate(None, None)
    costs.learn(short, measured())
    expected = 1.0 + 0.1 * sum(rows(long).values())
    assert costs.seconds(long) == pytest.approx(expected) and costs.memory(long) == 900.0
    assert costs.seconds(replace(long, solver="dpm")) == pytest.approx(expected + 0.1)  # one row more to invert
    spans = 3  # of 8 frames, which overlap
    assert costs.seconds(replace(long, frames=16)) == pytest.approx(2.0 + spans * (expected - 1.0))
    wide = costs.seconds(replace(long, size=(256, 256)))
    assert wide == pytest.approx(4.0 + 4 * dearer(256) * (expected - 1.0))  # files and frames too take four times
    large = replace(long, backbone="zeroscope", size=(512, 512))
    assert costs.seconds(large) is None and 5 * 1024 < costs.memory(large) < 6 * 1024
    assert costs.memory(replace(large, low_vram=True)) < costs.memory(large)
    # someone's edit of another size leaves the estimate of the usual one
    costs.learn(replace(short, size=(384, 384)), measured(scale=9 * dearer(384), side=384, rest=9.0))
    assert costs.seconds(long) == pytest.approx(expected)
    # nor does a still, which is as dear as it was last
    still, report = replace(short, frames=1), measured(scale=0.5)
    assert costs.seconds(still) == pytest.approx(costs.seconds(short) / 8)
    costs.learn(still, report | {"clip": report["clip"] | {"frames": 1}})
    assert costs.seconds(still) == pytest.approx(1.0 + 0.5 * 0.1 * sum(rows(short).values()))
    assert costs.seconds(long) == pytest.approx(expected)


def dearer(side: int) -> float:
    """A pixel of mini's frames of this side, whose latent cells are of 8 pixels, against one of 128²."""
    return (1 + (side / 8) ** 2 / ATTENTION) / (1 + 16**2 / ATTENTION)


def test_a_clip_that_is_wider_than_the_backbone_costs_more(tmp_path: Path) -> None:
    wide, settings = tmp_path / "wide.mp4", Settings(source="a", edit="b")
    write_clip(wide, Clip(np.zeros((8, 90, 160, 3), np.uint8), 8.0))
    assert sized(settings, wide).size == (192, 128) and sized(settings, None) is settings
    assert sized(replace(settings, size=(80, 48)), wide).size == (80, 48)
    (tmp_path / "bad.mp4").write_text("no video")
    assert sized(settings, tmp_path / "bad.mp4") is settings


def test_the_time_left_is_that_of_the_whole_edit_where_it_is_known() -> None:
    now = Snapshot("running", 0, Step("invert", 3, 10), 6.0, 14.0, 0.0, {"invert": (2, 4.0)})
    assert "step 3 of 10 · about 14 s left in this stage · 6 s so far" in status.running(now, "", 14.0)
    assert "step 3 of 10 · about 44 s left · 6 s so far" in status.running(now, "", 44.0, True)
    assert "left" not in status.running(now)

    costs, settings = Estimates(), Settings(source="a", edit="b", steps=10)
    assert costs.left(settings, now) is None and costs.countdown(settings)(now) == (14.0, False)
    costs.learn(settings, measured())
    unet = {stage: 0.1 * n for stage, n in rows(settings).items()}
    trust = TRUST * sum(unet.values())
    slower = (trust + 4.0) / (trust + 0.2)  # 2 s a step, where it was .1
    after = unet["edit"] + unet["reconstruct"]
    assert costs.left(settings, now) == pytest.approx(1.0 + slower * (0.7 + after))
    assert costs.left(settings, replace(now, since=0.5)) == pytest.approx(0.5 + slower * (0.7 + after))
    last = Snapshot("running", 0, Step("reconstruct", 10, 10), 9.0, 0.0, 5.0, {"reconstruct": (9, 9.0)})
    assert costs.left(settings, last) == pytest.approx(1.0)
    fresh = replace(now, step=Step("edit", 1, 10), timed={"invert": (9, 0.9)})  # a stage that has just begun
    assert costs.left(settings, fresh) == pytest.approx(1.0 + 0.9 * unet["edit"] + unet["reconstruct"])
    again = replace(fresh, timed={})  # the inversion is an earlier edit's, and so is its reconstruction
    assert costs.left(settings, again) == pytest.approx(1.0 + 0.9 * unet["edit"])
    report = measured()
    report["memory"]["features"] = "store"  # so the next edit will replay nothing either
    costs.learn(settings, report)
    assert sum(rows(settings, stored=True).values()) == 40 < sum(rows(settings).values())
    assert costs.seconds(settings) == pytest.approx(1.0 + 0.1 * 40)
    for told in (replace(now, step=Step("decode", 1, 1)), replace(now, step=None)):
        assert costs.left(settings, told) is None


def test_the_time_left_does_not_rise_where_a_server_is_slower_than_it_was() -> None:
    """All that is told of an edit whose steps take half more than they took before, give or take a half."""
    costs, settings = Estimates(), Settings(source="a", edit="b", steps=25)
    costs.learn(settings, measured(scale=10))
    tell, timed, now, told, at = costs.countdown(settings), {}, 0.0, [], []
    for stage, n in rows(settings).items():
        for index in range(1, 26):
            took = 1.5 * n / 25 * (0.5, 1.0, 1.4, 1.1)[index % 4]
            now += took
            done, before = timed.get(stage, (0, 0.0))
            timed[stage] = (index - 1, before + took if index > 1 else 0.0)
            for since in (0.0, took / 2):
                left, whole = tell(Snapshot("running", 0, Step(stage, index, 25), now, None, since, dict(timed)))
                assert whole and left is not None
                told.append(left)
                at.append(now + since)
    assert told == sorted(told, reverse=True)
    for left, passed in list(zip(told, at, strict=True))[2 * len(told) // 3 :]:
        assert left == pytest.approx(1.0 + now - passed, rel=0.1, abs=3.0)  # less than a step


def test_the_page_tells_the_time_that_the_whole_edit_has_left(clip: Path, tmp_path: Path) -> None:
    costs = Estimates()
    costs.learn(Settings(source="a", edit="b", steps=10), measured())
    told = threading.Semaphore(0)  # so that no step is taken before the last one was told
    with Worker() as worker:
        body = functools.partial(page.painted_circles, pause=lambda: told.acquire(timeout=PATIENCE))
        desk = page.Desk(worker, body, folder=tmp_path, estimates=costs)
        lines = []
        for line, *_ in desk.edit(SimpleNamespace(session_hash="a"), **(fields(None) | {"clip": str(clip)})):
            lines.append(line)
            told.release()
    for stage in ("Inverting", "Editing", status.STAGES["reconstruct"][1]):
        assert any("s left ·" in line for line in lines if f">{stage}<" in line), stage
    assert not any("in this stage" in line for line in lines)
    writing = [line for line in lines if ">Writing the videos<" in line]
    assert writing and not any("left" in line for line in writing)


MADE = {"settings": {"source": SOURCE}, "words": {"warnings": [], "word": "car"}, "mask": {"kept": "background"}}


def test_an_edit_that_did_not_invert_says_so() -> None:
    report = MADE | {"metrics": {}}
    assert "begun at denoising" in status.done(report | {"inversion": "kept from an earlier edit"}, 1.0)
    assert "begun at denoising" not in status.done(report | {"inversion": "made"}, 1.0)


@pytest.mark.parametrize(
    ("figures", "level", "title"),
    [
        ({"reconstruction_psnr": 28.0, "frame_accuracy": 1.0}, "good", "Done in 23 s</strong>"),
        ({"reconstruction_psnr": 17.0}, "doubtful", "Done in 23 s, but look at it with care</strong>"),
        (
            {"reconstruction_psnr": 28.0, "frame_accuracy": 0.0},
            "poor",
            "Done in 23 s, but the edit is not to be trusted</strong>",
        ),
    ],
)
def test_an_edit_that_is_poor_is_not_shown_as_a_success(figures: dict[str, float], level: str, title: str) -> None:
    told = status.done(MADE | {"metrics": figures}, 23.0)
    assert f'data-verdict="{level}"' in told and title in told
    assert ("finds the edit in no frame" in told) == (level == "poor")


def test_a_clip_outside_the_toy_world_is_told_of_while_a_toy_backbone_is_chosen(tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "noise.mp4")
    under, beside = page.tell_world(str(noise), 8, 0.0, "", "mini", SOURCE)
    assert "Not like the toy world" in under and "outside the toy world" in beside
    for backbone in ("zeroscope", "/not/there"):
        assert page.tell_world(str(noise), 8, 0.0, "", backbone, SOURCE) == ("", "")
    several = page.tell_world(str(noise), 8, 0.0, "", "mini", "a car and a dog")
    assert all("is not sure" in one for one in several)  # the judge knows scenes of one
    assert page.tell_world(str(examples()[0].clip), 8, 0.0, "", "mini", SOURCE) == ("", "")
    for frames, fps, file in ((64, "", noise), (8, "many", noise), (8, "", tmp_path / "none.mp4")):
        assert page.tell_world(str(file), frames, 0.0, fps, "mini", SOURCE) == ("", "")  # told of elsewhere


def test_the_page_is_served_before_torch(tmp_path: Path) -> None:
    code = """
import sys, urllib.request, app
from freemask.jobs.worker import Worker
demo = app.build(Worker(), warm=True)
_, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
assert b"FreeMask" in urllib.request.urlopen(url).read() and "torch" not in sys.modules
demo.close()
"""
    root = Path(app.__file__).parent
    env = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "GRADIO_SERVER_PORT": str(free_port())}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=env, check=True, timeout=120)


def test_the_word_follows_the_prompts_until_it_is_typed() -> None:
    def told(source: str, edit: str, word: str) -> tuple[str, str]:
        field, prompts = page.follow_prompts(source, edit, "attribute", word, "mini", "freemask")
        assert "value" not in field  # what is being typed stays
        return field["placeholder"], prompts

    named, prompts = told(SOURCE, EDIT, "")
    assert named == "car (inferred from the prompts)" and ">car</mark>" in prompts
    assert told(SOURCE.replace("car", "bus"), EDIT.replace("car", "bus"), " ")[0].startswith("bus ")
    assert ">grass</mark>" in told(SOURCE, EDIT, "grass")[1]
    named, prompts = told(SOURCE, EDIT, "gra")
    assert "&#x27;gra&#x27; is not in the first prompt" in prompts and named.startswith("car ")
    assert told("", "", "")[0] == "inferred from the prompts"


def test_a_task_that_does_not_suit_the_prompts_is_told_of_before_the_edit() -> None:
    *_, told = page.follow_prompts("a red car", "a red bus", "attribute", "", "mini", "freemask")
    assert "use the task &#x27;shape&#x27;" in told
    *_, told = page.follow_prompts("a red car", "a red bus", "shape", "", "mini", "freemask")
    assert "fm-note" not in told


def test_a_word_that_the_backbone_has_never_seen_is_told_of_before_the_edit() -> None:
    def told(edit: str, backbone: str = "mini") -> str:
        return str(page.follow_prompts("a red car on the grass", edit, "shape", "", backbone, "freemask")[-1])

    assert "mini has never seen &#x27;zebra&#x27;, &#x27;moon&#x27;:" in told("a red Zebra on the moon, a zebra")
    assert "never seen" not in told("a red bu on the grass"), "of a word that may be half typed"
    for backbone in ("zeroscope", "/not/there"):
        assert "never seen" not in told("a red zebra on the moon", backbone)
    assert (
        "zebra"
        in page.follow_prompts("a red zebra", "a blue zebra", "attribute", "zebra", "mini", "freemask")[-1].split(
            "</p>"
        )[-2]
    )


def test_a_value_that_a_link_cannot_have_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    query = "?steps=x&timestep=201&site=up+3.0&tau=7&source=a+car&size=big&guidance=5&nothing=1&task=<b>"
    filled = page.follow_link(query, ["mini"])
    good = page.follow_link("?source=a+car&guidance=5&site=up+3.0&timestep=201", ["mini"])
    assert filled == good and good is not None and good[0] == "a car" and "201" in good
    (toast,) = told  # one for all
    lines = toast.split("<br>")
    assert [one.split(" is left out: ")[0] for one in lines] == [
        f"The link&#x27;s {n}" for n in ("task", "steps", "size", "tau")
    ]
    assert "&lt;b&gt;" in lines[0] and "Allowed: 2 to 200" in lines[1] and "WIDTHxHEIGHT" in lines[2]


def test_a_mask_of_ones_own_is_told_of_until_it_is_dropped() -> None:
    for own, told in (
        (("up 3.0", "", None), "up 3.0, each step its own"),
        (("up 3.0", "241", None), "up 3.0, timestep 241"),
        (("", "", "drawn.zip"), "painted or uploaded"),
    ):
        tag = page.own_mask(*own)
        assert tag.visible and told in tag.value
        assert page.drop_mask(own[0], "0.5") == ("", "", None, "" if own[0] else "0.5")
    assert not page.own_mask(" ", "", None).visible


def test_masks_that_do_not_agree_are_told_of_in_the_words_of_who_asked(clip: Path, tmp_path: Path) -> None:
    visitor, program = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
    save_mask_zip(tmp_path / "own.zip", np.arange(8)[:, None, None] % np.full((8, 8, 8), 5) == 0)
    both = fields(None, site="up 1.1", masks=str(tmp_path / "own.zip")) | {"clip": str(clip)}
    with Worker() as worker:
        desk = page.Desk(worker, painted, folder=tmp_path)
        list(desk.arrive("t" * 32, "", visitor))
        with pytest.raises(gr.Error, match="“Mask of one layer” and “Masks of your own” each name a mask"):
            list(desk.edit(visitor, **both))
        with pytest.raises(gr.Error, match="site and masks each name a mask"):
            list(desk.edit(program, **both))
    assert "uploaded, none on frames 2 to 5, 7 to 8." in page.own_mask("", "", both["masks"]).value


def test_prompts_are_shown_as_text_not_as_html() -> None:
    *_, shown = page.follow_prompts("a <img src=x> car", 'a <b onclick="x"> bus', "shape", "", "mini", "freemask")
    assert "<img" not in shown and "<b onclick" not in shown


def test_an_upload_is_described_or_refused(clip: Path, tmp_path: Path) -> None:
    assert "64×64" in page.describe_clip(str(clip))
    bad = tmp_path / "bad.mp4"
    bad.write_text("nothing")
    assert "bad" in page.describe_clip(str(bad))


def test_the_first_visitor_is_told_the_cost(clip: Path, tmp_path: Path) -> None:
    settings = Settings(source=SOURCE, edit=EDIT, task="attribute", frames=4)
    example = Example(name="one", clip=clip, settings=settings, made=tmp_path)
    with Worker() as worker:
        desk = page.Desk(worker, page.diffusion, folder=tmp_path, warm=example)
        told = asyncio.run(
            desk.tell_first_cost(None, "attribute", "mini", 25, "ddim", 4, "", "replay", False, "freemask")
        )
    assert re.search(r"About <b>[\w ]+</b> and \d\.\d GiB", told)
    assert desk.tell_cost(None, "attribute", "mini", 1, "ddim", 4, "", "replay", False, "freemask") == status.note(
        "&nbsp;"
    )


def stand_in(asked: list[int]) -> Any:
    """Of the spaces library (0.51): the duration is asked with the call's own arguments, all that crosses is pickled,
    and of an error that crosses only the class is told."""

    def gpu(*, duration: Any) -> Any:
        def decorate(work: Any) -> Any:
            def call(*args: Any) -> Any:
                asked.append(duration(*args))
                try:
                    yield from (pickle.loads(pickle.dumps(value)) for value in work(*pickle.loads(pickle.dumps(args))))
                except Exception as error:
                    raise gr.Error(type(error).__name__) from None

            return call

        return decorate

    return gpu


def test_an_error_on_a_borrowed_gpu_is_told(clip: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*_: Any) -> Generator[Step, None, dict[str, Any]]:
        yield Step("load", 0, 1)
        raise MaskError("The map of car is flat: choose another.")

    def spent(*_: Any, **__: Any) -> Any:
        raise gr.Error("You have exceeded your free ZeroGPU quota", print_exception=False)

    for gpu, told in ((stand_in([]), "map of car is flat"), (lambda **_: lambda work: spent, "ZeroGPU quota")):
        monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
        with Worker() as worker:
            desk = page.Desk(worker, zero.borrowing(fails, Estimates()), folder=tmp_path)
            with pytest.raises(gr.Error, match=told):
                list(desk.edit(SimpleNamespace(session_hash="a"), **(fields(None, steps=2) | {"clip": str(clip)})))


def test_a_borrowed_gpu_is_asked_for_as_long_as_the_estimate(clip: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=stand_in(asked)))
    estimates, settings = Estimates(), Settings(source=SOURCE, edit=EDIT, task="attribute", steps=2)
    estimates.learn(settings, measured(scale=50, load=30.0))
    body = zero.borrowing(painted, estimates)
    with Worker() as worker:
        desk = page.Desk(worker, body, folder=tmp_path, estimates=estimates)
        *_, last = desk.edit(SimpleNamespace(session_hash="a"), **(fields(None, steps=2) | {"clip": str(clip)}))
    assert last[-1].report["words"]["word"] == "car"
    told = estimates.seconds(settings)
    assert told and told == pytest.approx(1.0 + 5.0 * sum(rows(settings).values())) and told < asked[0] <= 2 * told + 10
    paper = replace(settings, steps=50, size=(512, 512))
    assert 60 <= zero.duration(paper, Estimates()) <= 120


def test_a_step_runs_in_the_context_of_its_request() -> None:
    asking: contextvars.ContextVar[str] = contextvars.ContextVar("asking", default="nobody")
    asking.set("one")
    context = contextvars.copy_context()
    asking.set("another")

    def work() -> Generator[Step, None, str]:
        yield Step(asking.get(), 1, 1)
        return asking.get()

    steps = zero.in_context(context, work())
    assert next(steps).stage == "one"
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "one"


def test_the_readmes_client_runs(address: str, monkeypatch: Any) -> None:
    root = Path(app.__file__).parent
    code = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    code = next(one for one in code if "gradio_client" in one)
    monkeypatch.chdir(root)
    told: dict[str, Any] = {}
    exec(compile(code.replace("http://127.0.0.1:7860", address), "README.md", "exec"), told)
    assert told["report"]["words"]["word"] == "car" and len(told["files"]) == 5
    assert Path(told["sheet"]).exists()


def test_an_error_quotes_as_people_do() -> None:
    told = shown(SettingError("'<b>' is no \"layer\"")).message
    assert told == "'&lt;b&gt;' is no \"layer\""


def test_the_task_follows_the_prompts_until_one_is_chosen():
    bus = SOURCE, SOURCE.replace("car", "bus")
    assert page.follow_difference(*bus, "style", "style") == ("shape", "shape")
    task, guessed = page.follow_difference(*bus, "shape", "style")  # an example that came with it
    assert isinstance(task, dict) and guessed == "shape"
    for task, guessed in (("style", None), ("place", "style")):
        kept, after = page.follow_difference(*bus, task, guessed)
        assert isinstance(kept, dict) and after == guessed
    unclear, after = page.follow_difference(SOURCE, "", "style", "style")
    assert isinstance(unclear, dict) and after == "style"


def test_no_listener_that_may_wait_shares_its_event():
    """Gradio gives an event to all its listeners again when one of them had to wait, so two would never end. And its
    queue still takes the pause between two looks that is given to it."""
    with Worker() as worker:
        demo = app.build(worker, body=page.painted_circles)
    assert vars(gr.Blocks().queue()._queue)["sleep_when_free"] < vars(demo._queue)["sleep_when_free"]
    asked = demo.config["dependencies"]
    listeners = defaultdict(list)
    for one in asked:
        if one["backend_fn"]:
            for target in one["targets"]:
                if target[0] is not None:
                    listeners[tuple(target)].append(one["trigger_mode"])
    shared = {event: modes for event, modes in listeners.items() if len(modes) > 1 and "always_last" in modes}
    assert not shared and any(modes == ["always_last"] for modes in listeners.values())
