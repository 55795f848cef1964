"""A flow's noise path (rectified flow, Liu et al. 2023; flow matching, Lipman et al. 2023), as Wan's models have it.

A latent at level σ in [0, 1] is x_σ = (1−σ)·x + σ·ε, the network says the velocity v = ε − x, and a step of Euler,
x_to = x_from + (σ_to − σ_from)·v, is DDIM's on this path. A label is 1000·σ, a whole number, so that labels alone say
the levels. Even steps are shifted towards noise: σ = s·u / (1 + (s−1)·u) (Esser et al. 2024, Eq. 23).

Inversion wants the velocity at the end of the step that it makes, where it is not yet: Euler backwards,
x_to = x_from + (σ_to − σ_from)·v(x_to, label of `to`), is solved by one fixed-point correction, which costs a second
forward. The first, a draft, is asked at the level below under the label of the one above, as DDIM's inversion is.
The second-order solver is the two-step Adams-Bashforth on σ, the same extrapolation as DPM-Solver's in its own λ: one
forward a step, each latent under its own label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import SettingError
from .ddim import CLEAN, Draw, Predict
from .specs import Solver

__all__ = ["LABELS", "Flow", "fresh_noise"]

LABELS = 1000  # of pure noise, σ = 1


def _step(x: Tensor, v: Tensor, here: float, there: float, before: tuple[Tensor, float] | None) -> Tensor:
    """Euler's step, or with (v', σ') of the step before it the second-order one."""
    if before is not None and before[1] != here:
        v = v + (there - here) / (here - before[1]) / 2 * (v - before[0])
    return x + (there - here) * v


@dataclass(frozen=True)
class Flow:
    """The path of a flow whose levels are shifted by `shift`. Its levels are σ."""

    shift: float = 1.0
    name: ClassVar[Literal["diffusion", "flow"]] = "flow"
    storable: ClassVar[bool] = False

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The labels of so many steps, from low to high noise; the highest is pure noise."""
        even = [(i + 1) / steps for i in range(steps)]
        return tuple(sorted({max(1, round(LABELS * self.shift * u / (1 + (self.shift - 1) * u))) for u in even}))

    def levels(self, ts: tuple[int, ...]) -> dict[int, float]:
        """σ of every level; below the lowest label there is no noise."""
        return {CLEAN: 0.0} | {t: t / LABELS for t in ts}

    def clean(self, x: Tensor, v: Tensor, level: float) -> Tensor:
        """The clip's latents that latents at a level and their velocity predict: x − σ·v."""
        return x - level * v

    def noise(self, x: Tensor, v: Tensor, level: float) -> Tensor:
        """ε = x_σ + (1−σ)·v."""
        return x + (1 - level) * v

    def noised(self, x: Tensor, noise: Tensor, level: float) -> Tensor:
        """x_σ = (1−σ)·x + σ·ε."""
        return (1 - level) * x + level * noise

    def sees_below(self, solver: Solver) -> bool:
        """Whether the inversion evaluates under a label the latent of the level below it: never, once corrected."""
        return False

    def invert(
        self, predict: Predict, x: Tensor, levels: dict[int, float], *, solver: Solver, draft: Predict | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """From the clip's latents upwards; yields (t, latent at level t) after every step. `draft` is asked in place of
        `predict` where what is said will be corrected."""
        before: tuple[Tensor, float] | None = None
        for below, t in pairwise(sorted(levels)):
            here, there = levels[below], levels[t]
            if solver == "ddim":
                near = _step(x, (draft or predict)(x, t, here), here, there, None)
                x = _step(x, predict(near, t, there), here, there, None)
            else:
                v = predict(x, max(below, 0), here)
                x = _step(x, v, here, there, before)
                before = v, here
            yield t, x

    def denoise(
        self,
        predict: Predict,
        x: Tensor,
        levels: dict[int, float],
        *,
        solver: Solver = "ddim",
        eta: float = 0.0,
        seed: int = 0,
        adjust: Draw | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """From the highest level downwards; yields (t, latent at the level below t) after every step. `adjust` (level,
        latent) -> latent acts on what a step reached. A flow has no fresh noise: SettingError for an `eta` over 0."""
        if eta > 0:
            raise SettingError(f"eta is {eta:g}, but a flow's steps add no noise: leave eta at 0.")
        before: tuple[Tensor, float] | None = None
        for t, below in pairwise(sorted(levels, reverse=True)):
            v = predict(x, t, levels[t])
            x = _step(x, v, levels[t], levels[below], None if solver == "ddim" else before)
            before = v, levels[t]
            x = adjust(below, x) if adjust else x
            yield t, x


def fresh_noise(like: Tensor, t: int, seed: int) -> Tensor:
    """The noise of a label, drawn from a seed: the same in every process and on every device."""
    generator = torch.Generator().manual_seed(seed * (LABELS + 1) + t)
    return torch.randn(like.shape, generator=generator).to(like)
