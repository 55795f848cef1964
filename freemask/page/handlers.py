"""What the page does when something is pressed. What comes from the browser is not trusted: it is validated here."""

from __future__ import annotations

import hashlib
import html
import logging
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import FreeMaskError, InputError, SettingError
from ..gallery import curves_figure, mask_sheet, read_words, short_site
from ..jobs import Job, Step, Worker
from ..presets import Example, Settings, load_preset, make_settings
from ..prompts import align, check, find_word, infer_word, word_spans
from ..video import probe
from . import status
from .bodies import Body
from .parts import TASK_OWN

__all__ = [
    "Desk",
    "Run",
    "describe_clip",
    "fill_fields",
    "follow_prompts",
    "follow_task",
    "forget",
    "open_masks",
    "show_masks",
]

log = logging.getLogger(__name__)
PLAYED = ("h264", "vp8", "vp9", "av1")


@dataclass(frozen=True)
class Run:
    """A finished edit: the folder with its files, which only this visitor is given, and the report."""

    folder: Path
    report: dict[str, Any]


def forget(run: Run | None) -> None:
    """Delete a run's files: its visitor has left."""
    if run is not None:
        shutil.rmtree(run.folder, ignore_errors=True)


class Desk:
    """Takes visitors' requests to the worker and brings back what it made. `folder` is where runs are kept."""

    def __init__(self, worker: Worker, body: Body, *, folder: Path) -> None:
        self._worker, self._body, self._folder = worker, body, folder
        self._jobs: defaultdict[str, set[Job]] = defaultdict(set)

    def edit(
        self,
        request: gr.Request,
        clip: str | None,
        source: str | None,
        edit: str | None,
        task: str = "style",
        word: str | None = None,
        backbone: str = "mini",
        steps: float = 25,
        guidance: float = 7.5,
        frames: float = 8,
        start: float | None = None,
        fps: str | None = None,
        size: str | None = None,
        tau: str | None = None,
        alpha_self: str | None = None,
        alpha_cross: str | None = None,
        alpha_temporal: str | None = None,
        alpha_latent: str | None = None,
        dilate: str | None = None,
        selection: str | None = None,
        features: str = "replay",
        eta: float = 0,
        seed: float | None = None,
    ) -> Generator[tuple[Any, ...], None, None]:
        """Edit a clip by text. Yields the progress at each step, then the videos, the report and all files.

        `word` is the source prompt's word that is edited: empty infers it. `start` is in seconds; `fps` empty takes 8
        or, where that is lower, the clip's own; `size` is WIDTHxHEIGHT in pixels, empty for the backbone's own. tau
        and the alphas are shares from 0 to 1, `dilate` cells of the latent grid, `selection` is codebook, adaptive or
        consensus: empty means the task's own.
        """
        with _collecting() as errors:
            settings = make_settings(
                source=source or "",
                edit=edit or "",
                task=task,
                word=(word or "").strip() or None,
                backbone=backbone,
                steps=steps,
                guidance=guidance,
                frames=frames,
                start=start or 0.0,
                fps=_own(fps),
                size=_size(size or ""),
                tau=_own(tau),
                alpha_self=_own(alpha_self),
                alpha_cross=_own(alpha_cross),
                alpha_temporal=_own(alpha_temporal),
                alpha_latent=_own(alpha_latent),
                dilate=_own(dilate),
                selection=_own(selection),
                features=features,
                eta=eta,
                seed=seed or 0,
            )
            path = Path(clip) if clip else None
            check(path, settings)
            assert path is not None  # or check has refused it
            kept = self._kept(request)
            job = self._worker.submit(lambda: self._work(path, settings, kept))
        for error in errors:
            yield status.failed((shown := _shown(error)).message), *_SKIPPED
            raise shown
        mine = self._jobs[request.session_hash or ""]
        mine.add(job)
        try:
            for now in job.follow():
                if not now.ended:
                    yield status.running(now), *_SKIPPED
            with _collecting() as errors:
                run: Run = job.result()
            for error in errors:
                yield status.failed((shown := _shown(error)).message), *_SKIPPED
                raise shown
            videos = [_file(run.folder / f"{name}.mp4") for name in ("source", "reconstruction", "edited")]
            files = [_file(path) for path in sorted(run.folder.iterdir())]
            yield status.done(run.report, job.snapshot.elapsed), *videos, run.report, files, run
        finally:
            job.cancel()
            mine.discard(job)
            if not mine:
                self._jobs.pop(request.session_hash or "", None)

    def cancel(self, request: gr.Request) -> str:
        """Cancel what this visitor's page has queued or running."""
        jobs = list(self._jobs.get(request.session_hash or "", ()))
        for job in jobs:
            job.cancel()
        return status.cancelled() if jobs else status.idle()

    def leave(self, request: gr.Request) -> None:
        """A visitor has gone: delete their inversions."""
        shutil.rmtree(self._kept(request), ignore_errors=True)

    def _kept(self, request: gr.Request) -> Path:
        """Where this visitor's inversions are kept; the browser names the session, so it is not used as a path."""
        return self._folder / f"kept-{hashlib.sha256((request.session_hash or '').encode()).hexdigest()}"

    def _work(self, clip: Path, settings: Settings, kept: Path) -> Generator[Step, None, Run]:
        """One job in a fresh folder with a name that cannot be guessed; nothing is left of it unless it ends well."""
        folder = self._folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        try:
            return Run(folder, (yield from self._body(clip, settings, folder, kept)))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def show_masks(word: str, frame: float, run: Run | None) -> tuple[Any, Any, str]:
    """The attention maps of a word of the last edit's source prompt, by layer and timestep; frames count from 1."""
    if run is None:
        raise _shown(SettingError("There are no masks yet: edit a clip first."))
    try:
        sheet = mask_sheet(run.folder / "words.npz", word, frame=int(frame) - 1)
    except FreeMaskError as error:
        raise _shown(error) from None
    curves, note = _codebook(run.report)
    return sheet, curves, note


