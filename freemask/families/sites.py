"""Attention sites of a network: where they are, of what kind, and how fine their grid is."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Kind", "Site", "short_site"]

Kind = Literal["self", "cross", "temporal", "input"]


class Site(NamedTuple):
    """One attention layer: its module name in the network, its kind, and how often its grid was halved. `joint`:
    self-attention of a transformer, whose queries meet the positions of all frames."""

    name: str
    kind: Kind
    level: int
    joint: bool = False

    def grid(self, finest: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of this site when the latents' grid is `finest`; odd sides round up, as the UNet does."""
        h, w = finest
        for _ in range(self.level):
            h, w = (h + 1) // 2, (w + 1) // 2
        return h, w

    @property
    def short(self) -> str:
        """A name for people, such as "up 2.1" or "mid"."""
        return short_site(self.name)


def short_site(site: str) -> str:
    """A site's name as people say it: "up_blocks.1.attentions.0…attn2" becomes "up 1.0", "blocks.3.attn2" "block 3"."""
    parts = site.split(".")
    if parts[0] == "blocks":
        return f"block {parts[1]}"
    if parts[0] == "mid_block":
        return "mid"
    if parts[0].endswith("_blocks") and "attentions" in parts:
        at = parts.index("attentions")
        numbers = [p for p in (*parts[1:at], parts[at + 1] if len(parts) > at + 1 else "") if p.isdigit()]
        return f"{parts[0].split('_')[0]} {'.'.join(numbers)}"
    return site
