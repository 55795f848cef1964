"""Prompt-to-Prompt (Hertz et al. 2022): the attention of the source prompt's own denoising is kept, without masks."""

from __future__ import annotations

from torch import Tensor

from .fusing import Fusing, remap

__all__ = ["PromptToPrompt"]


class PromptToPrompt(Fusing):
    """Algorithm 1: in their windows self-attention is the source's everywhere, and so are the cross-attention maps of
    the words that stay (Sec. 3.2)."""

    def fuse_cross(self, a0: Tensor, a1: Tensor, m: Tensor) -> Tensor:
        return remap(a0, a1, self.tokens)
