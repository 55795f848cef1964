"""What cannot be edited is refused here, before any model runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..clips.video import MIN_SIDE, probe, read_clip
from ..errors import ClipError, PromptError
from ..families.specs import known_words
from ..pictures.mask_zip import read_mask_zip
from ..presets import Settings
from ..words.positions import named
from ..words.prompts import find_word, infer_word, same_words, unseen, words

__all__ = ["check", "check_source", "fitting"]


def fitting(clip: Path, settings: Settings) -> Settings:
    """Settings as they fit a clip: of a still, the one frame is edited. Raises ClipError as `video.probe` does."""
    return replace(settings, frames=1, start=0.0, fps=None) if probe(clip).still else settings


def _refuse_empty(label: str, prompt: str) -> None:
    if not words(prompt):
        raise PromptError(f"The prompt for {label} is empty; write a short sentence, such as 'a red car driving'.")


def _refuse_unseen(prompts: str, backbone: str) -> None:
    known = known_words(backbone)
    if known is not None and (strange := unseen(prompts, known)):
        raise PromptError(
            f"The backbone {backbone!r} has never seen: {', '.join(strange)}. "
            f"It knows only these words: {', '.join(known)}."
        )


def check_source(prompt: str, backbone: str) -> None:
    """Raises PromptError where a source prompt is empty or holds words that the backbone has never seen."""
    _refuse_empty("what the clip shows", prompt)
    _refuse_unseen(prompt, backbone)


def check(clip: Path | None, settings: Settings) -> str:
    """Refuses what cannot be edited before any model runs; returns the word that will be edited.

    Raises ClipError, PromptError or SettingError (the masks), each naming the fault and the cure.
    """
    if clip is None:
        raise ClipError("There is no clip yet: choose or upload a video first.")
    _refuse_empty("what the clip shows", settings.source)
    _refuse_empty("what it should show", settings.edit)
    if same_words(settings.source, settings.edit):
        raise PromptError("The two prompts are the same; change a word in the second one to say what to edit.")
    _refuse_unseen(f"{settings.source} {settings.edit}", settings.backbone)
    word = settings.word or infer_word(settings.source, settings.edit, settings.task)
    word = named(words(settings.source), find_word(settings.source, word))
    settings = fitting(clip, settings)
    if settings.masks:
        read_mask_zip(settings.masks, frames=settings.frames)
    # decoding the frames that will be used, small, is the only test that no container's header can fool
    read_clip(clip, frames=settings.frames, start=settings.start, fps=settings.fps, size=(MIN_SIDE, MIN_SIDE))
    return word
