"""What knows diffusers' `Attention` (beside `temporal`, which adds some): a UNet's sites, and processors that look and
fuse.

A site's kind comes from its name. Processors stand in the UNet only inside `with installed(...)`; the very
same stock processors come back on leaving, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .networks import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from .sites import Kind, Site

__all__ = ["Hook", "attend", "find_sites", "installed", "plainly", "probabilities", "processed", "word_probabilities"]

TEMPORAL = {"temp_attentions", "motion_modules", "attn_temp"}  # parts of the names of layers over frames
AT_ONCE = 2**24  # probabilities, of 4 bytes each: 10 frames of zeroscope's finest grid at 512²

UNet: TypeAlias = UNet3DConditionModel | UNet2DConditionModel | UNetMotionModel
# (site, q, k, v), each (n, heads, s, d), -> the attention's output (n, heads, s, d)
Hook = Callable[[Site, Tensor, Tensor, Tensor], Tensor]


def find_sites(unet: UNet) -> tuple[Site, ...]:
    """Every attention site of a UNet, in the order in which a forward pass meets them."""
    blocks = len(unet.config["block_out_channels"])
    found = []
    for key in unet.attn_processors:
        name = key.removesuffix(".processor")
        parts = name.split(".")
        if parts[0] == "transformer_in":
            found.append(Site(name, "input", 0))
            continue
        temporal = not TEMPORAL.isdisjoint(parts)
        kind: Kind = "temporal" if temporal else "cross" if parts[-1] == "attn2" else "self"
        deep = blocks - 1
        level = deep if parts[0] == "mid_block" else int(parts[1])
        found.append(Site(name, kind, deep - level if parts[0] == "up_blocks" else level))
    stage = {"transformer_in": 0, "down_blocks": 1, "mid_block": 2, "up_blocks": 3}

    def order(site: Site) -> tuple[int, int, int]:
        parts = site.name.split(".")
        if parts[0] in ("transformer_in", "mid_block"):
            return stage[parts[0]], 0, 0
        return stage[parts[0]], int(parts[1]), int(parts[3])

    return tuple(sorted(found, key=order))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ/√d)·V for (n, heads, s, d)."""
    return F.scaled_dot_product_attention(q, k, v)


def plainly(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The hook that changes nothing."""
    return attend(q, k, v)


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(QKᵀ/√d), (n, heads, s, s') in float32, or in float64 where q is."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1)


class _Processor:
    """Stock attention with a hook in the place of scaled dot-product attention, whose keys and values may come from
    elsewhere in the batch, or at a cross site from another `text` (n, k, d)."""

    def __init__(self, site: Site, hook: Hook, gather: Callable[[Tensor], Tensor] | None, text: Tensor | None) -> None:
        self.site, self.hook, self.gather = site, hook, gather
        self.text = text if site.kind == "cross" else None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        plain = attn.group_norm is None and not attn.residual_connection and attn.rescale_output_factor == 1
        assert plain and attention_mask is None, f"{self.site.name} is no plain attention of a transformer block"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context = context if self.text is None else self.text
        q, k, v = (
            rearrange(x, "n s (heads d) -> n heads s d", heads=attn.heads)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if self.gather:
            k, v = self.gather(k), self.gather(v)
        out = rearrange(self.hook(self.site, q, k, v), "n heads s d -> n s (heads d)")
        return attn.to_out[1](attn.to_out[0](out.to(q.dtype)))


@contextmanager
def processed(network: Any, processors: Mapping[str, Any]) -> Iterator[None]:
    """The network with other attention processors at some modules, by name; on leaving the very same are back."""
    stock: dict[str, Any] = {}
    try:
        for name, processor in processors.items():
            attn: Any = network.get_submodule(name)
            stock[name] = attn.processor
            attn.set_processor(processor)
        yield
    finally:
        for name, processor in stock.items():
            network.get_submodule(name).set_processor(processor)


@contextmanager
def installed(
    unet: UNet,
    hooks: Mapping[Site, Hook],
    gathered: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    text: Tensor | None = None,
) -> Iterator[None]:
    """The UNet with hooks at some sites; every other site keeps its own processor. The hook of a site in `gathered`
    gets keys and values as its function makes them; those of cross sites get them of `text` (n, k, d), if given."""
    placed = {site.name: _Processor(site, hook, (gathered or {}).get(site), text) for site, hook in hooks.items()}
    with processed(unet, placed):
        yield


@torch.no_grad()
def word_probabilities(q: Tensor, k: Tensor, tokens: slice) -> Tensor:
    """Head-mean probabilities of some text tokens: (n, p, tokens) float32, a few batch rows at a time so
    that the maps of every head of a long clip never exist at once."""
    few = max(1, AT_ONCE // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(torch.split(q, few), torch.split(k, few), strict=True)
    return torch.cat([probabilities(one, told)[..., tokens].mean(1) for one, told in parts])
