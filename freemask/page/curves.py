"""The tab of curves: a word's maps over the timesteps as figures, a table, a PDF, and a notebook cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..clips.ffmpeg import whole
from ..families.sites import short_site
from ..pictures.curves import curves_csv, notebook_cell, save_word_curves, word_curves_figure
from ..pictures.sheets import Ink
from ..pictures.word_maps import read_index, read_maps, unpack_bits
from ..presets import SELECTION_TAU
from ..validation import refuse_unknown
from .visits import Run

__all__ = ["CURVES", "SHEET", "TABLES", "draw_curves", "first_tau", "save_curves"]

CURVES, SHEET = "Curves", "Sheet"  # the tabs
TABLES = {"curves.csv": "Table (CSV)", "curves.pdf": "Figure (PDF)"}


def first_tau(report: dict[str, Any]) -> float:
    """Where cells are cut at first: not as a consensus is."""
    mask = report["mask"]
    return float(SELECTION_TAU["codebook"] if mask["origin"] == "consensus" else mask["tau"])


def _measured(run: Run, concepts: Path | None, word: str, layer: str) -> tuple[Any, list[int], str]:
    """The curves of every layer, the timesteps, and the layer's own name. Raises MaskError for a word without maps,
    SettingError for a layer that there is not."""
    from ..masks.curves import map_curves  # which imports torch, and the page is painted before that

    index = read_index(run.folder)
    sites = {site["short"]: site["name"] for site in index["sites"]}
    refuse_unknown("layer", layer, sites)
    mask = index["mask"]
    used = unpack_bits(mask["data"], (mask["h"], mask["w"]))[: index["frames"]]
    found = map_curves(read_maps(run.folder, word, concepts), tau=first_tau(run.report), mask=used)
    return found, index["timesteps"], sites[layer]


def draw_curves(run: Run, concepts: Path | None, word: str, layer: str, ink: Ink) -> tuple[Any, str]:
    """The figure (h, w, 3), and Python that draws the layer's curves again."""
    from ..masks.curves import FIGURES

    curves, timesteps, site = _measured(run, concepts, word, layer)
    cell = notebook_cell(run.report, run.clip.name, word, site, first_tau(run.report))
    return word_curves_figure(curves, timesteps, site, FIGURES, ink), cell


def save_curves(run: Run, concepts: Path | None, word: str, layer: str, name: str, folder: Path) -> Path:
    """One of `TABLES`, written into a folder."""
    from ..masks.curves import FIGURES

    refuse_unknown("file", name, TABLES)
    curves, timesteps, site = _measured(run, concepts, word, layer)
    path = folder / name
    with whole(path) as part:
        if name.endswith(".csv"):
            part.write_text(curves_csv(curves, timesteps, word), encoding="utf-8")
        else:
            save_word_curves(part, curves, timesteps, site, FIGURES, f"“{word}” at {short_site(site)}")
    return path
