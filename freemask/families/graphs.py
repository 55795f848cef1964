"""Forward passes that are recorded once as CUDA graphs and run again, so that the device is the pace and not the host.

A recorded pass runs the same kernels on the same memory, without Python. So what differs from step to step goes in and
out by name: a hook asks `given` for what each step has of its own, such as a mask, and hands what it has seen to
`taken`. All else that a hook decides by must be in the pass's `kind`, of which each has a recording of its own.

A pass of a new kind runs as ever, is then recorded, and the recording is run on the same input: only if both say the
same it is used from then on. What cannot be recorded runs as ever too, and `Usage.why` tells the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ..errors import first_line
from .devices import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .attention import Hook
    from .backbone import Backbone
    from .sites import Site

__all__ = ["Forwards", "Usage", "given", "recorder", "taken"]

Tensors = tuple[Tensor, ...]
Recorder = Callable[[Callable[[], list[Tensor]]], Callable[[], list[Tensor]]]  # of a run, how it is run again
AGREED = 1e-2  # of its largest value, that a recording may differ by: halves round in other orders


class _Tape:
    """What goes in and out of one kind of pass while it is recorded, beside latents, label and text."""

    def __init__(self) -> None:
        self.inputs: dict[Hashable, tuple[Tensors, Callable[[], Tensors]]] = {}
        self.outputs: list[tuple[Tensors, Callable[..., object]]] = []

    def give(self, key: Hashable, make: Callable[[], Tensors]) -> Tensors:
        if key not in self.inputs:
            self.inputs[key] = tuple(x.clone() for x in make()), make
        return self.inputs[key][0]

    def refill(self) -> None:
        for places, make in self.inputs.values():
            for place, x in zip(places, make(), strict=True):
                place.copy_(x, non_blocking=True)


_tape: ContextVar[_Tape | None] = ContextVar("tape", default=None)


def given(key: Hashable, make: Callable[[], Tensors]) -> Tensors:
    """The tensors that `make` gives in this step: always of the same shapes under a key, in a kind of pass."""
    tape = _tape.get()
    return make() if tape is None else tape.give(key, make)


def taken(sink: Callable[..., object], *seen: Tensor) -> None:
    """Hands tensors of this step to `sink`, at once or after a recorded pass."""
    tape = _tape.get()
    if tape is None:
        sink(*seen)
    else:
        tape.outputs.append((seen, sink))


@contextmanager
def _on(tape: _Tape) -> Iterator[None]:
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


def recorder(backbone: Backbone) -> Recorder | None:
    """How passes are recorded where the network runs; None where they are not: on other devices than CUDA, and with
    `low_vram`, under which the weights move."""
    if backbone.device.type != "cuda" or backbone.low_vram:
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        # one recording after the other uses the same memory: what comes out is copied before the next one runs
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            out = run()

        def again() -> list[Tensor]:
            graph.replay()
            return out

        return again

    return record


class _Recording:
    """One kind of pass, recorded."""

    def __init__(
        self, backbone: Backbone, record: Recorder, tape: _Tape, asked: Tensors, hooks: Mapping[Site, Hook]
    ) -> None:
        self.backbone, self.tape = backbone, tape
        self.x, self.t, self.text = asked
        with backbone.over(self.x.shape[2], hooks, self.text), _on(tape):
            self.again = record(self.run)

    def run(self) -> list[Tensor]:
        self.tape.outputs = []
        out = self.backbone.output(self.x, self.t, self.text)
        return [out, *(x for seen, _ in self.tape.outputs for x in seen)]

    def __call__(self, x: Tensor, t: int, text: Tensor, *, sinks: bool = True) -> Tensor:
        """What the network says of other latents under another label; the `sinks` get what is seen on the way."""
        self.x.copy_(x)
        self.t.fill_(t)
        self.text.copy_(text)
        self.tape.refill()
        out, *rest = self.again()
        for seen, sink in self.tape.outputs if sinks else ():
            sink(*(rest.pop(0).clone() for _ in seen))
        return out.clone()


@dataclass
class Usage:
    """UNet calls of a stage: how many forwards, how many batch rows in all, how many backward passes, and how many of
    the forwards were recordings; `why` tells the reason where something could not be recorded."""

    forwards: int = 0
    rows: int = 0
    backwards: int = 0
    recorded: int = 0
    why: str = ""

    def add(self, rows: int) -> None:
        self.forwards += 1
        self.rows += rows

    def told(self) -> dict[str, int | str]:
        """As a report has it: nothing of recordings where there were none."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("recorded", "why")}


class Forwards:
    """Asks a backbone's network in one stage of an edit, and records what it can; its end frees the recordings."""

    def __init__(self, backbone: Backbone, usage: Usage | None = None) -> None:
        self.backbone, self.usage = backbone, usage or Usage()
        self._record = recorder(backbone)
        self._kept: dict[Hashable, _Recording | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(
        self,
        x: Tensor,
        t: int,
        text: Tensor,
        level: float | None = None,
        hooks: Mapping[Site, Hook] | None = None,
        kind: Hashable = None,
    ) -> Tensor:
        """`Backbone.predict`, by a recording where there is one of this `kind`; None is never recorded."""
        self.usage.add(len(x))
        if self._record is None or kind is None:
            return self.backbone.predict(x, t, text, level, hooks)
        key = kind, x.shape, text.shape
        if key not in self._kept:
            self._kept[key] = None
            return self._first(key, x, t, text, level, hooks or {})
        if (found := self._kept[key]) is None:
            return self.backbone.predict(x, t, text, level, hooks)
        self.usage.recorded += 1
        return self.backbone.noise(x, found(x, t, text), t, level)

    def _first(
        self, key: Hashable, x: Tensor, t: int, text: Tensor, level: float | None, hooks: Mapping[Site, Hook]
    ) -> Tensor:
        """A pass of a new kind, as ever; then its recording."""
        assert self._record
        why, tape = "", _Tape()
        with self.backbone.over(x.shape[2], hooks, text), _on(tape):
            out = self.backbone.output(x, t, text)
        for seen, sink in tape.outputs:
            sink(*seen)
        tape.outputs = []
        try:
            asked = x.clone(), torch.tensor(t, device=x.device), text.clone()
            made = _Recording(self.backbone, self._record, tape, asked, hooks)
            again = made(x, t, text, sinks=False)
            if float((again - out).abs().max()) <= AGREED * float(out.abs().max()):
                self._kept[key] = made
            else:
                why = "a recorded pass differed from the pass itself"
        except Exception as error:  # torch and its drivers raise many kinds
            why = first_line(error)[:160]
            why = "there was no memory for it" if is_out_of_memory(error) else why
        if why:
            self.usage.why = why
            self.close()
        return self.backbone.noise(x, out, t, level)

    def close(self) -> None:
        """Frees the recordings; from here on nothing is recorded."""
        had, self._record = bool(self._kept), None
        self._kept.clear()
        if had:
            free_memory()
