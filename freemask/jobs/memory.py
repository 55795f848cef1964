"""What an edit needs in memory, told before it begins, and where the source's features are best kept.

The UNet and the autoencoder are run once on torch's meta device, where tensors have shapes and no values, while every
storage that is made and freed is counted: the peak of the real run, in seconds, without the weights and on any machine.
Attention itself is left out of the count, since the kernels that run it keep no map. The peak is proportional to frames
and area (zeroscope's UNet: 21,167 bytes a cell at 8 × 512², 21,184 at 24 × 576 × 320), so the specs of known backbones
hold it, and only other folders are run dry.
"""

from __future__ import annotations

import json
import resource
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..clips.spans import spans
from ..families.backbone import Backbone
from ..families.specs import known_backbone
from ..families.temporal import add_temporal, over_frames, temporal_blocks
from ..methods.base import fused_sites, windows
from ..presets import Preset
from ..settings import FeatureSource, batch_rows

__all__ = ["Need", "Peak", "choose_features", "free_bytes", "need", "run_dry"]

HOST = 2 * 2**30  # bytes of host RAM that stored features may take where nobody asked for them
WORKSPACE = 32 * 2**20  # bytes that the libraries of matrix products set aside, on CUDA once for each stream in use
HEAP = 1.6  # of what lives in a forward, that the C library's heap holds: 1.5 to 1.7 with mini at 64² and 128²
SLACK = 0.9  # of the free memory that is counted on


