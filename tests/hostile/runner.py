"""Takes hostile cases through the product's own entry points, in child processes that may be lost, and counts."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hostile.child import KINDS, Told

SHARES = {"clips": 32, "masks": 16, "settings": 12, "prompts": 12, "links": 8, "calls": 14, "traces": 6}
HERE = Path(__file__).resolve().parents[2]
SECONDS, MIB = 10.0, 1024.0  # that a case may take at most
PATIENCE = 120.0


def cases(count: int) -> list[tuple[str, int]]:
    """So many cases, shared among the kinds."""
    return [(kind, index) for kind in KINDS for index in range(count * SHARES[kind] // sum(SHARES.values()))]


class _Process:
    def __init__(self, seed: int) -> None:
        self.folder = TemporaryDirectory(prefix="hostile-")
        root = Path(self.folder.name)
        (root / "tmp").mkdir()
        env = os.environ | {"TMPDIR": str(root / "tmp"), "GRADIO_TEMP_DIR": str(root / "served")}
        env |= {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'tests'}", "GRADIO_ANALYTICS_ENABLED": "False"}
        env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hostile.child", str(root), str(seed)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put("")

    def take(self, kind: str, index: int) -> Told | None:
        """What became of a case; None where the process has ended, or does not answer."""
        assert self._child.stdin
        try:
            self._child.stdin.write(json.dumps([kind, index]) + "\n")
            self._child.stdin.flush()
            line = self._answers.get(timeout=PATIENCE)
        except (OSError, queue.Empty):
            return None
        return Told(**json.loads(line)) if line else None

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self.folder.cleanup()


def run(asked: Iterable[tuple[str, int]], seed: int) -> Iterator[Told]:
    """What became of each case, in turn."""
    process = _Process(seed)
    try:
        for kind, index in asked:
            told = process.take(kind, index)
            if told is None:
                told = Told(kind, index, "?", "lost", wrong="the process ended, or did not answer", seconds=PATIENCE)
                process.close()
                process = _Process(seed)
            elif told.mib > MIB and not told.wrong:
                told.wrong = f"it took {told.mib:.0f} MiB"
            yield told
    finally:
        process.close()


def table(found: list[Told]) -> str:
    """Of each kind: cases, accepted, refusals by class, what went wrong, the slowest, and the most memory."""
    row = "{:9} {:>6} {:>9} {:>8} {:>11} {:>6} {:>9} {:>9} {:>8}  {}".format
    lines = [
        row("kind", "cases", "accepted", "refused", "tracebacks", "wrong", "slowest", "processor", "MiB", "refusals")
    ]
    for kind in (*KINDS, "all"):
        own = [one for one in found if kind in (one.kind, "all")]
        if not own:
            continue
        became = Counter(one.became for one in own)
        refused = {
            name: n for name, n in became.most_common() if name not in ("accepted", "traceback", "lost", "other")
        }
        lines.append(
            row(
                kind,
                len(own),
                became["accepted"],
                sum(refused.values()),
                became["traceback"],
                sum(bool(one.wrong) for one in own),
                f"{max(one.seconds for one in own):.1f} s",
                f"{max(one.cpu for one in own):.1f} s",
                f"{max(one.mib for one in own):.0f}",
                ", ".join(f"{n} {name}" for name, n in refused.items()),
            )  # fmt: skip
        )
    return "\n".join(lines)
