"""What cannot be edited is refused here, before any model runs; what was read to know it is handed on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..bends import read_bend
from ..clips.video import MIN_SIDE, Clip, probe, read_clip
from ..errors import BackboneError, ClipError, PromptError, SettingError
from ..families.specs import backbone_spec, fit, known_words
from ..pictures.mask_zip import read_label_zip, read_mask_zip
from ..presets import refuse_path
from ..settings import Settings
from ..words.positions import listed, named
from ..words.prompts import find_word, infer_word, same_words, unseen, words

__all__ = ["Checked", "check", "check_source", "edit_size", "fitting", "refuse_pair", "refuse_shape"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An edit that can be made.

    `word` is the one that is edited, `settings` are as they fit the clip. `clip` is what is edited, at its size; None
    where only a model that is not here yet could tell that. `masks` (f, h, w) are a person's own, as drawn: bool,
    or of several changes uint8 labels, a change's number from 1 or 0.
    """

    word: str
    settings: Settings
    clip: Clip | None
    masks: np.ndarray | None


def fitting(clip: Path, settings: Settings) -> Settings:
    """Settings as they fit a clip: of a still, the one frame is edited. Raises ClipError as `video.probe` does."""
    return replace(settings, frames=1, start=0.0, fps=None) if probe(clip).still else settings


def refuse_shape(masks: np.ndarray, size: tuple[int, int]) -> None:
    """Raises SettingError where masks (f, h, w) are of another shape than frames of (width, height)."""
    (h, w), (width, height) = masks.shape[1:], size
    if abs(w * height / (h * width) - 1) > 0.1:
        raise SettingError(f"The masks are {w}x{h}, the frames {width}x{height}: draw them on this clip's own frames.")


def refuse_pair(settings: Settings, path: str) -> None:
    """Raises SettingError where a method, or deep_cache, is for models with another path to noise than `path`."""
    refuse_path(settings.method, settings.backbone, path)
    if path == "flow" and (settings.deep_cache or 1) > 1:
        raise SettingError(f"{settings.backbone} has no coarse layers: leave deep_cache out.")
    if path == "flow" and settings.eta > 0:
        raise SettingError(f"{settings.backbone} follows a flow, whose steps add no noise: leave eta at 0.")


def _refuse_empty(label: str, prompt: str) -> None:
    if not words(prompt):
        raise PromptError(f"The prompt for {label} is empty; write a short sentence, such as 'a red car driving'.")


def _refuse_unseen(prompts: str, backbone: str) -> None:
    known = known_words(backbone)
    if known is not None and (strange := unseen(prompts, known)):
        raise PromptError(
            f"The backbone {backbone!r} has never seen: {listed(strange)}. "
            f"It knows only these words: {', '.join(known)}."
        )


def check_source(prompt: str, backbone: str) -> None:
    """Raises PromptError where a source prompt is empty or holds words that the backbone has never seen."""
    _refuse_empty("what the clip shows", prompt)
    _refuse_unseen(prompt, backbone)


def check(clip: Path | None, settings: Settings) -> Checked:
    """Refuses what cannot be edited before any model runs.

    Raises ClipError, PromptError or SettingError (the masks), each naming the fault and the cure.
    """
    if clip is None:
        raise ClipError("There is no clip yet: choose or upload a video first.")
    _refuse_empty("what the clip shows", settings.source)
    _refuse_empty("what it should show", settings.edit)
    if same_words(settings.source, settings.edit):
        raise PromptError("The two prompts are the same; change a word in the second one to say what to edit.")
    _refuse_unseen(f"{settings.source} {settings.edit}", settings.backbone)
    with suppress(BackboneError):  # a model of which nothing is known yet: refused once it is here
        refuse_pair(settings, backbone_spec(settings.backbone).path)
    first = next((one.word for one in settings.changes or () if one.task not in ("keep", "place")), None)
    word = settings.word or first or infer_word(settings.source, settings.edit, settings.task)
    word = named(words(settings.source), find_word(settings.source, word))
    if settings.bend:
        find_word(settings.edit, read_bend(settings.bend).word)
    settings = fitting(clip, settings)
    masks = _read_masks(settings.masks, settings) if settings.masks else None
    size = edit_size(clip, settings)
    # decoding the frames that will be used is the only test that no container's header can fool
    read = read_clip(
        clip, frames=settings.frames, start=settings.start, fps=settings.fps, size=size or (MIN_SIDE, MIN_SIDE)
    )
    if masks is not None and size:
        refuse_shape(masks, size)
    return Checked(word=word, settings=settings, clip=read if size else None, masks=masks)


def _read_masks(path: Path, settings: Settings) -> np.ndarray:
    """`Checked.masks`. Raises SettingError as the readers do, and for labels of a place, which has no mask."""
    changes = settings.changes or ()
    if not changes:
        return read_mask_zip(path, frames=settings.frames)
    labels = read_label_zip(path, frames=settings.frames, count=len(changes))
    for n, change in enumerate(changes, 1):
        if change.task == "place" and (labels == n).any():
            raise SettingError(
                f"{path.name} holds the value {n}, but change {n} is of the place, which has what the other masks "
                "leave: put 0 there."
            )
    return labels


def edit_size(clip: Path, settings: Settings) -> tuple[int, int] | None:
    """The (width, height) of an edit, None where nothing is known of the backbone before it is here.

    Raises ClipError as `video.probe` does.
    """
    try:
        spec = backbone_spec(settings.backbone)
    except BackboneError:
        return None
    if settings.size:
        return fit(settings.size, spec.vae_factor * spec.downsampling)
    info = probe(clip)
    return spec.frame_size(info.width, info.height)
