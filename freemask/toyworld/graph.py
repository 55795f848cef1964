"""A training step as one CUDA graph: a network this small otherwise waits for its launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Graph"]


class Graph:
    """A step that computes on a GPU alone, as one CUDA graph: the first calls run it as it is, beside the main stream,
    so that what sets itself up is not captured; the next captures it and, as all after it, replays it on inputs that
    are copied into its own."""

    WARM = 3

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step = step
        self.calls = 0

    def __call__(self, *given: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.WARM:
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                loss = self.step(*given)
            torch.cuda.current_stream().wait_stream(beside)
            return loss
        if self.calls == self.WARM + 1:
            self.given = [x.clone() for x in given]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.step(*self.given)
        for own, x in zip(self.given, given, strict=True):
            own.copy_(x)
        self.graph.replay()
        return self.loss
