"""The files of an edit that are made when somebody asks for them, from those that its folder holds already.

`words.npz` holds every word's maps as arrays (`files.word_arrays`), `masks.npz` those of the edited word alone, without
the axis of tokens, and `mask` bool (f, h, w), the mask in use at the frames' size. Maps are written as they are: seen
by their own maximum in 8 bits, deflating takes a tenth off those of mini, and seconds for those of 8 frames at 512².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..clips.ffmpeg import is_unwritable, whole
from ..clips.video import Clip, side_by_side, write_clip, write_gif
from ..errors import SettingError
from ..masks.candidates import resize
from ..masks.trace import SoftMap
from ..pictures.mask_zip import read_mask_zip
from ..pictures.sheets import Arrays, map_grids, save_pdf, save_png
from ..pictures.word_maps import read_word_files, word_sheet
from ..settings import DRAWN, EXTRAS, MASKS
from ..validation import refuse_unknown
from ..words.prompts import find_word
from .files import made_with, read_report, read_videos

__all__ = ["make_extra", "make_extras"]


def make_extra(out: Path, name: str, into: Path | None = None) -> Path:
    """The file of that name in an edit's folder, made where it is not there yet, in the folder `into` if it is another;
    it appears whole or not at all.

    Raises SettingError for a name that is none of `EXTRAS`, or where files that it is made from are gone or
    damaged.
    """
    refuse_unknown("file", name, EXTRAS)
    path = out / name if into is None or (out / name).exists() else into / name
    if not path.exists():
        with whole(path) as part:
            try:
                MAKERS[name](out, read_report(out), part)
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                if is_unwritable(error):
                    raise
                gone = f"{name} is made from files of the edit that are gone or damaged: run the edit again."
                raise SettingError(gone) from error
    return path


def make_extras(out: Path) -> list[Path]:
    """All of them."""
    with ThreadPoolExecutor() as pool:  # encoders and compression leave the interpreter to each other
        return list(pool.map(lambda name: make_extra(out, name), EXTRAS))


def _clips(out: Path, report: Mapping[str, Any], *names: str) -> list[Clip]:
    shape = report["clip"]
    if missing := [name for name in names if not (out / f"{name}.mp4").exists()]:
        raise FileNotFoundError(missing[0])
    return [Clip(each, shape["fps"]) for each in read_videos(out, *names, frames=shape["frames"], fps=shape["fps"])]


def _gif(out: Path, report: Mapping[str, Any], part: Path) -> None:
    write_gif(part, *_clips(out, report, "edited"), note=made_with(report["settings"]["backbone"]))


def _comparison(out: Path, report: Mapping[str, Any], part: Path) -> None:
    middle = () if report.get("inversion") == DRAWN else ("reconstruction",)
    together = side_by_side(*_clips(out, report, "source", *middle, "edited"))
    write_clip(part, together, audio_from=out / "edited.mp4", note=made_with(report["settings"]["backbone"]))


def _sheet(save: Callable[[Path, Any], None]) -> Callable[[Path, Mapping[str, Any], Path], None]:
    return lambda out, report, part: save(part, word_sheet(out, report["words"]["word"], frame=0))


def _words(out: Path, report: Mapping[str, Any], part: Path) -> None:
    _save(part, read_word_files(out))


def _masks(out: Path, report: Mapping[str, Any], part: Path) -> None:
    every, shape = read_word_files(out), report["clip"]
    at = find_word(report["settings"]["source"], report["words"]["word"])
    own: dict[str, Any] = {name: every[name] for name in ("timesteps", "sites")}
    for size in map_grids(every):
        maps, scales = every[f"maps_{size}"], every[f"scales_{size}"]
        own[f"sites_{size}"] = every[f"sites_{size}"]
        own[f"maps_{size}"], own[f"scales_{size}"] = (
            (maps[:, :, at[0]], scales[:, :, at[0]]) if len(at) == 1 else _together(maps[:, :, at], scales[:, :, at])
        )
    own["tokens"] = every["tokens"][at]
    own["mask"] = resize(read_mask_zip(out / MASKS, frames=shape["frames"]), (shape["height"], shape["width"]))
    _save(part, own)


def _together(maps: np.ndarray, scales: np.ndarray) -> SoftMap:
    """Several words' maps (t, site, token, f, h, w) as one: each to a maximum of 1 and the largest taken."""
    each = maps / np.float32(255) * scales[..., None, None]
    each /= np.maximum(each.max((3, 4, 5), keepdims=True), np.finfo(np.float32).tiny)
    one = each.max(2)
    packed = SoftMap.pack(one.reshape(-1, *one.shape[2:]))
    return SoftMap(packed.values.reshape(one.shape), packed.scales.reshape(one.shape[:3]))


def _save(part: Path, arrays: Arrays) -> None:
    with part.open("wb") as file:  # by its name numpy would give it another ending
        np.savez(file, allow_pickle=False, **arrays)


# what writes each of `EXTRAS` from the folder and its report to a path
MAKERS: Mapping[str, Callable[[Path, Mapping[str, Any], Path], None]] = {
    "edited.gif": _gif,
    "comparison.mp4": _comparison,
    "masks.png": _sheet(save_png),
    "masks.pdf": _sheet(save_pdf),
    "masks.npz": _masks,
    "words.npz": _words,
}
