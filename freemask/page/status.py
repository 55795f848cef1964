"""The page's own small pieces of HTML. Arguments are HTML already; what a report quotes is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from ..jobs.verdict import judged
from ..jobs.worker import Snapshot

__all__ = [
    "CLIPS",
    "cancelled",
    "done",
    "estimate",
    "failed",
    "history",
    "idle",
    "looking",
    "note",
    "prompts",
    "running",
]

STAGES = {
    "load": ("Load", "Loading the model"),
    "invert": ("Invert", "Inverting"),
    "null-text": ("Null text", "Optimising the null text"),
    "edit": ("Edit", "Editing"),
    "decode": ("Write", "Writing the videos"),
    "reconstruct": ("Check", "Edited. Checking what the inversion lost"),
}
TUNED = "null-text"  # the stage that few methods have
TRUST = {"good": "", "doubtful": ", but look at it with care", "poor": ", but the edit is not to be trusted"}


def idle() -> str:
    return _line("idle", "Ready", "Choose an example or upload a clip, then press Edit.")


def running(now: Snapshot, glance: str = "", left: float | None = None, whole: bool = False) -> str:
    """Place in the queue, or stage, step and time left, with a glance at the edit (a data URI); `left` are seconds, of
    the whole edit or of the stage."""
    if now.state == "waiting":
        ahead = "1 job is" if now.place == 1 else f"{now.place} jobs are"
        return _line("waiting", "In the queue", f"{ahead} ahead of yours." if now.place else "Yours is next.")
    step = now.step
    if step is None:
        return _line("running", "Starting", f"{now.elapsed:.0f} s so far")
    parts = [f"step {step.index} of {step.total}"] if step.total > 1 else []
    if left is not None and left >= 0.5:
        parts.append(f"about {_duration(left)} left{'' if whole else ' in this stage'}")
    title = STAGES.get(step.stage, ("", step.stage.capitalize()))[1]
    detail = " · ".join([*parts, f"{_duration(now.elapsed)} so far"])
    tuned = step.stage == TUNED or TUNED in now.timed
    share = step.index / max(1, step.total)
    shown = now.shown is not None
    return _line("running", title, detail, stage=step.stage, share=share, glance=glance, tuned=tuned, shown=shown)


def looking(now: Snapshot) -> str:
    """How far the search for a word's maps is, as plain text."""
    if now.state == "waiting":
        return f"{now.place} job{'s are' if now.place > 1 else ' is'} ahead" if now.place else "next"
    step = now.step
    if step is None or step.total < 2:
        return "loading the model"
    what = "inverting the clip first, " if step.stage == "invert" else ""
    return f"{what}step {step.index} of {step.total}"


def done(report: dict[str, Any], elapsed: float | None) -> str:
    """The verdict on the edit, in the title and in sentences, what it kept, and the warnings; no time for an edit made
    beforehand. A report without a verdict is judged by the figures that it has."""
    metrics, mask = report["metrics"], report["mask"]
    verdict = judged(metrics, report["settings"]["source"])
    figures = [] if metrics else ["nothing was measured, since the edit was ended when it was there"]
    if metrics.get("background_psnr") is not None:
        kept = {"background": "background kept", "object": "object kept", "nothing": "likeness to the source"}
        figures.append(f"{kept[mask['kept']]} <b>{metrics['background_psnr']:.1f} dB</b>")
    if metrics.get("guided_psnr") is not None:
        figures.append(f"reconstruction under guidance <b>{metrics['guided_psnr']:.1f} dB</b>")
    if str(report.get("inversion")).startswith("kept"):
        figures.append("begun at denoising, with the inversion of an earlier edit")
    figures.append(f"word <b>{html.escape(report['words']['word'])}</b>")
    told = [html.escape(" ".join(verdict.sentences))] if verdict.sentences else []
    warned = [html.escape(warning) for warning in report["words"]["warnings"]]
    title = "Made beforehand: press Edit to make it here" if elapsed is None else f"Done in {_duration(elapsed)}"
    detail = "<br>".join([*told, " · ".join(figures), *warned])
    tuned = bool(report.get("null_text"))
    level = verdict.level if metrics else ""
    return _line("done", title + TRUST[verdict.level], detail, stage="", share=1, verdict=level, tuned=tuned)


def failed(why: str, shown: bool = False) -> str:
    return _line("failed", "Edited, but not measured" if shown else "Not edited", why)


def cancelled(shown: bool = False) -> str:
    kept = "The edit stays, without figures and a verdict:" if shown else "Nothing is lost:"
    return _line("cancelled", "Cancelled", f"{kept} press Edit to run it again.")


def note(text: str, *, bad: bool = False, doubt: bool = False) -> str:
    return f'<p class="fm-note{" bad" if bad else " doubt" if doubt else ""}">{text}</p>'


