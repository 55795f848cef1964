"""The curves of a word's maps over the timesteps: a figure, a table, and a notebook cell that draws them again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..families.sites import short_site
from ..settings import DRAWN
from .sheets import PAPER, SCREEN, Image, Ink, dress, pixels

__all__ = ["curves_csv", "notebook_cell", "save_word_curves", "word_curves_figure"]

Curves = Mapping[str, Mapping[str, NDArray[np.float64]]]  # of `masks.curves.map_curves`


def word_curves_figure(
    curves: Curves, timesteps: Sequence[int], site: str, labels: Mapping[str, str], ink: Ink = SCREEN
) -> Image:
    """A panel for each figure of `labels` over the timesteps, high noise left: one layer's curve among all others."""
    return pixels(_figure(curves, timesteps, site, labels, ink))


def save_word_curves(
    path: Path, curves: Curves, timesteps: Sequence[int], site: str, labels: Mapping[str, str], title: str
) -> None:
    """The same on white, as a PDF."""
    figure = _figure(curves, timesteps, site, labels, PAPER)
    figure.suptitle(title, color=PAPER.text, fontsize=12)
    figure.savefig(path, format="pdf", facecolor=PAPER.ground)


def _figure(curves: Curves, timesteps: Sequence[int], site: str, labels: Mapping[str, str], ink: Ink) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=120, facecolor=ink.ground)
    figure.subplots_adjust(0.06, 0.07, 0.98, 0.9, wspace=0.2, hspace=0.25)  # to find these takes as long as to draw
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, labels.items(), strict=True):
        for other, figures in curves.items():
            if other != site:
                axes.plot(timesteps, figures[name], color=ink.faint, linewidth=0.8, alpha=0.5)
        axes.plot(timesteps, curves[site][name], color=ink.line, linewidth=2, marker="o", markersize=3)
        axes.invert_xaxis()
        if name == "y":
            axes.invert_yaxis()  # as in the picture
        dress(axes, label.split(",")[0].split(":")[0], ink)
    return figure


def curves_csv(curves: Curves, timesteps: Sequence[int], word: str) -> str:
    """A row for each layer and timestep; a figure that there is not is left empty."""
    text = io.StringIO()
    names = list(next(iter(curves.values())))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["word", "layer", "timestep", *names])
    for site, figures in curves.items():
        for k, t in enumerate(timesteps):
            values = [figures[name][k] for name in names]
            table.writerow([word, site, t, *("" if np.isnan(one) else f"{one:.6g}" for one in values)])
    return text.getvalue()


def notebook_cell(report: Mapping[str, Any], clip: str, word: str, site: str, tau: float) -> str:
    """Python that does with the clip what the edit of a report did, and plots the word's curves at a layer."""
    settings, shape = report["settings"], report["clip"]
    way = f"solver={settings['solver']!r}"
    if report.get("inversion") == DRAWN:
        way = f"drawn=True, seed={settings['seed']}"
    part = f"frames={shape['frames']}, start={settings['start']}, fps={settings['fps']}"
    return f"""import matplotlib.pyplot as plt

from freemask import Editor, read_clip
from freemask.masks.curves import map_curves

editor = Editor.load({settings["backbone"]!r})
clip = read_clip({clip!r}, {part}, size=({shape["width"]}, {shape["height"]}))
trace = editor.invert(clip, prompt={settings["source"]!r}, steps={settings["steps"]}, {way})
maps = editor.maps(trace, {word!r})
curves = map_curves(maps, tau={tau})[{site!r}]  # {short_site(site)}
for name, values in curves.items():
    plt.plot(trace.timesteps, values, label=name)
plt.gca().invert_xaxis()
plt.xlabel("timestep")
plt.legend()
"""
