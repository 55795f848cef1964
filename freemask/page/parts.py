"""The page's components, in the order in which they are seen."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..clips.strides import MOST_FRAMES
from ..families.reach import obstacle
from ..families.specs import backbones, known_words
from ..presets import load_preset, task_names
from ..settings import EXTRAS, Example
from . import status
from .advanced import PACES, Advanced, first_pace
from .changes import CHOOSE
from .compare import COMPARE
from .curves import CURVES, SHEET, TABLES
from .wording import INFERRED

__all__ = ["Inputs", "Results", "toy_world"]

STATIC = Path(__file__).resolve().parents[2] / "static"
# A click on a word of the source prompt chooses it as the edited one.
PICK = """element.addEventListener("click", (event) => {
    const chosen = event.target.closest("button[data-word]");
    if (chosen) trigger("pick", { word: chosen.dataset.word });
});"""


def toy_world(backbone: str) -> str:
    """While a model of the toy world is chosen: what it knows, and what real clips need here. Empty for any other."""
    known = known_words(backbone)
    if known is None:
        return ""
    chips = " ".join(f"<span>{html.escape(word)}</span>" for word in known)
    listed = f"<details><summary>What it knows: {len(known)} words</summary><p>{chips}</p></details>" if known else ""
    small = f"<b>{html.escape(backbone)}, a small model, knows only its toy world.</b>"
    return f'<div class="fm-toy"><p>{small} {_real_clips()}</p>{listed}</div>'


def _real_clips() -> str:
    """What edits real clips on this server, or what it takes."""
    real = [spec.name for spec in backbones() if spec.hub_id]
    met = {name: obstacle(name) for name in reversed(real)}  # the paper's first
    if here := [name for name, one in met.items() if one is None]:
        return f"For real clips choose <code>{here[0]}</code> under Advanced."
    name, first = next(iter(met.items()))
    assert first
    return f"Real clips need one such as <code>{name}</code>; not on this server, since {html.escape(first.why)}."


@dataclass(frozen=True)
class Inputs:
    """The left column. `all` is the order of the handler's and the API's arguments."""

    examples: gr.Dataset
    clip: gr.Video
    preview: gr.HTML
    facts: gr.HTML
    outside: gr.HTML
    trim: gr.HTML
    source: gr.Textbox
    edit: gr.Textbox
    aligned: gr.HTML
    changes: gr.HTML
    task: gr.Radio
    summary: gr.HTML
    word: gr.Textbox
    pace: gr.Radio
    advanced: Advanced
    settings: gr.UploadButton
    estimate: gr.HTML
    own_mask: gr.Button
    caution: gr.HTML
    progress: gr.HTML
    run: gr.Button
    cancel: gr.Button

    @property
    def all(self) -> list[Any]:
        return [self.clip, self.source, self.edit, self.task, self.word, *vars(self.advanced).values()]

    @classmethod
    def build(cls, shipped: list[Example], *, backbone: str) -> Inputs:
        examples = gr.Dataset(
            label="Start from an example",
            components=["textbox"],
            samples=[[example.name] for example in shipped],
            sample_labels=[example.name for example in shipped],
            type="index",
            elem_id="examples",
            visible=bool(shipped),
        )
        with gr.Row(elem_id="what"):
            with gr.Column(scale=4, min_width=180):
                clip = gr.Video(
                    label="Your clip",
                    sources=["upload", "webcam"],
                    # else the camera's largest picture is recorded, which no backbone uses and slow machines drop
                    # frames of
                    webcam_options=gr.WebcamOptions(
                        constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
                    ),
                    height=172,
                    elem_id="clip",
                    loop=True,
                    buttons=[],
                )
                preview = _script("preview")
                facts = gr.HTML(status.CLIPS, elem_id="facts")
            with gr.Column(scale=6, min_width=230):
                source = gr.Textbox(
                    "", label="What the clip shows", placeholder="a red car driving on the grass", elem_id="source"
                )
                edit = gr.Textbox(
                    "", label="What it should show", placeholder="a blue car driving on the grass", elem_id="edit"
                )
        outside = gr.HTML("", elem_id="outside")
        aligned = gr.HTML(status.prompts("", ""), js_on_load=PICK, elem_id="aligned")
        changes = gr.HTML("", js_on_load=CHOOSE, elem_id="changes")
        titles = [(load_preset(name).title, name) for name in task_names()]
        task = gr.Radio(titles, value=task_names()[0], label="Task", elem_id="task")
        summary = gr.HTML(status.note(html.escape(load_preset(task_names()[0]).summary)), elem_id="summary")
        trim = _script("trim")
        word = gr.Textbox(label="Word that is edited", placeholder=INFERRED, max_lines=1, elem_id="word")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            pace = gr.Radio(list(PACES), value=first_pace(), label="Pace", elem_id="pace")
            advanced = Advanced.build(backbone=backbone)
            settings = gr.UploadButton("Load a settings.json", file_types=[".json"], size="sm", elem_id="settings")
        with gr.Column(elem_id="actions"):
            own_mask = gr.Button(visible=False, size="sm", elem_id="own-mask")
            estimate = gr.HTML(status.note("&nbsp;"), elem_id="estimate")
            caution = gr.HTML("", elem_id="caution")
            progress = gr.HTML("", elem_id="progress")
            with gr.Row():
                run = gr.Button("Edit", variant="primary", size="lg", scale=3, elem_id="run")
                cancel = gr.Button("Cancel", variant="secondary", size="lg", scale=1, min_width=100, elem_id="cancel")
        return cls(
            examples,
            clip,
            preview,
            facts,
            outside,
            trim,
            source,
            edit,
            aligned,
            changes,
            task,
            summary,
            word,
            pace,
            advanced,
            settings,
            estimate,
            own_mask,
            caution,
            progress,
            run,
            cancel,
        )


def _script(name: str) -> gr.HTML:
    """A part that `static/NAME.js`, or all that is in the folder `static/NAME`, draws in the browser."""
    files = sorted((STATIC / name).glob("*.js")) or [STATIC / f"{name}.js"]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return gr.HTML(
        value=None,
        html_template=f'<div class="fm-{name}"></div>',
        js_on_load=f"{code}\n{name}(element, props, trigger, watch);",
        apply_default_css=False,
        elem_id=name,
    )


def _figure(elem_id: str, label: str, alt_text: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,
        alt_text=alt_text,
        format="png",
        interactive=False,
        visible=visible,
        elem_id=elem_id,
        buttons=["download", "fullscreen"],
    )


@dataclass(frozen=True)
class Results:
    """The right column. The three videos are outputs for the API; the page plays them in the studio."""

    status: gr.HTML
    source: gr.Video
    reconstruction: gr.Video
    edited: gr.Video
    studio: gr.HTML
    choice: gr.Radio
    history: gr.HTML
    word: gr.Dropdown
    frame: gr.Slider
    sheet: gr.Image
    curves: gr.Image
    tabs: gr.Tabs
    curves_word: gr.Dropdown
    layer: gr.Dropdown
    timeline: gr.Image
    cell: gr.Textbox
    tables: dict[str, gr.Button]  # by the names of the files that they make
    other: gr.Dropdown
    moment: gr.Slider
    beside: gr.Video
    strip: gr.Image
    difference: gr.Image
    differ: gr.HTML
    name: gr.Textbox
    delete: gr.Button
    link: gr.HTML
    null_text: gr.Image
    report: gr.JSON
    files: gr.File
    extras: dict[str, gr.Button]  # by the names of the files that they make
    run: gr.State
    offered: gr.Textbox  # whose words and name the fields offer, in the browser as they are

    @property
    def outputs(self) -> list[Any]:
        """What an edit gives, in the API's order."""
        return [self.status, self.source, self.reconstruction, self.edited, self.report, self.files, self.run]

    @property
    def compared(self) -> list[Any]:
        """What two edits have beside each other."""
        return [self.differ, self.beside, self.difference, self.strip]

    @property
    def masks(self) -> list[Any]:
        return [self.sheet, self.curves]

    @classmethod
    def build(cls) -> Results:
        line = gr.HTML(status.idle(), label="Status", elem_id="status")
        source, reconstruction, edited = (
            gr.Video(label=label, visible=False, interactive=False) for label in ("Source", "Reconstruction", "Edit")
        )
        studio = _script("studio")
        choice = gr.Radio([], label="Runs of this visit", visible=False, elem_id="choice")
        history = gr.HTML("", elem_id="history")
        with gr.Tabs() as tabs:
            with gr.Tab("Downloads", id="downloads"):
                files = gr.File(label="Downloads", file_count="multiple", interactive=False, elem_id="files")
                with gr.Row(elem_id="extras"):
                    extras = {name: gr.Button(title, size="sm", min_width=120) for name, title in EXTRAS.items()}
                link = gr.HTML("", elem_id="link")
            with gr.Tab(SHEET, id="sheet-tab"):
                with gr.Row():
                    word = gr.Dropdown([], label="Word", interactive=True, allow_custom_value=True, min_width=140)
                    frame = gr.Slider(1, MOST_FRAMES, 1, step=1, label="Frame", interactive=True, buttons=[])
                sheet = _figure(
                    "sheet",
                    "Attention by layer and timestep",
                    "A grid of attention maps: a row for each layer, a column for each timestep",
                )
                curves = _figure("curves", "Mask Matching Cost", "Two curves: the cost by layer and by timestep")
            with gr.Tab(CURVES, id="curves-tab"):
                with gr.Row():
                    curves_word = gr.Dropdown(
                        [], label="Word", interactive=True, allow_custom_value=True, min_width=140
                    )
                    layer = gr.Dropdown([], label="Layer", interactive=True, filterable=False, min_width=140)
                timeline = _figure(
                    "timeline",
                    "The word's maps over the timesteps",
                    "Six curves of a layer among those of all others: area, IoU with the mask in use, flicker, entropy "
                    "and centre",
                )
                gr.HTML(
                    status.note(
                        "The chosen layer in blue, all others faint; noise falls from left to right. A word that was "
                        "looked for can be typed."
                    )
                )
                with gr.Row(elem_id="tables"):
                    tables = {name: gr.Button(title, size="sm", min_width=120) for name, title in TABLES.items()}
                # gr.Code would load an editor with the page, a quarter of all its scripts
                cell = gr.Textbox(
                    label="In a notebook", max_lines=40, interactive=False, buttons=["copy"], elem_id="notebook"
                )
            with gr.Tab(COMPARE, id="compare-tab"):
                with gr.Row():
                    other = gr.Dropdown([], label="Compare with", filterable=False, visible=False, min_width=200)
                    moment = gr.Slider(1, MOST_FRAMES, 1, step=1, label="Frame", visible=False, buttons=[])
                told = "Left the other edit, blue; right the one that is shown, orange; neither where their maps agree."
                gr.HTML(status.note(told))
                beside = gr.Video(label="Both edits", show_label=False, interactive=False, elem_id="beside")
                strip = _figure("strip", "Both masks", "Frames with the outlines of both masks")
                difference = _figure(
                    "difference", "Where the maps differ", "A grid of differences by layer and timestep"
                )
                differ = gr.HTML("", elem_id="differ")
                with gr.Row():
                    name = gr.Textbox(
                        label="Name of the edit that is shown", max_lines=1, visible=False, elem_id="name"
                    )
                    delete = gr.Button("Delete this edit", variant="stop", visible=False, size="sm")
            with gr.Tab("Report", id="report"):
                null_text = _figure(
                    "null-text",
                    "Null-text optimisation",
                    "Two curves over the timesteps: the distance to the inverted clip before and after",
                    visible=False,
                )
                report = gr.JSON(label="Report", elem_id="json")
        run, offered = gr.State(None), gr.Textbox(visible=False)
        return cls(
            line,
            source,
            reconstruction,
            edited,
            studio,
            choice,
            history,
            word,
            frame,
            sheet,
            curves,
            tabs,
            curves_word,
            layer,
            timeline,
            cell,
            tables,
            other,
            moment,
            beside,
            strip,
            difference,
            differ,
            name,
            delete,
            link,
            null_text,
            report,
            files,
            extras,
            run,
            offered,
        )
