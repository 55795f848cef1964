"""Pictures for people: the sheet of attention maps by layer and timestep, curves of a codebook, masks on frames.

Every picture is (h, w, 3) uint8 RGB. Sheets are drawn on a dark ground, so that they read alike on a light and on a
dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MaskError
from ..families.sites import short_site
from ..words.positions import locate, numbered, occurrence, plain

__all__ = [
    "PAPER",
    "SCREEN",
    "Image",
    "Ink",
    "WordMaps",
    "curves_figure",
    "distances_figure",
    "draw_cells",
    "draw_sheet",
    "dress",
    "find_tokens",
    "map_grids",
    "mask_sheet",
    "padded",
    "pixels",
    "read_words",
    "save_codebook_figure",
    "save_pdf",
    "save_png",
    "together",
]

Image = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]  # of a words.npz, by name (files.py)

FONT = "sans"
LEGEND = (
    "columns: timesteps, high noise to low   ·   each cell by its own maximum   ·   outlined: what the mask is made of"
)
SHEET_WIDTH = 1000  # pixels that the columns share
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Ink:
    """The colours of a figure."""

    ground: str
    text: str
    faint: str
    line: str
    chosen: str

    def rgb(self, name: str) -> RGB:
        """One of them as numbers."""
        r, g, b = bytes.fromhex(getattr(self, name)[1:])
        return r, g, b


SCREEN = Ink("#14161c", "#e2e4ea", "#8a8f9c", "#78beff", "#ff7a59")  # on dark
PAPER = Ink("#ffffff", "#16181d", "#6a6f7a", "#2c6fb7", "#d9480f")


@dataclass(frozen=True)
class WordMaps:
    """What the arrays of a `words.npz` tell without its maps: enough to offer a choice of word and frame.

    tokens: the source prompt's words, in order, then those of the edit prompt that it lacks, whose positions there are
    edit_words. sites: the cross-attention sites, from the input to the output.
    timesteps: ascending, from low to high noise. of_frames: which of a cell's maps each frame has, rising from 0, for
    frames that share a latent frame share a map. chosen (timestep, site) bool: the maps that the mask in use was made
    from; one row where each timestep uses its own. mask (f, h, w) bool: the mask in use, at the latents' grid.
    """

    tokens: tuple[str, ...]
    edit_words: tuple[int, ...]
    sites: tuple[str, ...]
    timesteps: tuple[int, ...]
    of_frames: tuple[int, ...]
    chosen: NDArray[np.bool_]
    mask: NDArray[np.bool_]

    @property
    def frames(self) -> int:
        return len(self.of_frames)


def read_words(stored: Arrays) -> WordMaps:
    """The index of the arrays of a `words.npz`."""
    maps = stored[f"scales_{map_grids(stored)[0]}"].shape[3]
    return WordMaps(
        tokens=tuple(map(str, stored["tokens"])),
        edit_words=tuple(map(int, stored["edit_words"])),
        sites=tuple(map(str, stored["sites"])),
        timesteps=tuple(map(int, stored["timesteps"])),
        of_frames=tuple(map(int, stored.get("of_frames", range(maps)))),
        chosen=np.array(stored["chosen"], bool),
        mask=np.array(stored["mask"], bool),
    )


def mask_sheet(stored: Arrays, word: str, *, frame: int) -> Image:
    """A contact sheet of a word's maps on one frame: a row for each site, a column for each timestep.

    Columns go from high noise (left, where the edit starts) to low. A cell is its map divided by its own maximum, so
    cells compare in shape, not in strength; of several words, each is divided so and the larger counts. The chosen
    cells are outlined. `frame` counts from 0; "dog#2" is the second dog.
    Raises MaskError for a word or a frame that was not recorded.
    """
    index = read_words(stored)
    return draw_sheet(index, lambda tokens: _maps(stored, tokens, index.of_frames[frame]), word, frame=frame)


def draw_sheet(
    index: WordMaps,
    read: Callable[[Sequence[int]], Mapping[str, NDArray[np.float32]]],
    word: str,
    *,
    frame: int,
    ink: Ink = SCREEN,
) -> Image:
    """`mask_sheet` of maps from anywhere: `read` gives those of some tokens on the frame, site ↦ (t, h, w)."""
    tokens = find_tokens(index.tokens, word)
    if not 0 <= frame < index.frames:
        raise MaskError(f"There is no frame {frame}: frames go from 0 to {index.frames - 1}.")
    return draw_cells(index, read(tokens), f"{word}, frame {frame + 1} of {index.frames}", _heat, ink)


def draw_cells(
    index: WordMaps,
    maps: Mapping[str, NDArray[np.float32]],
    title: str,
    paint: Callable[[NDArray[np.float32], tuple[int, int]], Image],
    ink: Ink,
) -> Image:
    """A sheet of maps (t, h, w) by site, each painted at a (width, height)."""
    height, width = max(soft.shape[1:] for soft in maps.values())
    aspect = width / height
    width = int(np.clip(SHEET_WIDTH // len(index.timesteps), 18, 56))
    height = max(12, round(width / aspect))
    return _Sheet(index, ink, width=width, height=height).draw(maps, title, paint)


def find_tokens(tokens: Sequence[str], word: str) -> list[int]:
    """Where the words of a `word` stand among those that have maps; raises MaskError where one has none."""
    run = locate(tokens, plain(word).split(), occurrence(word))
    each = [[i] for i in run] or [locate(tokens, [plain(one)], occurrence(one)) for one in word.split()]
    if not each or not all(each):
        raise MaskError(f"There is no map of {word!r}: choose one of {', '.join(numbered(tokens))}.")
    return [at for found in each for at in found]


class _Sheet:
    """Where things lie on the sheet: names on the left, timesteps on top, cells in between."""

    def __init__(self, index: WordMaps, ink: Ink, *, width: int, height: int) -> None:
        self.index, self.ink, self.width, self.height = index, ink, width, height
        self.gap = 3
        self.text = int(np.clip(height * 0.42, 14, 18))
        self.left = 24 + max(_text_width(site, self.text) for site in map(short_site, index.sites)) + 14
        self.top = 24 + 34 + self.text + 14

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.width + self.gap), self.top + row * (self.height + self.gap)

    def draw(
        self,
        maps: Mapping[str, NDArray[np.float32]],
        title: str,
        paint: Callable[[NDArray[np.float32], tuple[int, int]], Image],
    ) -> Image:
        index, columns = self.index, len(self.index.timesteps)
        right, bottom = self.corner(len(index.sites), columns)
        width = max(right + 21, 48 + _text_width(LEGEND, 14), 48 + _text_width(title, 20))
        sheet = np.full((bottom + 24 + self.text + 12, width, 3), self.ink.rgb("ground"), np.uint8)
        text, faint, used = map(self.ink.rgb, ("text", "faint", "chosen"))
        _write(sheet, title, (24, 24 + 20), size=20, colour=text, weight=600)
        every = max(1, -(-(_text_width("999", self.text) + 10) // (self.width + self.gap)))
        shown = index.timesteps[::-1]
        at = np.flatnonzero(index.chosen[::-1].any(1))
        in_use = int(at[0]) if len(at) == 1 else -every
        for column, timestep in enumerate(shown):
            x, _ = self.corner(0, column)
            chosen = column == in_use
            if chosen or (column % every == 0 and abs(column - in_use) >= every):
                _write(sheet, str(timestep), (x, self.top - 10), size=self.text, colour=used if chosen else faint)
        for row, site in enumerate(index.sites):
            _, y = self.corner(row, 0)
            chosen = bool(index.chosen[:, row].any())
            middle = y + (self.height + self.text) // 2 - 2
            _write(sheet, short_site(site), (24, middle), size=self.text, colour=used if chosen else text)
            for column in range(columns):
                x, y = self.corner(row, column)
                cell = paint(maps[site][columns - 1 - column], (self.width, self.height))
                sheet[y : y + self.height, x : x + self.width] = cell
        self._outline(sheet)
        _write(sheet, LEGEND, (24, bottom + 18 + self.text // 2), size=14, colour=faint)
        return sheet

    def _outline(self, sheet: Image) -> None:
        """A box around each run of chosen cells in a row."""
        used = self.ink.rgb("chosen")
        for row, chosen in enumerate(self.index.chosen[::-1].T):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
            for first, end in edges.reshape(-1, 2):
                x0, y0 = self.corner(row, int(first))
                x1, _ = self.corner(row, int(end) - 1)
                cv2.rectangle(sheet, (x0 - 2, y0 - 2), (x1 + self.width + 1, y0 + self.height + 1), used, 2)


def _curves(by_site: Any, by_timestep: Any, codebook: Mapping[str, Any], ink: Ink) -> None:
    """LMMC by site and TMMC by timestep with the lowest point ringed, on two axes; high noise stands left."""
    sites, timesteps = list(map(str, codebook["sites"])), list(map(int, codebook["timesteps"]))
    by_site.set_xticks(range(len(sites)), [short_site(site) for site in sites], rotation=55, ha="right")
    by_timestep.invert_xaxis()
    panels: tuple[tuple[Any, str, Sequence[int], Sequence[float], int], ...] = (
        (by_site, "LMMC, by layer", range(len(sites)), codebook["lmmc"], sites.index(codebook["site"])),
        (by_timestep, "TMMC, by timestep", timesteps, codebook["tmmc"], timesteps.index(codebook["timestep"])),
    )
    for axes, title, xs, ys, best in panels:
        axes.plot(xs, ys, color=ink.line, linewidth=1.8, marker="o", markersize=3.5)
        axes.plot(xs[best], ys[best], "o", color=ink.chosen, markersize=9, fillstyle="none", markeredgewidth=2)
        dress(axes, title, ink)


def dress(axes: Any, title: str, ink: Ink) -> None:
    """A panel's title, grid and ticks."""
    axes.set_title(title, color=ink.text, fontsize=11, loc="left")
    axes.set_facecolor(ink.ground)
    axes.tick_params(colors=ink.faint, labelsize=8)
    axes.grid(True, color=ink.faint, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink.faint)