@dataclass(frozen=True)
class Need:
    """Bytes: `weights` that stay on the device, a batch `row` of the UNet's forward, `autoencoder` for the frames that
    it takes at once, `pivots` of the trajectory; batch `rows` of a forward where the source is replayed, and where it
    is not; `features` of the source if they are stored, `pinned` if that is in pinned host RAM, `step` those of one
    span's forward, and `pair` those that a site reads."""

    weights: int
    row: int
    autoencoder: int
    pivots: int
    features: int
    pinned: int
    step: int
    pair: int
    rows: tuple[int, int] = (3, 2)

    def peak(self, features: FeatureSource, one_row: bool = False) -> int:
        """On the device at once, where the source's features come from there: replayed, they are a third batch row;
        from host RAM, the next pair comes while one is used."""
        rows = (1 if one_row else self.rows[features != "replay"]) * self.row
        kept = self.features if features == "store" else 2 * self.pair if features == "host" or one_row else 0
        return self.weights + self.pivots + kept + max(rows, self.autoencoder) + WORKSPACE

    def in_process(self) -> Need:
        """The same where the device is the host: the heap holds more than lives in a forward, and what waits in host
        RAM for its step is there too."""
        return replace(self, row=int(HEAP * self.row), pair=self.step // 2)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _NoMaps(TorchFunctionMode):
    """Attention as the fused kernels do it, as far as memory goes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return function(*args, **(kwargs or {}))


@lru_cache(maxsize=64)
def _dry_run(
    kind: str, config: str, dtype: torch.dtype, shape: tuple[int, ...], text: tuple[int, ...], temporal: int = 0
) -> int:
    """The peak in bytes of what `run_dry` runs."""
    counter = _Counter()
    run_dry(kind, json.loads(config), dtype, shape, text, _NoMaps(), counter, temporal=temporal)
    return counter.peak


def run_dry(
    kind: str,
    config: dict[str, Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    text: tuple[int, ...],
    *modes: AbstractContextManager[Any],
    temporal: int = 0,
) -> None:
    """On the meta device, inside some modes that count: one forward of a UNet for latents and `text` in the shapes that
    it takes, or where that is empty one decoding of latents (1, c, h, w), or (1, c, f', h, w), by an autoencoder. With
    `temporal` an image UNet's blocks attend over so many frames, as a tuned one's do."""
    with torch.device("meta"):
        model = getattr(diffusers, kind).from_config(config)
        if temporal:
            add_temporal(model)
        model = nn.Module.to(model, dtype).eval()
        inputs = [torch.empty(shape, dtype=dtype)]
        if text:
            inputs += [torch.ones(1), torch.empty(text, dtype=dtype)]
    with torch.inference_mode(), over_frames(temporal_blocks(model), temporal), ExitStack() as counted:
        for mode in modes:
            counted.enter_context(mode)
        (model if text else model.decode)(*inputs)


def _size(*models: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def _config(model: Any) -> str:
    return json.dumps({k: v for k, v in model.config.items() if not k.startswith("_")}, sort_keys=True)


def _kept(backbone: Backbone, task: Preset, steps: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Bytes of Q and of K of each site that a task fuses, in each span of latents (1, c, f, h, w), and in how many
    steps."""
    grid = shape[3], shape[4]
    each = next(backbone.unet.parameters()).element_size()
    count = windows(task, steps)
    for site in fused_sites(backbone.sites, grid, count, task):
        attn: Any = backbone.unet.get_submodule(site.name)
        h, w = site.grid(grid)
        keys = backbone.keys(site, grid)
        for span in spans(shape[2], backbone.native_frames):
            token = (span.stop - span.start) * attn.to_q.out_features * each
            yield h * w * token, keys * token, count[site.kind]


def _pinned(size: int) -> int:
    """What torch takes from the host for so many bytes of pinned memory: a power of two."""
    return 1 << max(0, size - 1).bit_length()


def need(backbone: Backbone, task: Preset, *, steps: int, shape: tuple[int, ...]) -> Need:
    """What an edit of latents (1, c, f, h, w) by a task needs."""
    unet, vae = backbone.unet, backbone.vae
    length = min(shape[2], backbone.native_frames)
    spec = known_backbone(backbone.name)
    if spec and spec.working_set:
        cells = shape[3] * shape[4]
        row = spec.working_set["unet"] * length * cells * unet.dtype.itemsize // 2
        decoded = spec.working_set["vae"] * cells * vae.dtype.itemsize // 2
    else:
        latents, text = backbone.asked((1, shape[1], length, *shape[3:]), (1, *backbone.text_shape))
        temporal = length if temporal_blocks(unet) else 0
        row = _dry_run(type(unet).__name__, _config(unet), unet.dtype, latents, text, temporal)
        at_once = shape if backbone.time_stride > 1 else (1, shape[1], *shape[3:])
        decoded = _dry_run(type(vae).__name__, _config(vae), vae.dtype, at_once, ())
    models = (unet,) if backbone.low_vram else (unet, vae, backbone.text_encoder)
    kept = list(_kept(backbone, task, steps, shape))
    return Need(
        weights=_size(*models),
        row=row,
        autoencoder=decoded if backbone.time_stride > 1 else min(shape[2], backbone.chunk) * decoded,
        pivots=(steps + 1) * 4 * int(torch.Size(shape).numel()),
        rows=(batch_rows(task, "replay", False), batch_rows(task, "store", False)),
        features=sum((q + k) * count for q, k, count in kept),
        pinned=sum((_pinned(q) + _pinned(k)) * count for q, k, count in kept),
        step=sum(q + k for q, k, count in kept if count) // len(spans(shape[2], backbone.native_frames)),
        pair=max((q + k for q, k, count in kept if count), default=0),
    )


def free_bytes(device: torch.device) -> tuple[int, int]:
    """What is free on the device and in host RAM, within the limit of a container where there is one."""
    host = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):  # no such limit
        host = min(host, int(limit.read_text()) - int(used.read_text()))
    if device.type != "cuda":
        return host, host
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused, host


class Peak:
    """The most memory held since this was made: the device's on CUDA, else the process's resident size. `before` is
    what was held then, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # only Linux can begin anew; elsewhere it is the peak since the process began
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self.mib()

    def mib(self) -> float:
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        with suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

    def expected(self, wanted: Need, features: FeatureSource, one_row: bool) -> float:
        """The peak in MiB that `wanted` tells; on the CPU the process's, which holds its code and weights before."""
        if self.device.type == "cuda":
            return round(wanted.peak(features, one_row) / 2**20, 1)
        peak = wanted.in_process().peak("store" if features == "host" else features, one_row)
        return round(self.before + (peak - wanted.weights) / 2**20, 1)


def choose_features(asked: Need, device: torch.device, free: tuple[int, int]) -> FeatureSource:
    """Where the source's features come from: the device where they fit beside the rest of the edit, which saves a third
    of its batch rows, else host RAM where they take little of it, else they are replayed.

    `free` are bytes on the device and in host RAM, with the weights in place.
    """
    here, host = (SLACK * one for one in free)
    needed = asked if device.type == "cuda" else asked.in_process()

    def fits(features: FeatureSource) -> bool:
        return needed.peak(features) - needed.weights <= here

    if fits("store") and (device.type == "cuda" or asked.features <= min(HOST, host)):
        return "store"
    if device.type == "cuda" and fits("host") and asked.pinned <= min(HOST, host):
        return "host"
    return "replay"
