"""Masked fusion of source and edit features (FreeMask Eq. 9-11, FateZero, Prompt-to-Prompt).

Every function takes a bool mask, True = may change, False = keep the source; V is never fused. With A0, Q0, K0 of
the source and A1, Q1, K1 of the edit at the same timestep and site:

- self: query rows E·A1 + (1−E)·A0. With a binary row mask no map is materialised:
  E·sdpa(Q1, K1, V1) + (1−E)·sdpa(Q0, K0, V1) is the same.
- cross (Eq. 11): A0's columns first go to the edit prompt's tokens; columns without a source token keep
  A1's, nothing is renormalised; then (1−m)·A0' + m·A1.
- temporal (Eq. 10): Q, K = (1−m)·{Q0, K0} + m·{Q1, K1}, per position and frame.
- latent: z = z_src + E·(z − z_src) at the same level.

The presets' numbers are measured against the true edits of rendered scenes (mini, 12 steps, guidance 4, seeds from
2,000,100; PSNR in dB; "found" is the share of clips in which an independent classifier sees the edit, 1 for a plain
denoise):

- Guidance shifts the colours of the whole picture. Latent blending in the first 80 % of the steps undoes that outside
  E: 20.4 to 21.9 for attribute, 16.4 to 17.0 for shape (3 scenes each), and the kept object of a place edit from 18 to
  23 (10 scenes). A style has no such outside.
- Self fusion everywhere, inside E too (`Preset.free_self` false), is right where only the look changes: attribute 22.2
  to 23.5, and 24.2 without cross fusion; place 17.1 to 17.5 (8 scenes each).
- Cross fusion holds edits back where δ = 1, because m is 0 everywhere. In the order 99, 50, 20, 0 % of the steps:
  attribute –, 23.5, 24.1, 24.2 (8 scenes); style 18.8, –, 20.3, 20.8 (4 scenes). For place 30 % give 16.8 and none 17.1
  (8 scenes). So those three have none. Where δ = 0 it makes no difference.
- Self fusion of a style for 99 % of the steps: 16.2, found .75; for 70 %: 16.4, 1.0; everywhere 16.5, .75
  (8 scenes). Place everywhere: 99 % found .88, 70 % found 1.0. With the weights trained longest, a style's self fusion
  for 70 % everywhere has 20.0 and 18.1, with E free 19.5 and 17.7, found 1.0 each (16 scenes). E stays free, as the
  paper has it: a mask that did nothing would leave a visitor nothing to steer a style by.
- Temporal fusion changes nothing that is measured here: 24.2 and 24.3 without it (attribute), 17.1 and 17.2 (place).
- A mask grown by a cell, or joined with the edit word's own, loses what it adds inside to colours outside: 16.9 to
  16.5 (10 scenes) and 17.5 to 16.8 (4 scenes) for shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

__all__ = ["TokenMap", "fuse_cross", "fuse_latent", "fuse_self", "fuse_temporal", "token_map"]


@dataclass(frozen=True)
class TokenMap:
    """Columns of the source's cross-attention for the edit prompt's tokens.

    `source_of` (k,) int64 is the source column for each edit column, -1 where there is none; `changed`
    (k,) bool marks the tokens of changed words.
    """

    source_of: Tensor
    changed: Tensor


def token_map(
    source_of: tuple[int | None, ...],
    changed: tuple[int, ...],
    source_tokens: tuple[tuple[int, ...], ...],
    edit_tokens: tuple[tuple[int, ...], ...],
    length: int,
) -> TokenMap:
    """From the words' alignment to tokens. Words of unequal token counts share columns in order, the last
    source token serving the rest; SOS keeps its column, EOS and padding correspond from the prompt's end on."""
    columns = torch.full((length,), -1, dtype=torch.int64)
    columns[0] = 0
    for j, i in enumerate(source_of):
        if i is not None:
            for n, token in enumerate(edit_tokens[j]):
                columns[token] = source_tokens[i][min(n, len(source_tokens[i]) - 1)]
    end_source = max(t for row in source_tokens for t in row) + 1
    end_edit = max(t for row in edit_tokens for t in row) + 1
    for k in range(end_edit, length):
        columns[k] = min(end_source + k - end_edit, length - 1)
    marks = torch.zeros(length, dtype=torch.bool)
    for j in changed:
        marks[list(edit_tokens[j])] = True
    return TokenMap(columns, marks)


def fuse_self(q0: Tensor, k0: Tensor, v1: Tensor, edit: Tensor, e: Tensor) -> Tensor:
    """E·A1·V1 + (1−E)·A0·V1; q0, k0, v1 (f, heads, p, d), `edit` the finished A1·V1, e (f, p) bool."""
    return torch.where(e[:, None, :, None], edit, attend(q0, k0, v1))


def _remap(a0: Tensor, a1: Tensor, tokens: TokenMap) -> Tensor:
    """A0' (…, k): the source's columns at the edit's tokens, A1 where a token has no source."""
    columns = tokens.source_of.to(a0.device)
    return torch.where(columns >= 0, a0[..., columns.clamp_min(0)], a1)


def fuse_cross(
    a0: Tensor,
    a1: Tensor,
    m: Tensor,
    tokens: TokenMap,
    *,
    reweight: float = 1.0,
    keep_changed: bool = False,
    blend_first: bool = False,
) -> Tensor:
    """Eq. 11 with Prompt-to-Prompt's remapping and re-weighting; a0, a1 (f, heads, p, k), m (f, p) bool.

    `keep_changed` leaves the changed words' columns to A1 (their window is over); `blend_first` is the
    released code's order.
    """
    rows = m[:, None, :, None]
    if blend_first:
        out = _remap(torch.where(rows, a1, a0), a1, tokens)
    else:
        out = torch.where(rows, a1, _remap(a0, a1, tokens))
    changed = tokens.changed.to(a1.device)
    if keep_changed:
        out = torch.where(changed, a1, out)
    return out if reweight == 1.0 else torch.where(changed, out * reweight, out)


def fuse_temporal(source: Tensor, edit: Tensor, m: Tensor) -> Tensor:
    """Eq. 10 for Q or for K: (p, heads, f, d), m (p, f) bool -> (p, heads, f, d)."""
    return torch.where(m[:, None, :, None], edit, source)


def fuse_latent(source: Tensor, edit: Tensor, e: Tensor) -> Tensor:
    """z_src + E·(z − z_src); latents (1, c, f, h, w), e (f, h, w)."""
    return source + e.to(edit.dtype) * (edit - source)
