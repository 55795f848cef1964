"""Calls that no page makes: of files and addresses that are nobody's to name, of others' jobs, with absurd values."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
from hostile import clips
from hostile.cases import ANY, BAD, FINE, Refused, Shapes, Unhandled
from hostile.clips import EDIT, SOURCE, write_disc
from hostile.texts import ODD
from serving import launch

import app
from freemask import page
from freemask.jobs.worker import Worker
from freemask.page.fields import NAMES

shapes = Shapes()
PATIENCE = 60.0
OURS = f'File "{Path(page.__file__).parent.parent}'  # in a traceback
USUAL: dict[str, Any] = dict.fromkeys(NAMES, "") | {
    "source": SOURCE,
    "edit": EDIT,
    "task": "attribute",
    "backbone": "mini",
    "steps": 2,
    "solver": "ddim",
    "guidance": 3,
    "frames": 4,
    "start": 0,
    "union": False,
    "masks": None,
    "features": "replay",
    "low_vram": False,
    "eta": 0,
    "seed": 0,
    "method": "freemask",
}
FILE = {"meta": {"_type": "gradio.FileData"}}


@contextmanager
def overheard() -> Any:
    """What is written to standard error meanwhile, from any thread."""
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        yield sys.stderr
    finally:
        sys.stderr = before


class Server:
    """The page, with circles painted for edits, and a visitor of it who has made an edit."""

    def __init__(self, folder: Path) -> None:
        def body(*given: Any) -> Any:
            return (yield from page.painted_circles(*given, pause=lambda: None))

        self.demo = app.build(Worker(limit=4), body=body, judge=True)
        url = launch(self.demo)
        self.http = httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE)
        self.clip = self.upload("disc.mp4", write_disc(folder / "call.mp4").read_bytes())
        page.tell_world(self.clip["path"], 4, 0, "", "mini", SOURCE)  # what a server imports once is no case's time
        self.other = "anothervisitor"
        told = self.edit({}, session=self.other)
        self.run = re.search(r"visit-[\w-]+/([\w-]+)/", json.dumps(told))[1]  # type: ignore[index]

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        answer = self.http.post("upload", files={"files": (name, data)})
        if answer.status_code != 200:
            raise Refused(answer.text)
        return FILE | {"path": answer.json()[0]}

    def edit(self, changed: dict[str, Any], *, session: str, raw: str = "") -> list[Any]:
        return self.call("edit", [*(USUAL | {"clip": self.clip} | changed).values()], session=session, raw=raw)

    def call(self, name: str, data: list[Any], *, session: str, event: Any = None, raw: str = "") -> list[Any]:
        """What an event answers, by its public or its function's name; `raw` JSON stands where the data says "RAW".
        Raises Refused, or Unhandled where what went wrong went wrong in our code."""
        index = next(
            i for i, fn in self.demo.fns.items() if name in (fn.api_name, getattr(fn.fn, "__name__", "")) and fn.fn
        )
        asked = {"data": data, "fn_index": index, "session_hash": session, "event_data": event, "trigger_id": 1}
        content = json.dumps(asked).replace('"RAW"', raw)
        with overheard() as heard:
            fn = self.demo.fns[index]
            said = self._queued(content, session) if fn.queue else self._straight(content)
        if OURS in (told := heard.getvalue()):
            raise Unhandled(
                told.strip().rpartition("\n")[2]
                + " in "
                + " ".join(re.findall(r'freemask/[\w/]+\.py", line \d+', told)[-1:])
            )
        if isinstance(said, str):
            raise Refused(said)
        return said

    def _straight(self, content: str) -> list[Any] | str:
        answer = self.http.post("run/predict", content=content, headers={"Content-Type": "application/json"})
        told = answer.json()
        return told["data"] if answer.status_code == 200 else str(told.get("error") or told.get("detail"))

    def _queued(self, content: str, session: str) -> list[Any] | str:
        answer = self.http.post("queue/join", content=content, headers={"Content-Type": "application/json"})
        if answer.status_code != 200:
            return answer.text
        id, heard = answer.json()["event_id"], []
        with self.http.stream("GET", "queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                if not line.startswith("data:"):
                    continue
                told = json.loads(line[5:])
                if told["msg"] == "unexpected_error" or (told.get("event_id") == id and told.get("success") is False):
                    return str(told.get("message") or told["output"].get("error"))
                if told.get("event_id") == id and told["msg"] in ("process_generating", "process_completed"):
                    heard.append(told["output"].get("data"))
                    if told["msg"] == "process_completed":
                        return heard
        return "the stream ended"


@lru_cache(maxsize=1)
def server(folder: Path) -> Server:
    return Server(folder)


def take(given: Any) -> None:
    given()


def stranger(rng: random.Random) -> str:
    return f"s{rng.randrange(10**9)}"


def canary(folder: Path) -> Path:
    return folder.parent.parent / "canary" / "secret.mp4"


@shapes.add(BAD)
def file_outside(rng: random.Random, folder: Path) -> Any:
    """A path outside the upload folder, for the clip, the masks, the settings or the preview."""
    one, who = server(folder.parent), stranger(rng)
    cache = Path(one.clip["path"]).parent.parent
    paths = (
        "/etc/passwd",
        str(canary(folder)),
        f"{cache}/../canary/secret.mp4",
        "app.py",
        f"file://{canary(folder)}",
        f"{app.HERE}/freemask/__init__.py",
        f"{app.HERE}/static/style.css",
        "/proc/self/environ",
        "~/.ssh/id_rsa",
        "\0",
    )
    file = (
        FILE | {"path": rng.choice(paths)} | rng.choice(({}, {"orig_name": "clip.mp4"}, {"url": "http://127.0.0.1/"}))
    )
    how = rng.choice(("clip", "masks", "describe_clip", "follow_trim", "make_preview"))
    data: dict[str, list[Any]] = {"describe_clip": [file], "follow_trim": [file, 4, 0, ""], "make_preview": [file]}
    if how in data:
        return lambda: one.call(how, data[how], session=who, event={"asked": 1})
    return lambda: one.edit({how: file}, session=who)


@shapes.add(BAD)
def address_of_this_machine(rng: random.Random, folder: Path) -> Any:
    one, who, port = server(folder.parent), stranger(rng), clips._port()
    hosts = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]")
    url = f"{rng.choice(('http', 'https'))}://{rng.choice(hosts)}:{port}/clip.mp4"
    url = rng.choice(
        (url, "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", f"ftp://127.0.0.1:{port}/a")
    )
    how = rng.choice(("clip", "masks", "file", "proxy"))
    if how in ("file", "proxy"):
        return lambda: _denied(one, f"{how}={url}")
    file = FILE | rng.choice(({"path": url}, {"path": url, "url": url}, {"path": "clip.mp4", "url": url}))
    return lambda: one.edit({how: file}, session=who)


def _denied(one: Server, path: str) -> None:
    with overheard():
        answer = one.http.get(path)
    if answer.status_code not in (301, 302, 307, 400, 403, 404, 405, 422):
        raise AssertionError(f"{path} was answered {answer.status_code}")
    raise Refused(answer.text)


@shapes.add(BAD)
def file_route(rng: random.Random, folder: Path) -> Any:
    one = server(folder.parent)
    paths = (
        "/etc/passwd",
        "../../../../etc/passwd",
        str(canary(folder)),
        f"{app.HERE}/app.py",
        "%2e%2e/%2e%2e/etc/passwd",
        f"{app.HERE}/static/clips/../../app.py",
        f"{app.HERE}/static/examples/../../README.md",
        "C:/Windows/win.ini",
    )
    return lambda: _denied(one, f"file={rng.choice(paths)}")


@shapes.add(BAD)
def backbone_that_is_not_offered(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    name = rng.choice(
        ("zeroscope", "/etc", "~", "~nobody/x", "owner/model", "../..", str(folder), "", "x" * 5000, ["mini"])
    )
    if rng.random() < 0.5:
        return lambda: one.edit({"backbone": name}, session=who)
    name = "zeroscope" if isinstance(name, list) else name  # each of a list is offered, and only Edit takes none
    told = [SOURCE, EDIT, "attribute", "", name, "freemask"]
    return lambda: one.call("follow_prompts", told, session=who)


NUMBERS = ("NaN", "1e400", "-1e400", "1e308", "-1", "1e-320", "9" * 400, "9" * 5000, "18446744073709551616", "0.5")


@shapes.add(ANY)
def absurd_numbers(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    name = rng.choice(
        ("steps", "guidance", "frames", "start", "eta", "seed", "fps", "tau", "dilate", "timestep", "size")
    )
    raw = rng.choice(NUMBERS)
    if rng.random() < 0.3:
        raw = json.dumps(raw)
    if rng.random() < 0.6 or name not in ("frames", "start", "fps"):
        return lambda: one.edit({name: "RAW"}, session=who, raw=raw)
    given = {"frames": 4, "start": 0, "fps": ""} | {name: "RAW"}
    if rng.random() < 0.5:
        return lambda: one.call("follow_trim", [one.clip, *given.values()], session=who, raw=raw)
    return lambda: one.call("tell_world", [one.clip, *given.values(), "mini", SOURCE], session=who, raw=raw)


@shapes.add(ANY)
def absurd_values(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    changed = {name: rng.choice(ODD) for name in rng.sample(NAMES, rng.choice((1, 1, 2)))}
    return lambda: one.edit(changed, session=who)


@shapes.add(BAD)
def changes_that_are_none(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    odd = rng.choice(ODD)
    change = {"word": "car", "task": "shape"} | {rng.choice(("word", "to", "task", "tau", "site", "mask")): odd}
    text = rng.choice(
        (
            "[" * 100_000,
            "[" * 900 + "]" * 900,
            json.dumps([change] * 3),
            json.dumps([{"word": "car", "task": "place"}]),
            json.dumps([{"word": "car", "task": "keep"}]),
            json.dumps([{"word": f"w{i}", "task": "shape"} for i in range(1000)]),
            '{"word": "car"}',
            "NaN",
        )
    )
    return lambda: one.edit({"changes": text}, session=who)


@shapes.add(BAD)
def too_few_or_many(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    data = rng.choice(([], [None], [one.clip, SOURCE], [*USUAL.values()] * 3, [[]] * len(USUAL), [{}] * len(USUAL)))
    return lambda: one.call("edit", data, session=who)


@shapes.add(BAD)
def anothers_job(rng: random.Random, folder: Path) -> Any:
    """What a visitor has made is asked for by a stranger, by name, by path as a state, or in their stead."""
    one, who = server(folder.parent), stranger(rng)
    state = rng.choice((None, {"folder": str(canary(folder).parent), "report": {}}, one.run))
    return rng.choice(
        (
            lambda: one.call("show_run", [one.run], session=who),
            lambda: one.call("show_run", [rng.choice(("..", "", "/", "x" * 5000))], session=who),
            lambda: one.call("masks", ["car", 1, state], session=who),
            lambda: one.call("file", [rng.choice(("words.npz", "../report.json", "report.json")), state], session=who),
        )
    )


@shapes.add(BAD)
def masks_that_are_not_there(rng: random.Random, folder: Path) -> Any:
    """Of an edit of one's own."""
    one = server(folder.parent)
    frame = rng.choice(("NaN", "1e400", "99", "-7", "null", '"x"', "[]", "1e308", "9" * 400))
    word = rng.choice(("car", "boat", "", "x" * 10**5, "car#" + "9" * 5000, 5, None, ["car"]))
    if frame in ("99", "-7") or word == "car":
        return lambda: one.call("masks", [word, "RAW", None], session=one.other, raw=frame)
    return lambda: one.call("masks", [word, 1, None], session=one.other)


