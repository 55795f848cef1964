"""What might make the plain work faster: each lever alone, on this device, in turn with the work as it is.

A lever changes a copy of the UNet, or how a network is called, and never what ships. Its figures: `ratio`, its share of
the plain time (quartiles of rounds that take the two in turn; the median stands in the middle); `apart`, how far what
it draws is from what is drawn plainly (the largest difference over the largest value); `setup`, the seconds until it
has run twice. What this device, or its torch, refuses has the reason as `refused` instead.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import first_line
from ..methods.editor import Editor
from ..steps import Step
from ..validation import refuse_unknown
from .speed import circumstances, timed

__all__ = ["LEVERS", "lever_steps"]

ROWS = 3  # of a fused step: the source's and the two of guidance
Call = Callable[..., Tensor]  # of the UNet: on latents (b, c, f, h, w) and text (b, k, d)


def _forward(unet: nn.Module, x: Tensor, text: Tensor, timestep: int | Tensor = 500) -> Tensor:
    drawn: Tensor = unet(x, timestep, encoder_hidden_states=text).sample
    return drawn


def _changed(change: Callable[[Any], object], unet: nn.Module) -> Call:
    own: Any = copy.deepcopy(unet)
    change(own)
    return partial(_forward, own)


def _channels_last(unet: nn.Module, *, temporal: bool) -> None:
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif temporal and isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


class _Flat(nn.Module):
    """A convolution over time alone, (3, 1, 1), as one over frames × positions."""

    def __init__(self, temporal: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(temporal.weight.squeeze(-1), requires_grad=False), temporal.bias

    def forward(self, x: Tensor) -> Tensor:
        drawn = nn.functional.conv2d(x.flatten(3), self.weight, self.bias, padding=(1, 0))
        return drawn.reshape(len(x), -1, *x.shape[2:])


def _flat(unet: nn.Module) -> None:
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Conv3d):
            if module.kernel_size != (3, 1, 1):
                raise ValueError(f"{name} looks over more than time")
            setattr(unet.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], _Flat(module))


def _decode(vae: Any, n: int, z: Tensor) -> Tensor:
    """Latents (f, c, h, w) as pictures, `n` frames at once."""
    return torch.cat([vae.decode(piece).sample for piece in torch.split(z.to(vae.dtype), n)])


def _halves(dtype: torch.dtype, unet: nn.Module) -> Call:
    own = copy.deepcopy(unet).to(dtype)
    return lambda x, text: _forward(own, x.to(dtype), text.to(dtype))


def _one_row(unet: nn.Module) -> Call:
    return lambda x, text: torch.cat([_forward(unet, x[i : i + 1], text[i : i + 1]) for i in range(len(x))])


def _within(context: Callable[[], AbstractContextManager[object]], unet: nn.Module) -> Call:
    def call(x: Tensor, text: Tensor) -> Tensor:
        with context():
            return _forward(unet, x, text)

    return call


def _compiled(mode: str | None, unet: nn.Module) -> Call:
    own: Any = torch.compile(copy.deepcopy(unet), mode=mode)
    return partial(_forward, own)


def _blocks_compiled(unet: nn.Module) -> Call:
    """What lies between the attentions: a whole compiled forward does not bear the hooks of a fused step, this does."""
    own = copy.deepcopy(unet)
    for module in own.modules():
        if isinstance(module, (ResnetBlock2D, TemporalConvLayer, FeedForward)):
            module.compile(dynamic=False)
    # each block has a shape of its own, compiled when it first runs
    limits = partial(torch._dynamo.config.patch, recompile_limit=128, accumulated_recompile_limit=1024)
    return _within(limits, own)


def _graph(unet: nn.Module) -> Call:
    """One CUDA graph of the whole forward, replayed on inputs that are copied into its own."""
    kept: dict[str, Any] = {}

    def call(x: Tensor, text: Tensor) -> Tensor:
        if not kept:
            # a label from the host would be a copy, which cannot be captured
            kept.update(x=x.clone(), text=text.clone(), timestep=torch.tensor(500, device=x.device))
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # what sets itself up must not be captured
                _forward(unet, **kept)
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                drawn = _forward(unet, **kept)
            kept.update(graph=graph, drawn=drawn)
        kept["x"].copy_(x)
        kept["text"].copy_(text)
        kept["graph"].replay()
        again: Tensor = kept["drawn"].clone()
        return again

    return call


LEVERS: dict[str, Callable[[nn.Module], Call]] = {
    "channels-last": partial(_changed, partial(_channels_last, temporal=False)),
    "channels-last, over time too": partial(_changed, partial(_channels_last, temporal=True)),
    "temporal convolutions as 2-D": partial(_changed, _flat),
    "fused QKV": partial(_changed, lambda unet: unet.fuse_qkv_projections()),
    "one row at a time": _one_row,
    "bfloat16": partial(_halves, torch.bfloat16),
    **{
        f"attention by {name.lower()}": partial(_within, partial(sdpa_kernel, getattr(SDPBackend, name)))
        for name in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
    },
    "cudnn.benchmark": partial(_within, partial(torch.backends.cudnn.flags, enabled=True, benchmark=True)),
    "CUDA graph": _graph,
    "torch.compile, all but attention": _blocks_compiled,
    "torch.compile": partial(_compiled, None),
    "torch.compile, reduce-overhead": partial(_compiled, "reduce-overhead"),
}
AT_ONCE = (1, 2, 8)  # frames that the autoencoder might take
ONLY_CUDA = ("cudnn.benchmark", "CUDA graph", "torch.compile, reduce-overhead")


def lever_steps(
    editor: Editor, *, frames: int = 8, size: tuple[int, int] | None = None, only: Sequence[str] = (), rounds: int = 20
) -> Generator[Step, None, dict[str, Any]]:
    """Measures `LEVERS` on a forward of three rows, and the autoencoder's batches; or only the levers of some names.

    `size` is (width, height) in pixels, rounded down to what the networks take. Raises SettingError for a lever that
    there is not.
    """
    for name in only:
        refuse_unknown("lever", name, LEVERS)
    backbone = editor.backbone
    device, dtype, factor = backbone.device, backbone.dtype, backbone.vae_factor
    w, h = editor.fit(size or backbone.native_size)
    shape = ROWS, int(backbone.unet.config["in_channels"]), frames, h // factor, w // factor
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    text = backbone.text(["", "a red car", "a blue car"]).to(dtype)
    names = only or list(LEVERS)
    plain, unet = partial(_forward, backbone.unet), backbone.unet
    told: dict[str, Any] = {}
    at_once = () if only else AT_ONCE
    total = len(names) + len(at_once)
    for i, name in enumerate(names):
        if name in ONLY_CUDA and device.type != "cuda":
            told[name] = {"refused": "It is for CUDA alone."}
        else:
            told[name] = _measured(partial(LEVERS[name], unet), plain, (x, text), rounds)
        yield Step("levers", i + 1, total)
    z, decode = x[0].transpose(0, 1), partial(_decode, backbone.vae, backbone.chunk)
    for i, n in enumerate(at_once):
        one = partial(partial, _decode, backbone.vae, n)
        told[f"frames decoded at once: {n}, not {backbone.chunk}"] = _measured(one, decode, (z,), rounds)
        yield Step("levers", len(names) + i + 1, total)
    if device.type == "cuda":  # each stream that a graph was captured on keeps a workspace of the libraries for good
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
    return circumstances(backbone) | {"rows": ROWS, "frames": frames, "size": [w, h], "levers": told}


@torch.inference_mode()
def _measured(lever: Callable[[], Call], plain: Call, given: tuple[Tensor, ...], rounds: int) -> dict[str, Any]:
    device = given[0].device

    def twice() -> tuple[Call, Tensor]:
        call = lever()
        call(*given)
        return call, call(*given)

    drawn = plain(*given)
    try:
        setup, (pulled, other) = timed(twice, device)
        # before the next call: what a compiled call returns may be overwritten by it
        apart = float((other.float() - drawn.float()).abs().max() / drawn.float().abs().max())
        calls = partial(plain, *given), partial(pulled, *given)
        seconds = [[timed(call, device)[0] for call in calls] for _ in range(rounds)]
    except Exception as error:  # torch and its compilers raise many kinds
        return {"refused": first_line(error)[:160]}
    quartiles = statistics.quantiles((theirs / ours for ours, theirs in seconds), method="inclusive")
    return {
        "ratio": [round(quartile, 3) for quartile in quartiles],
        "apart": float(f"{apart:.1e}"),
        "setup": round(setup, 1),
    }
