"""Takes cases one after another in a process of its own and tells of each what became of it, as a line of JSON."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from hostile.cases import BAD, FINE, Refused, rng_of

KINDS = ("clips", "masks", "settings", "prompts", "links", "calls", "traces")
LONGEST = 700  # characters of a refusal
MIB = 2**20


@dataclass
class Told:
    """What became of a case: `wrong` says what should have been otherwise, "" where all is well. `seconds` are of the
    clock and `cpu` of the processor, of its longest request; `mib` is what was taken above the idle process, with the
    largest of its children."""

    kind: str
    index: int
    shape: str
    became: str = "accepted"
    said: str = ""
    wrong: str = ""
    seconds: float = 0.0
    cpu: float = 0.0
    mib: float = 0.0


def shapes_and_take(kind: str) -> tuple[Any, Any]:
    """Imported when it is wanted, since some kinds want torch or a server."""
    if kind == "clips":
        from hostile import clips as room

        return room.shapes, room.take
    if kind == "masks":
        from hostile import zips

        return zips.shapes, zips.take
    if kind in ("settings", "prompts", "links"):
        from hostile import texts

        return getattr(texts, kind), getattr(texts, f"take_{kind}")
    if kind == "calls":
        from hostile import calls

        return calls.shapes, calls.take
    from hostile import traces

    return traces.shapes, traces.take


class _Lap:
    """The longest of a case's requests, by the clock and by the processor."""

    def __init__(self, told: Told) -> None:
        self._told, self._clock, self._cpu = told, time.monotonic(), sum(os.times()[:4])

    def end(self) -> None:
        clock, cpu = time.monotonic(), sum(os.times()[:4])
        self._told.seconds = max(self._told.seconds, clock - self._clock)
        self._told.cpu = max(self._told.cpu, cpu - self._cpu)
        self._clock, self._cpu = clock, cpu


class Memory:
    """The most that this process, and the largest of its children, has held since `reset`; 0 where none tells it."""

    def __init__(self) -> None:
        self._child, self._own, self._start = 0, os.path.realpath("/proc/self/exe"), 0
        if Path("/proc/self/clear_refs").exists():
            threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        gc.collect()
        gc.freeze()  # what is left, libraries above all, is not looked through before each case
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return
        self._child, self._start = 0, _status("self", "VmRSS")

    @property
    def mib(self) -> float:
        return (max(0, _status("self", "VmHWM") - self._start) + self._child) / MIB if self._start else 0.0

    def _watch(self) -> None:
        while True:
            time.sleep(0.02)  # who takes a GiB lives longer
            for task in Path("/proc/self/task").iterdir():
                try:
                    children = (task / "children").read_text().split()
                except OSError:
                    continue
                for one in children:
                    try:
                        if (
                            os.readlink(f"/proc/{one}/exe") != self._own
                        ):  # before it becomes its program it is as we are
                            self._child = max(self._child, _status(one, "VmHWM"))
                    except OSError:
                        continue


def _status(process: str, name: str) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def seen(root: Path) -> dict[str, tuple[int, int]]:
    """All files outside the cases' own folders and Gradio's, with their sizes and times."""
    found = {}
    for path in root.rglob("*"):
        inside = path.relative_to(root).parts
        if inside[0] not in ("cases", "served") and path.is_file():
            about = path.stat()
            found[str(path.relative_to(root))] = about.st_size, about.st_mtime_ns
    return found


class Child:
    """`root` holds a folder for cases, one for temporary files, one to work in, and a file that none may touch."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed, self.memory = root, seed, Memory()
        for name in ("cases", "canary", "served", "tmp", "here"):
            (root / name).mkdir(exist_ok=True)
        (root / "canary" / "secret.mp4").write_bytes(b"canary " * 99)
        os.chdir(root / "here")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.called: list[Any] = []
        threading.Thread(target=self._listen, daemon=True).start()
        from hostile import clips

        clips._listening.append(self.listener)

    def _listen(self) -> None:
        while True:
            connection, where = self.listener.accept()
            self.called.append(where)
            connection.close()

    def take(self, kind: str, index: int) -> Told:
        from freemask.errors import FreeMaskError

        shapes, take = shapes_and_take(kind)
        shape = shapes.at(index)
        told = Told(kind, index, shape.name)
        folder = self.root / "cases" / f"{kind}-{index}"
        folder.mkdir()
        given = shape.make(rng_of(self.seed, kind, index), folder)
        before, calls = seen(self.root), len(self.called)
        self.memory.reset()
        lap = _Lap(told)
        try:
            for _ in take(given) or ():
                lap.end()
        except (FreeMaskError, Refused) as error:
            told.became, told.said = type(error).__name__, str(error)
            if isinstance(error, FreeMaskError):
                told.wrong = _wording(told.said)
            if shape.verdict == FINE:
                told.wrong = f"false refusal: {told.said[:300]}"
        except gr.Error as error:
            ours = isinstance(error.__context__, FreeMaskError)
            told.became, told.said = type(error.__context__).__name__, error.message
            told.wrong = _wording(told.said) if ours else f"unexpected: {error.message}"
            if shape.verdict == FINE:
                told.wrong = f"false refusal: {told.said[:300]}"
        except AssertionError as error:
            told.became, told.wrong = "other", str(error)[:300] or "an assertion failed"
        except BaseException as error:
            told.became, told.wrong = "traceback", f"{type(error).__name__}: {error}"[:400] + _where(error)
        else:
            if shape.verdict == BAD:
                told.wrong = "it was accepted"
        lap.end()
        told.mib = self.memory.mib
        if (after := seen(self.root)) != before:
            told.wrong += f" files changed: {sorted(set(after.items()) ^ set(before.items()))[:3]}"
        if len(self.called) > calls:
            told.wrong += " an address was called"
        shutil.rmtree(folder, ignore_errors=True)
        return told


def _wording(said: str) -> str:
    """What is wrong with how a refusal is told: it is a sentence or two on a line, and says what to do."""
    if "\n" in said or not said.endswith((".", "'…", '"')):
        return f"no sentence: {said[:200]!r}"
    if len(said) > LONGEST:
        return f"a refusal of {len(said)} characters: {said[:200]!r}"
    return "" if ": " in said or ";" in said or "Allowed" in said else f"no cure: {said[:200]!r}"


def _where(error: BaseException) -> str:
    at, last = error.__traceback__, ""
    while at:
        name = at.tb_frame.f_code.co_filename
        if "freemask" in name:
            last = f" at {name.rpartition('freemask/')[2]}:{at.tb_lineno}"
        at = at.tb_next
    return last


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    warnings.simplefilter("ignore")
    child = Child(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        kind, index = json.loads(line)
        print(json.dumps(asdict(child.take(kind, index))), file=answers, flush=True)


if __name__ == "__main__":
    main()
