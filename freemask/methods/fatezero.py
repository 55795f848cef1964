"""FateZero (Qi et al. 2023): the attention of the inversion is fused, not that of a reconstruction.

Cross-attention is Prompt-to-Prompt's (Sec. 3.2). Self-attention is blended under a mask from the source word's cross
maps (Eq. 6-7), where the task has one. With FreeMask's masks in its place it is the row "FateZero + MMC" of FreeMask's
Table 2.
"""

from __future__ import annotations

import numpy as np

from .p2p import PromptToPrompt

__all__ = ["FateZero"]


class FateZero(PromptToPrompt):
    """Sᵉᵈⁱᵗ = M·A1 + (1−M)·A0 (Eq. 7): inside the mask self-attention is the edit's, elsewhere the source's."""

    def free(self, t: int) -> np.ndarray:
        return self.editable(t) & self.task.free_self