def open_masks(run: Run) -> tuple[Any, ...]:
    """The choices of word and frame for a new edit, and its first sheet."""
    index = read_words(run.folder / "words.npz")
    edited = str(run.report["words"]["word"]).split()[-1]
    word = next(token for token in index.tokens if token.casefold() == edited.casefold())
    choices = gr.Dropdown(choices=list(dict.fromkeys(index.tokens)), value=word, interactive=True)
    frames = gr.Slider(1, max(2, index.frames), value=1, interactive=index.frames > 1)
    return choices, frames, *show_masks(word, 1, run)


WHY = {
    "measured": "Mask Matching Cost chose {}: the lowest points of the curves.",
    "adaptive": "Of this clip's maps, {} gives the mask: it is nearest to what the sharper ones agree on.",
    "consensus": "The mask is what this clip's sharper maps, outlined, agree on. The nearest single one: {}.",
    "level": "This task's mask is the mean of one grid's layers, at the same timestep.",
    "none": "This task fuses without a mask.",
}


def _codebook(report: dict[str, Any]) -> tuple[Any, str]:
    """The curves where a codebook was measured for the backbone, and a line on why the mask in use was chosen."""
    from ..mmc import read_codebook

    mask, book = report["mask"], read_codebook(report["settings"]["backbone"])
    place = f"<b>{html.escape(short_site(mask['site']))}</b>"
    when = "at every timestep" if mask["timestep"] == "every" else f"at timestep <b>{mask['timestep']}</b>"
    reason = mask["origin"] if mask["kind"] == "mmc" else mask["kind"]
    none = "No codebook was measured for this backbone. " if book is None and reason == "adaptive" else ""
    note = status.note(none + WHY[reason].format(f"{place}, {when}"))
    return curves_figure(asdict(book)) if book else None, note


def describe_clip(clip: str | None) -> str:
    """One line on an upload: what it is, or why it cannot be used."""
    if clip is None:
        return status.note("H.264, HEVC and most others; up to 5 minutes. Only the frames in use are decoded.")
    try:
        info = probe(Path(clip))
    except InputError as error:
        return status.note(html.escape(str(error)), bad=True)
    facts = [f"{info.width}×{info.height}", f"{info.fps:.3g} fps", f"{info.duration:.1f} s", info.codec]
    if info.codec.lower() not in PLAYED:
        facts.append("the preview may stay black in this browser, the edit works")
    return status.note(html.escape(" · ".join(facts)))


