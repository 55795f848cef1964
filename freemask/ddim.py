"""DDIM in both directions (Song et al. 2020, Eq. 12; inversion as in FreeMask's Sec. 3).

The paper's printed inversion lacks the factor √ᾱ_{t+1}; it stands here. At the inversion step that goes to
level t the UNet is called with label t on the latent one level below, so that what is recorded carries the
label the denoiser will ask for. Loops are generators that yield after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .trace import CLEAN

__all__ = ["Predict", "denoise", "guide", "invert", "levels", "step", "timesteps"]

Predict = Callable[[Tensor, int, float], Tensor]  # (latents, label t, the latents' own ᾱ) -> eps


def timesteps(scheduler: DDIMScheduler, steps: int) -> tuple[int, ...]:
    """The scheduler's own timesteps, from low to high noise."""
    scheduler.set_timesteps(steps)
    return tuple(sorted({int(t) for t in scheduler.timesteps}))


def levels(scheduler: DDIMScheduler, ts: tuple[int, ...]) -> dict[int, float]:
    """ᾱ of every level; below the lowest timestep it is the scheduler's `final_alpha_cumprod`."""
    return {CLEAN: float(scheduler.final_alpha_cumprod)} | {t: float(scheduler.alphas_cumprod[t]) for t in ts}


def step(
    x: Tensor, eps: Tensor, a_from: float, a_to: float, *, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """x_to = √ᾱ_to·(x − √(1−ᾱ_from)·eps)/√ᾱ_from + √(1−ᾱ_to)·eps; with η > 0 some of eps is fresh noise."""
    clean = (x - (1 - a_from) ** 0.5 * eps) / a_from**0.5
    sigma = 0.0
    if eta > 0 and a_to > a_from:
        sigma = eta * ((1 - a_to) / (1 - a_from) * (1 - a_from / a_to)) ** 0.5
    out = a_to**0.5 * clean + (1 - a_to - sigma**2) ** 0.5 * eps
    return out if noise is None or sigma == 0 else out + sigma * noise


def guide(plain: Tensor, told: Tensor, guidance: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance from the unconditional eps and the prompt's, (b, …) each.

    With `rescale` φ > 0 the result's spread is drawn to that of the prompt's eps, which keeps strong guidance from
    saturating the picture (Lin et al. 2023, Eq. 15-16).
    """
    eps = plain + guidance * (told - plain)
    if rescale == 0:
        return eps
    over = tuple(range(1, eps.ndim))
    ratio = told.std(over, keepdim=True) / eps.std(over, keepdim=True)
    return eps * (rescale * ratio + 1 - rescale)


def invert(predict: Predict, x: Tensor, alpha: dict[int, float]) -> Iterator[tuple[int, Tensor]]:
    """From the clean latent upwards; yields (t, latent at level t) after every step."""
    rising = sorted(alpha)
    for below, t in zip(rising, rising[1:], strict=False):
        x = step(x, predict(x, t, alpha[below]), alpha[below], alpha[t])
        yield t, x


def denoise(
    predict: Predict,
    x: Tensor,
    alpha: dict[int, float],
    *,
    eta: float = 0.0,
    seed: int = 0,
    adjust: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """From the highest level downwards; yields (t, latent at the level below t) after every step.

    `adjust` (level, latent) -> latent acts on what a step reached; `seed` acts only where `eta` > 0.
    """
    generator = torch.Generator().manual_seed(seed)
    falling = sorted(alpha, reverse=True)
    for t, below in zip(falling, falling[1:], strict=False):
        noise = torch.randn(x.shape, generator=generator).to(x) if eta > 0 else None
        x = step(x, predict(x, t, alpha[t]), alpha[t], alpha[below], eta=eta, noise=noise)
        x = adjust(below, x) if adjust else x
        yield t, x
