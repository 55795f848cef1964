"""Q and K of the source that an inversion keeps for the edits after it: on the device, or in host RAM.

At 8 × 512² zeroscope's fused sites hold about a gigabyte a step, so what does not fit the device goes to pinned host
memory, and comes back while the sites before it compute. What does not fit there either is replayed (`editor`).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Features"]

Key = tuple[int, str, int]  # timestep, site name, first frame of the span
Pair = tuple[Tensor, Tensor]


class Features:
    """Pairs of Q and K, each (n, heads, s, d), by timestep, site and span.

    With `host` they are kept in host RAM, pinned where the device is a CUDA one. Those of a timestep are best read in
    the order in which they were kept.
    """

    def __init__(self, *, host: bool = False) -> None:
        self.host = host
        self._kept: dict[Key, Pair] = {}
        self._after: dict[Key, Key] = {}
        self._last: Key | None = None
        self._coming: dict[Key, tuple[Pair, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._device = torch.device("cpu")

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Key, q: Tensor, k: Tensor) -> None:
        self._device = q.device
        if self._last is not None and self._last[0] == key[0]:
            self._after[self._last] = key
        self._last = key
        self._kept[key] = (self._away(q), self._away(k)) if self.host else (q, k)

    def read(self, key: Key) -> Pair:
        """Q and K on the device that they came from; the pair that was kept next is fetched meanwhile."""
        if not self.host or self._device.type != "cuda":
            q, k = self._kept[key]
            return q.to(self._device), k.to(self._device)
        self._fetch(key)
        (q, k), ready = self._coming.pop(key)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(ready)
        for tensor in (q, k):
            tensor.record_stream(here)
        if key in self._after:
            self._fetch(self._after[key])
        return q, k

    def _away(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            return x.to("cpu")
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return pinned.copy_(x, non_blocking=True)  # in the stream's order, as are all later reads of it

    def _fetch(self, key: Key) -> None:
        """Begins to copy a pair to the device beside what computes there."""
        if key in self._coming or key not in self._kept:
            return
        self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            q, k = (x.to(self._device, non_blocking=True) for x in self._kept[key])
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._coming[key] = (q, k), done
