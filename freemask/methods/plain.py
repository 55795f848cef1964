"""Plain: the inverted clip is denoised under the edit prompt with classifier-free guidance (Song et al. 2020)."""

from __future__ import annotations

from .base import Session

__all__ = ["Plain"]


class Plain(Session):
    """Nothing of the source is kept but its noise."""