def padded() -> Any:
    """A layout with room around the edge, in inches."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)


def curves_figure(codebook: Mapping[str, Any], ink: Ink = SCREEN) -> Image:
    """LMMC by site and TMMC by timestep, the chosen ones marked (FreeMask Eq. 4-6); lower is better.

    Reads `lmmc` (site), `tmmc` (timestep), `sites`, `timesteps`, `site` (l*) and `timestep` (t*) of a codebook.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=120, facecolor=ink.ground, layout=padded())
    by_site, by_timestep = figure.subplots(1, 2)
    _curves(by_site, by_timestep, codebook, ink)
    return pixels(figure)


def distances_figure(distances: NDArray[np.float32], timesteps: Sequence[int]) -> Image:
    """How far guidance ends from the pivot at each timestep, before and after null-text optimisation (VideoDirector,
    line 15): `distances` (t, iterations) are mean squares, NaN where none was needed; high noise stands left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=120, facecolor=SCREEN.ground, layout=padded())
    axes = figure.subplots()
    for ys, colour, told in (
        (distances[:, 0], SCREEN.faint, "with the null text of the step before"),
        (np.nanmin(distances, 1), SCREEN.line, "optimised"),
    ):
        axes.plot(timesteps, ys, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=told)
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("timestep", color=SCREEN.faint, fontsize=8)
    dress(axes, "Squared distance of the guided step from the inverted clip", SCREEN)
    axes.legend(fontsize=8, labelcolor=SCREEN.text, facecolor=SCREEN.ground, edgecolor=SCREEN.faint)
    return pixels(figure)


def pixels(figure: Any) -> Image:
    """A figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_codebook_figure(
    paths: Sequence[Path], codebook: Mapping[str, Any], frame: Image, maps: Mapping[str, NDArray[np.float32]]
) -> None:
    """The paper's three panels (FreeMask Fig. 1) on white, in the formats that the paths' suffixes name.

    Above, a frame (h, w, 3) and the maps (t, h', w') of its word by site and timestep, each by its own maximum;
    below, TMMC and LMMC.
    """
    from matplotlib.figure import Figure

    timesteps, sites = list(map(int, codebook["timesteps"])), list(map(str, codebook["sites"]))
    every = range(0, len(timesteps), -(-len(timesteps) // 13))
    shown = list(every)[::-1]
    ratio = frame.shape[0] / frame.shape[1]
    side, gap = (44, max(12, round(44 * ratio))), 4
    rows = [
        np.hstack([np.pad(_heat(maps[s][t], side), ((gap, 0), (gap, 0), (0, 0)), constant_values=255) for t in shown])
        for s in sites
    ]
    atlas = np.vstack(rows)
    figure = Figure(figsize=(11, 4.2 + 5.2 * ratio), dpi=150, facecolor=PAPER.ground, layout=padded())
    parts: Any = figure.subfigures(2, 1, height_ratios=(5.2 * ratio, 3.4))
    above, below = parts
    picture, sheet = above.subplots(1, 2, width_ratios=(1, 3.4))
    picture.imshow(frame)
    picture.set_axis_off()
    sheet.imshow(atlas)
    step_x, step_y = side[0] + gap, side[1] + gap
    sheet.set_xticks([step_x * (i + 0.55) for i in range(len(shown))], [str(timesteps[t]) for t in shown])
    sheet.set_yticks([step_y * (i + 0.55) for i in range(len(sites))], [short_site(site) for site in sites])
    sheet.tick_params(colors=PAPER.faint, labelsize=8, length=0)
    sheet.spines[:].set_visible(False)
    sheet.set_title("The word's maps, by layer and timestep", color=PAPER.text, fontsize=11, loc="left")
    by_timestep, by_site = below.subplots(1, 2)
    _curves(by_site, by_timestep, codebook, PAPER)
    for path in paths:
        figure.savefig(path, facecolor=PAPER.ground)


def save_png(path: Path, image: Image) -> None:
    """Write a picture as PNG. Raises OSError where it cannot be written."""
    path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())


def save_pdf(path: Path, image: Image, *, dpi: int = 144) -> None:
    """Write a picture as a PDF of one page, as large as the picture. Raises OSError where it cannot be written."""
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    figure.figimage(image)
    figure.savefig(path, format="pdf")


def map_grids(stored: Arrays) -> list[str]:
    """The grids, such as "16x16", of stored maps."""
    return [name.removeprefix("maps_") for name in stored if name.startswith("maps_")]


def _maps(stored: Arrays, tokens: Sequence[int], frame: int) -> dict[str, NDArray[np.float32]]:
    """Soft maps of these tokens together, on one latent frame: site ↦ (t, h, w) float32."""
    found: dict[str, NDArray[np.float32]] = {}
    for grid in map_grids(stored):
        maps, scales = stored[f"maps_{grid}"], stored[f"scales_{grid}"]
        for row, site in enumerate(map(str, stored[f"sites_{grid}"])):
            found[site] = together(maps[:, row, tokens, frame] / 255 * scales[:, row, tokens, frame, None, None])
    return found


def together(soft: NDArray[Any]) -> NDArray[np.float32]:
    """Maps (t, token, h, w) as one (t, h, w): of several, each is divided by its own maximum and the larger counts."""
    if soft.shape[1] > 1:
        soft = soft / np.maximum(soft.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(soft.max(axis=1), np.float32)


def _heat(soft: NDArray[np.float32], size: tuple[int, int]) -> Image:
    """A map (h, w) as colours at `size` (width, height), the lowest colour where it is all zero."""
    peak = float(soft.max())
    level = np.rint(soft / peak * 255).astype(np.uint8) if peak > 0 else np.zeros(soft.shape, np.uint8)
    grown = cv2.resize(level, size, interpolation=cv2.INTER_NEAREST if size[0] >= soft.shape[1] else cv2.INTER_AREA)
    return np.asarray(cv2.applyColorMap(grown, cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)


def _write(image: Image, text: str, at: tuple[int, int], *, size: int, colour: RGB, weight: int = 400) -> None:
    """Text with its baseline's left end `at` (x, y)."""
    cv2.putText(image, text, at, colour, cv2.FontFace(FONT), size, weight)


def _text_width(text: str, size: int) -> int:
    box = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(FONT), size)
    return int(box[2])
