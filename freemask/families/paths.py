"""How a model's latents go from the clip to noise and back: by diffusion (`ddim`), or along a flow (`flow`).

What a network says is stepped along: noise, or a flow's velocity. A level is a number that only its path understands:
ᾱ of diffusion, σ of a flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from diffusers import DDIMScheduler
from torch import Tensor

from . import ddim
from .ddim import Draw, Predict
from .specs import Solver

__all__ = ["Diffusion", "NoisePath"]


class NoisePath(Protocol):
    """A walk between the clip's latents and noise, over labels t and the level of each.

    `storable`: what the network computes as it inverts is what it computes when a latent of the trajectory is replayed.
    """

    @property
    def name(self) -> Literal["diffusion", "flow"]: ...

    @property
    def storable(self) -> bool: ...

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The labels of so many steps, from low to high noise."""
        ...

    def levels(self, ts: tuple[int, ...]) -> dict[int, float]:
        """The level of every label, and that below the lowest (`ddim.CLEAN`)."""
        ...

    def clean(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        """The clip's latents that latents at a level predict by what the network says of them."""
        ...

    def noise(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        """The noise in latents at a level by what the network says of them."""
        ...

    def noised(self, x: Tensor, noise: Tensor, level: float) -> Tensor:
        """The clip's latents x with noise of a level."""
        ...

    def sees_below(self, solver: Solver) -> bool:
        """Whether the inversion evaluates under a label the latent of the level below it."""
        ...

    def invert(
        self, predict: Predict, x: Tensor, levels: dict[int, float], *, solver: Solver, draft: Predict | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """From the clip's latents upwards; yields (t, latent at level t) after every step. `draft` is asked in place of
        `predict` where what is said will be corrected."""
        ...

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
        """From the highest level downwards; yields (t, latent at the level below t) after every step."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The path of a diffusion model with this schedule: its levels are ᾱ, and the network says the noise."""

    scheduler: DDIMScheduler
    name: ClassVar[Literal["diffusion", "flow"]] = "diffusion"
    storable: ClassVar[bool] = True

    def timesteps(self, steps: int) -> tuple[int, ...]:
        return ddim.timesteps(self.scheduler, steps)

    def levels(self, ts: tuple[int, ...]) -> dict[int, float]:
        return ddim.levels(self.scheduler, ts)

    def clean(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        return (x - (1 - level) ** 0.5 * out) / level**0.5

    def noise(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        return out

    def noised(self, x: Tensor, noise: Tensor, level: float) -> Tensor:
        return level**0.5 * x + (1 - level) ** 0.5 * noise

    def sees_below(self, solver: Solver) -> bool:
        return solver == "ddim"

    def invert(
        self, predict: Predict, x: Tensor, levels: dict[int, float], *, solver: Solver, draft: Predict | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        return ddim.invert(predict, x, levels, solver=solver)

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
        return ddim.denoise(predict, x, levels, solver=solver, eta=eta, seed=seed, adjust=adjust)
