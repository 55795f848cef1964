"""The page of a batch's results: a picture, the prompts and the figures of each, in one file that opens anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..clips.ffmpeg import whole
from .work import POSTER

__all__ = ["write_index"]

SHOWN = {  # figures of a row, and how they read
    "seconds": "{:.0f} s",
    "reconstruction_psnr": "reconstruction {:.1f} dB",
    "background_psnr": "kept {:.1f} dB",
    "clip": "CLIP {:.3f}",
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>FreeMask: {count}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 16px; }}
h1 {{ font-size: 22px; margin: 0 0 4px; }}
input {{ font: inherit; padding: 6px 10px; width: min(100%, 420px); box-sizing: border-box; }}
ul {{ list-style: none; padding: 0; }}
ul {{ display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }}
li {{ border: 1px solid #8886; border-radius: 10px; overflow: hidden; }}
li {{ content-visibility: auto; contain-intrinsic-size: 260px; }}
img {{ width: 100%; display: block; background: #8882; }}
div {{ padding: 8px 10px; overflow-wrap: anywhere; }}
p {{ margin: 0 0 4px; }}
small {{ opacity: .75; }}
.failed {{ color: light-dark(#b91c1c, #fca5a5); }}
[hidden] {{ display: none; }}
</style>
<h1>{count}</h1>
<p><label>Show those with
<input id="find" type="search" placeholder="a word of the name, the prompts or the error"></label>
<output id="shown"></output></p>
<ul>
{cards}
</ul>
<script>
const find = document.getElementById("find"), cards = [...document.querySelectorAll("li")];
find.addEventListener("input", () => {{
  const wanted = find.value.toLowerCase();
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted);
  document.getElementById("shown").textContent = wanted ? `${{cards.filter(card => !card.hidden).length}} shown` : "";
}});
</script>
</html>
"""


def write_index(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the page of a batch's rows (`work.collect`) into its folder."""
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "open")}
    count = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no edits"
    with whole(path) as part:
        part.write_text(PAGE.format(count=count, cards="\n".join(map(_card, rows))), encoding="utf-8")


def _card(row: dict[str, Any]) -> str:
    told = [f"<p><b>{escape(row['name'])}</b> <small>{escape(row['method'] or '')}</small></p>"]
    if row["source"]:
        told.append(f"<p>{escape(row['source'])} → {escape(row['edit'])}</p>")
    if row["state"] == "done":
        figures = [text.format(row[name]) for name, text in SHOWN.items() if row.get(name) is not None]
        told.append(f"<p><small>{', '.join(figures)}</small></p>")
        folder = quote(row["folder"])
        picture = f'<img src="{folder}/{POSTER}" alt="A frame before and after the edit" loading="lazy">'
        return f'<li><a href="{folder}/edited.mp4">{picture}</a><div>{"".join(told)}</div></li>'
    told.append(f'<p class="{row["state"]}">{escape(row["error"] or "Not made yet.")}</p>')
    return f"<li><div>{''.join(told)}</div></li>"
