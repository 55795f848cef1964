"""Q and K of the source that an inversion keeps for the edits after it: on the device, or in host RAM.

At 8 × 512² zeroscope's fused sites hold about a gigabyte a step, so what does not fit the device goes to pinned host
memory, and comes back while the sites before it compute. What does not fit there either is replayed (`editor`).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Features"]

Key = tuple[int, str, int]  # timestep, site name, first frame of the span
Kept = tuple[Tensor, ...]


class Features:
    """Q and K, each (n, heads, s, d), and what else a method wants of a site, by timestep, site and span.

    With `host` they are kept in host RAM, pinned where the device is a CUDA one. Those of a timestep are best read in
    the order in which they were kept.
    """

    def __init__(self, *, host: bool = False) -> None:
        self.host = host
        self._kept: dict[Key, Kept] = {}
        self._after: dict[Key, Key] = {}
        self._last: Key | None = None
        self._coming: dict[Key, tuple[Kept, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._device = torch.device("cpu")

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def in_ram(self) -> bool:
        """Whether they are in the RAM of this process, not on a device of its own."""
        return self.host or self._device.type == "cpu"

    def keep(self, key: Key, *each: Tensor) -> None:
        self._device = each[0].device
        if self._last is not None and self._last[0] == key[0]:
            self._after[self._last] = key
        self._last = key
        self._kept[key] = tuple(map(self._away, each)) if self.host else each

    def read(self, key: Key) -> Kept:
        """What was kept, on the device that it came from; what was kept next is fetched meanwhile."""
        if not self.host or self._device.type != "cuda":
            return tuple(one.to(self._device) for one in self._kept[key])
        self._fetch(key)
        each, ready = self._coming.pop(key)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(ready)
        for tensor in each:
            tensor.record_stream(here)
        if key in self._after:
            self._fetch(self._after[key])
        return each

    def _away(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            return x.to("cpu")
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return pinned.copy_(x, non_blocking=True)  # in the stream's order, as are all later reads of it

    def _fetch(self, key: Key) -> None:
        """Begins to copy them to the device beside what computes there."""
        if key in self._coming or key not in self._kept:
            return
        self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            each = tuple(x.to(self._device, non_blocking=True) for x in self._kept[key])
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._coming[key] = each, done