@shapes.add(BAD)
def file_of_ones_own_that_is_none(rng: random.Random, folder: Path) -> Any:
    one = server(folder.parent)
    name = rng.choice(("../report.json", "/etc/passwd", "", "masks.npz/..", "x" * 5000, 5, None, "report.json", "\0"))
    return lambda: one.call("file", [name, None], session=one.other)


EVENTS: tuple[Any, ...] = (
    None,
    {},
    [],
    "x",
    5,
    {"site": None},
    {"site": "up 3.0", "timestep": "x", "tau": 0.4},
    {"site": "up 3.0", "tau": "x"},
    {"site": "<b>", "timestep": 1e308, "tau": 0.4},
    {"h": 8, "w": 8},
    {"h": "x", "w": 8, "data": ""},
    {"h": 0, "w": 0, "data": "AA=="},
    {"h": 10**6, "w": 10**6, "data": "A" * 100},
    {"h": 8, "w": 8, "data": "%%%"},
    {"h": 8, "w": 8, "data": "A" * 10**6},
    {"h": -8, "w": -8, "data": "AAAAAAAAAAA="},
    {"h": 2048, "w": 2048, "data": 5},
    {"start": "x", "end": 1},
    {"start": 0},
    {"start": 1e308, "end": -1e308},
    {"asked": "x"},
    {"asked": None},
    {"word": 5},
    {"number": 1},
    {"number": 1, "kind": "concept", "text": ["<b>"] * 50},
    {"number": 1, "kind": "concept", "text": "wheels"},
    {"number": 1, "kind": "heads", "words": 5},
    {"number": 1, "kind": "heads", "words": [-1, "x"], "site": 5},
    {"number": 1, "kind": "features", "site": "../..", "timestep": 10**9},
    {"number": 1, "kind": "position", "x": 1e308, "y": "x", "frame": -1},
)


