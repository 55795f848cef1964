"""Where the time of a whole edit goes, clip in to files out, against what the arithmetic alone would take.

The floor is the floating-point work of the UNet's rows at the rate that this device reaches in one large matrix
product, measured in the same run. `full_backbone` is zeroscope's configuration with random weights, since time does
not depend on their values.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    WanTransformer3DModel,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, UMT5Config, UMT5EncoderModel

from ..clips.video import Clip, write_clip
from ..families.backbone import Backbone
from ..families.devices import default_device, default_dtype
from ..families.specs import backbone_folder, known_backbone
from ..families.temporal import temporal_blocks
from ..families.unet3d import UNet3D
from ..families.wan import Wan
from ..jobs.memory import run_dry
from ..jobs.run import run_steps
from ..methods.editor import Editor
from ..settings import make_settings
from ..steps import Steps
from ..toyworld.models import new_scheduler

__all__ = [
    "beside_peer",
    "circumstances",
    "FULL",
    "full_backbone",
    "full_wan",
    "host_pace",
    "in_turn",
    "matrix_rate",
    "other_costs",
    "row_flops",
    "timed",
    "whole_edit",
]

T = TypeVar("T")

# kernels and operators that multiply matrices, by parts of their names
PRODUCTS = ("nvjet", "gemm", "mm", "conv", "attention", "flash", "fmha", "cutlass", "xmma", "matmul", "linear", "sdpa")


@contextmanager
def _made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Models are made there, in that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def full_backbone(device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
    """zeroscope at its full size with random weights, and mini's tokenizer: everything but its knowledge."""
    spec = known_backbone("zeroscope")
    assert spec
    device = device or default_device()
    with _made_on(device, dtype or default_dtype(device)):
        unet = UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **kinds)
        shape = {"num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu", "vocab_size": 49408}
        text = CLIPTextModel(CLIPTextConfig(hidden_size=1024, intermediate_size=4096, **shape))
    mini = backbone_folder("mini")
    assert mini
    tokenizer = CLIPTokenizer.from_pretrained(mini / "tokenizer", model_max_length=77)
    for model in (unet, vae, text):
        model.eval().requires_grad_(False)
    return UNet3D("zeroscope", unet, vae, text, tokenizer, new_scheduler(), torch.device(device), spec.frames)