def follow_prompts(source: str, edit: str, task: str, word: str, inferred: str) -> tuple[str, str, str]:
    """The word in use, the word last inferred, and the two prompts with what changes marked.

    A word that the visitor typed stays as long as the prompt holds it.
    """
    try:
        fresh = infer_word(source, edit, task)
    except InputError:
        fresh = ""
    if not word.strip() or word == inferred or not _holds(source, word):
        word = fresh
    return word, fresh, _aligned(source, edit, word)


def follow_task(task: str) -> tuple[Any, ...]:
    """The task in a sentence, and its own values as the placeholders of the numbers it sets."""
    preset = load_preset(task)
    own = (gr.Textbox(placeholder=f"{getattr(preset, name):g}") for name in TASK_OWN)
    return status.note(html.escape(preset.summary)), *own


def fill_fields(example: Example) -> list[Any]:
    """An example's values for every field, in the order of `Inputs.all`."""
    own = example.settings
    optional = (getattr(own, name) for name in TASK_OWN)
    return [
        _file(example.clip),
        own.source,
        own.edit,
        own.task,
        own.word or "",
        own.backbone,
        own.steps,
        own.guidance,
        own.frames,
        own.start,
        "" if own.fps is None else f"{own.fps:g}",
        "x".join(map(str, own.size or ())),
        *("" if value is None else f"{value:g}" for value in optional),
        own.selection or "",
        own.features,
        own.eta,
        own.seed,
    ]


_SKIPPED: tuple[Any, ...] = (gr.skip(),) * 6


@contextmanager
def _collecting() -> Iterator[list[Exception]]:
    """Collects the error instead of raising it, so that the status line can tell it before the page's own alert."""
    errors: list[Exception] = []
    try:
        yield errors
    except Exception as error:
        errors.append(error)


def _shown(error: Exception) -> gr.Error:
    """An error as the page shows it: its text may quote what a visitor typed, and the page reads HTML.

    What is no error of ours goes to the log, and the visitor reads only that it happened.
    """
    if isinstance(error, FreeMaskError):
        return gr.Error(html.escape(str(error)), print_exception=False)
    log.error("an edit failed", exc_info=error)
    return gr.Error("The edit failed unexpectedly. The server's log says why.", print_exception=False)


def _file(path: Path) -> dict[str, Any]:
    """A file as the browser is told of it.

    Events that show videos skip Gradio's own postprocessing, which needs ffprobe wherever there is an ffmpeg: our
    videos play as they are.
    """
    return gr.FileData(path=str(path), orig_name=path.name, size=path.stat().st_size).model_dump()


def _own(text: str | None) -> str | None:
    """What was typed into a field that may be empty: its number is read, and refused, by the settings."""
    return (text or "").strip().replace(",", ".") or None


def _size(text: str) -> tuple[int, int] | None:
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text, re.IGNORECASE)
    if found is None:
        raise SettingError(f"size is {text!r}: write width x height in pixels, such as 128x128, or leave it empty.")
    return int(found[1]), int(found[2])


def _holds(prompt: str, word: str) -> bool:
    try:
        return bool(find_word(prompt, word))
    except InputError:
        return False


def _aligned(source: str, edit: str, word: str) -> str:
    """Both prompts as HTML: in the source the edited word and what goes, in the edit what comes."""
    where = find_word(source, word) if _holds(source, word) else []
    change = align(source, edit)
    before = {i: "gone" for i in change.removed} | {i: "word" for i in where}
    before |= {i: "word gone" for i in set(where) & set(change.removed)}
    return status.prompts(_marked(source, before), _marked(edit, {j: "new" for j in change.changed}))


def _marked(prompt: str, marks: dict[int, str]) -> str:
    parts, end = [], 0
    for i, (start, stop) in enumerate(word_spans(prompt)):
        text = html.escape(prompt[start:stop])
        parts += [html.escape(prompt[end:start]), f'<mark class="{marks[i]}">{text}</mark>' if i in marks else text]
        end = stop
    return "".join([*parts, html.escape(prompt[end:])])