@shapes.add(ANY)
def events_of_no_page(rng: random.Random, folder: Path) -> Any:
    """What the studio, the trimmer and the preview tell, as they never do; of an edit, or before any."""
    one, event = server(folder.parent), rng.choice(EVENTS)
    who = rng.choice((stranger(rng), one.other))
    name, data = rng.choice(
        (
            ("take_cell", [None]),
            ("take_painting", [None]),
            ("answer", [None]),
            ("take_trim", [4]),
            ("take_word", []),
            ("make_preview", [one.clip]),
        )
    )
    if rng.random() < 0.3:
        event = {"site": "up 1.1", "timestep": "RAW", "tau": 0.4, "start": "RAW", "end": 2, "asked": "RAW"}
        event |= {"number": 1, "kind": "position", "x": "RAW", "frame": "RAW"}
    return lambda: one.call(name, data, session=who, event=event, raw=rng.choice(NUMBERS))


@shapes.add(ANY)
def uploads_by_odd_names(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    name = rng.choice(
        (
            "../../evil.mp4",
            "/tmp/evil.mp4",
            "..\\..\\evil.mp4",
            "x" * 300 + ".mp4",
            "<img src=x>.mp4",
            "a\nb.mp4",
            "-i.mp4",
            "CON.mp4",
            ".mp4",
            "a b %41 ü.mp4",
            "\u202egpj.mp4",
            "clip.mp4.exe",
            "%2e%2e%2fevil.mp4",
        )
    )
    data = Path(one.clip["path"]).read_bytes() if rng.random() < 0.3 else b"no clip"

    def ask() -> None:
        with overheard():
            file = one.upload(name, data)
        one.edit({"clip": file}, session=who)

    return ask


@shapes.add(FINE, every=3)
def an_edit(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    return lambda: one.edit({"steps": rng.choice((2, 3)), "task": rng.choice(("attribute", "style"))}, session=who)


@shapes.add(BAD)
def prompts_too_long(rng: random.Random, folder: Path) -> Any:
    one, who = server(folder.parent), stranger(rng)
    long = rng.choice(("a " * 50_000, "a" * 100_000, "car bus " * 12_500))
    told = {
        "follow_prompts": [long, EDIT, "shape", "", "mini", "freemask"],
        "follow_difference": [SOURCE, long, "style", None],
    }
    if (how := rng.choice(("edit", "edit", *told))) == "edit":
        return lambda: one.edit({rng.choice(("source", "edit", "word")): long}, session=who)

    def ask() -> None:
        said = json.dumps(one.call(how, told[how], session=who))
        raise Refused("The prompt is long: told on the page." if len(said) < 9000 or how != "follow_prompts" else said)

    return ask