def full_wan(device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
    """Wan 2.1's transformer of 1.3 B and its autoencoder with random weights, and mini's tokenizer before a text
    encoder of a single layer, which runs once an edit."""
    spec = known_backbone("wan")
    assert spec
    device = device or default_device()
    with _made_on(device, dtype or default_dtype(device, Wan.halves)):
        sizes = {"num_attention_heads": 12, "text_dim": 4096, "ffn_dim": 8960, "num_layers": 30}
        transformer = WanTransformer3DModel(**sizes)
        vae = AutoencoderKLWan()
        text = UMT5EncoderModel(UMT5Config(vocab_size=49408, d_model=4096, num_layers=1, num_heads=64))
    mini = backbone_folder("mini")
    assert mini
    tokenizer = CLIPTokenizer.from_pretrained(mini / "tokenizer", model_max_length=512)
    for model in (transformer, vae, text):
        model.eval().requires_grad_(False)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    models = transformer, vae, text, tokenizer, flow
    return Wan("wan", *models, torch.device(device), spec.latent_frames)


FULL = {"full": full_backbone, "full-wan": full_wan}  # models at their true size with random weights, by name


def row_flops(backbone: Backbone, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one batch row (1, c, f, h, w) of the UNet, counted on the meta device."""
    counter = FlopCounterMode(display=False)
    unet, asked = backbone.unet, backbone.asked(shape, (1, *backbone.text_shape))
    temporal = shape[2] if temporal_blocks(unet) else 0
    run_dry(type(unet).__name__, dict(unet.config), unet.dtype, *asked, counter, temporal=temporal)
    return int(counter.get_total_flops())


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds that `work` takes on the device, to its end, and what it returns."""
    _synchronize(device)
    start = time.perf_counter()
    result = work()
    _synchronize(device)
    return time.perf_counter() - start, result


def circumstances(backbone: Backbone) -> dict[str, Any]:
    """What figures are of: the backbone, its precision, and the GPU or how many threads of the processor."""
    device = backbone.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{device.type}, {torch.get_num_threads()} threads"
    return {"backbone": backbone.name, "device": name, "dtype": str(backbone.dtype).removeprefix("torch.")}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.inference_mode()
def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Floating-point operations a second of a large square matrix product: the median of nine."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [timed(lambda: a @ b, device)[0] for _ in range(10)]
    return 2 * side**3 / statistics.median(times[1:])


def _advance(steps: Steps[T]) -> StopIteration | None:
    """The next step of a stage; its end where there is none."""
    try:
        next(steps)
    except StopIteration as end:
        return end
    return None


def in_turn(
    steps: Steps[T], others: Iterable[Callable[[], object]], device: torch.device
) -> tuple[tuple[float, float], T]:
    """Seconds of a stage, and of something else that runs once after each of its steps; what the stage returns."""
    mine = theirs = 0.0
    for other in others:
        mine += timed(partial(next, steps), device)[0]
        theirs += timed(other, device)[0]
    seconds, end = timed(partial(_advance, steps), device)
    assert end, "there are more steps than there is to compare them with"
    return (mine + seconds, theirs), end.value


def host_pace(steps: Steps[T], device: torch.device) -> tuple[dict[str, float], T]:
    """Of a stage: `waits`, how often the host waited for the device from the second step to the last; `host`, the
    share of the time from there to the device's end in which the host was at work. And what the stage returns."""
    next(steps)
    _synchronize(device)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as told, _waits_told(device):
        warnings.simplefilter("always")
        while True:
            host, waits = time.perf_counter() - start, len(told)
            if end := _advance(steps):
                break
    _synchronize(device)
    share = host / (time.perf_counter() - start)
    return {"waits": waits, "host": round(share, 3)}, end.value


@contextmanager
def _waits_told(device: torch.device) -> Iterator[None]:
    """torch warns of each time that the host waits for a CUDA device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def beside_peer(backbone: Backbone, steps: Steps[Any], shape: tuple[int, ...], n: int) -> tuple[float, float]:
    """Seconds of a denoising of ours in `n` steps, and of diffusers' own on the same UNet and rows, guidance included,
    taken in turn. The first step of both, with what comes before it, is left out."""
    parts = {"vae": backbone.vae, "text_encoder": backbone.text_encoder, "tokenizer": backbone.tokenizer}
    pipe = TextToVideoSDPipeline(unet=backbone.unet, scheduler=backbone.scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    told = backbone.text(["", "a car"]).to(backbone.dtype)
    height, width = (side * backbone.vae_factor for side in shape[3:])
    ours, theirs, began = list[float](), list[float](), 0.0

    def between(*_: object) -> None:
        nonlocal began
        _synchronize(backbone.device)
        theirs.append(time.perf_counter() - began)
        ours.append(timed(partial(_advance, steps), backbone.device)[0])
        began = time.perf_counter()

    pipe(
        prompt_embeds=told[1:],
        negative_prompt_embeds=told[:1],
        num_frames=shape[2],
        height=height,
        width=width,
        num_inference_steps=n,
        output_type="latent",
        callback=between,
    )
    return sum(ours[1:]), sum(theirs[1:])


def other_costs(work: Any, device: torch.device, most: int = 3) -> list[dict[str, Any]]:
    """The largest costs in `work()` that are no matrix products: name, milliseconds, and share of all.

    On CUDA they are kernels, elsewhere operators without those that they call.
    """
    cuda = device.type == "cuda"
    work()
    _synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        work()
        _synchronize(device)
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[event.key] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(spent.values())
    others = [(name, us) for name, us in spent.most_common() if not any(part in name.lower() for part in PRODUCTS)]
    return [{"name": name[:80], "ms": round(us / 1000, 2), "share": round(us / total, 3)} for name, us in others[:most]]


def whole_edit(
    editor: Editor, clip: Clip, steps: int, prompts: tuple[str, str], features: str
) -> Steps[dict[str, Any]]:
    """An attribute edit from a file to a folder of files: its report, with `wall`, the seconds of all of it."""
    h, w = clip.frames.shape[1:3]
    settings = make_settings(
        source=prompts[0],
        edit=prompts[1],
        task="attribute",
        backbone=editor.backbone.name,
        steps=steps,
        frames=len(clip.frames),
        size=(w, h),
        features=features,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, clip)
        _synchronize(editor.backbone.device)
        start = time.perf_counter()
        report = yield from run_steps(path, settings, Path(folder) / "out", editor=editor)
        return report | {"wall": time.perf_counter() - start}