def prompts(source: str, edit: str, meaning: str = "", against: Sequence[str] = (), bad: Sequence[str] = ()) -> str:
    """The two prompts, their words marked already, what the change means by its task, what speaks against that, and
    what is `bad` by any; these two as plain text."""
    if not source and not edit:
        source = "What differs between the two prompts is marked here."
    doubts, always = ("".join(note(html.escape(line), bad=True) for line in lines) for lines in (against, bad))
    chosen = f'<p role=group aria-label="Choose what is edited">{source}</p>'
    of_task = f'<div class="of-task"><p class="meaning">{meaning}</p>{doubts}</div>'
    return f'<div class="fm-prompts">{chosen}<p>{edit}</p>{of_task}{always}</div>'


def estimate(seconds: float | None, mebibytes: float | None) -> str:
    """What an edit will cost on this server, or that nothing is known yet."""
    if seconds is None:
        needed = f"About <b>{mebibytes / 1024:.1f} GiB</b> of GPU memory. " if mebibytes else ""
        return note(f"{needed}The first edit with this backbone measures how long one takes here.")
    memory = f" and {mebibytes / 1024:.1f} GiB" if mebibytes else ""
    return note(f"About <b>{_duration(max(1.0, seconds))}</b>{memory}, as measured on this server.")


CLIPS = note("Any video of up to 5 minutes, a GIF, a WebP or a photo. Only the frames in use are decoded.")
FIGURES = {
    "reconstruction_psnr": ("Reconstruction", "dB"),
    "background_psnr": ("Kept part", "dB"),
    "clip": ("CLIP to the edit prompt", ""),
    "frame_accuracy": ("Frames that fit it better", "%"),
}


def history(runs: list[tuple[dict[str, Any], str]]) -> str:
    """A table of runs (report, data URI of a picture): the settings that differ, and the figures side by side."""
    if len(runs) < 2:
        return ""
    settings = [report["settings"] for report, _ in runs]
    names = [name for name in settings[0] if len({json.dumps(one.get(name)) for one in settings}) > 1]
    figures = [key for key in FIGURES if any(report["metrics"].get(key) is not None for report, _ in runs)]
    head = "".join(
        f"<th scope=col>{i + 1}<br><img src='{uri}' alt='Run {i + 1}: first and last frame'></th>"
        for i, (_, uri) in enumerate(runs)
    )
    lines = [(html.escape(name.replace("_", " ")), [_told(one.get(name)) for one in settings]) for name in names] + [
        (FIGURES[key][0], [_figure(key, report["metrics"].get(key)) for report, _ in runs]) for key in figures
    ]
    body = "".join(
        f"<tr><th scope=row>{title}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for title, values in lines
    )
    table = f"<table><thead><tr><th scope=col>Run</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="fm-history" role="region" aria-label="Runs of this visit" tabindex=0>{table}</div>'


def _told(value: Any) -> str:
    return "the task's own" if value is None else html.escape(str(value))


def _figure(key: str, value: float | None) -> str:
    unit = FIGURES[key][1]
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if unit == "%" else f"{value:.1f} dB" if unit else f"{value:.3f}"


def _line(
    state: str,
    title: str,
    detail: str,
    *,
    stage: str | None = None,
    share: float = 0.0,
    glance: str = "",
    verdict: str = "",
    tuned: bool = False,
    shown: bool = False,
) -> str:
    """The status: a title, a detail, and a segment for each stage, filled as far as it has come; for null-text
    optimisation too where the edit is `tuned`. An edit may be `shown` before all of its stages are through. The colour
    follows the state, and of an edit that is done the verdict.

    The page changes only the nodes that differ, by their place. The title stays the first, so that it is one live
    region from beginning to end, and a screen reader tells each new title once; the rest it does not tell.
    """
    picture = f'<img src="{glance}" alt="The edit on its way">' if glance else ""
    names = [name for name in STAGES if tuned or name != TUNED]
    at = names.index(stage) if stage in names else len(names) if stage == "" else -1
    fills = [1.0 if i < at else share if i == at else 0.0 for i in range(len(names))]
    segments = "".join(
        f'<li{" aria-current=step" if name == stage else ""}><i><b style="width:{100 * fill:.0f}%"></b></i>'
        f"{STAGES[name][0]}</li>"
        for name, fill in zip(names, fills, strict=True)
    )
    quality = (f' data-verdict="{verdict}"' if verdict else "") + (" data-shown" if shown else "")
    return (
        f'<div class="fm-status" data-state="{state}"{quality}><div role="status"><strong>{title}</strong></div>'
        f"<p>{detail}</p><ol aria-label='Stages'>{segments}</ol>{picture}</div>"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02d} s"
