"""The page's components, in the order in which they are seen."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..presets import FAST, Example, load_preset, task_names
from ..specs import backbones, known_backbone, known_words
from . import status

__all__ = ["PACES", "TASK_OWN", "Advanced", "Inputs", "Results", "cards", "header", "theme", "toy_world"]

STATIC = Path(__file__).resolve().parents[2] / "static"
TASK_OWN = {
    "tau": "τ",
    "alpha_self": "α self",
    "alpha_cross": "α cross",
    "alpha_temporal": "α temporal",
    "alpha_latent": "α latent",
    "dilate": "Grow mask",
}
PACES: dict[str, dict[str, Any]] = {
    "Usual: 25 steps of DDIM": {"steps": 25, "solver": "ddim"},
    "Fast: 15 steps of DPM-Solver": FAST,
}
TITLE = """<header class="fm-head"><h1>FreeMask</h1>
<p>Edit a video by text, and see the attention masks that made the edit.</p></header>"""


def theme() -> gr.themes.Base:
    """Quiet greys, one violet, system fonts: nothing is fetched from elsewhere."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_lg,
        font=fonts,
        font_mono=mono,
    ).set(
        body_background_fill="#f6f6f4",
        body_background_fill_dark="#111216",
        block_background_fill="#ffffff",
        block_background_fill_dark="#191b21",
        body_text_color_subdued="#63636b",
        body_text_color_subdued_dark="#a3a6b1",
        input_placeholder_color="#8b8b93",
        input_placeholder_color_dark="#767a86",
        block_border_color="#e6e5e1",
        block_border_color_dark="#2a2d36",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_title_text_weight="600",
        input_background_fill="#fbfbfa",
        input_background_fill_dark="#14161b",
        border_color_primary="#e6e5e1",
        border_color_primary_dark="#2a2d36",
        button_primary_background_fill="#4c3a9e",
        button_primary_background_fill_hover="#3d2e86",
        button_primary_background_fill_dark="#6d59cf",
        button_primary_background_fill_hover_dark="#5f4bc0",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#22252d",
        button_secondary_border_color="#d9d8d3",
        button_secondary_border_color_dark="#363a45",
        button_border_width="1px",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_border_color="#dedcd6",
        checkbox_label_border_color_dark="#363a45",
        checkbox_label_border_width="1px",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        block_shadow="0 1px 2px rgb(20 20 30 / 4%)",
        block_shadow_dark="none",
    )


def cards(folder: Path) -> str:
    """CSS that puts each task's picture, before and after, on its card."""
    rules = []
    for i, name in enumerate(task_names()):
        path = folder / f"{name}.jpg"
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            picture = f'content: ""; background-image: url(data:image/jpeg;base64,{data})'
            rules.append(f"#task label:nth-of-type({i + 1})::before {{ {picture} }}")
    return "\n".join(rules)


def header() -> None:
    gr.HTML(TITLE)


def toy_world(backbone: str) -> str:
    """While mini is chosen: what it knows, and what real clips need. Empty for any other backbone."""
    if backbone != "mini":
        return ""
    known = known_words("mini") or ()
    chips = " ".join(f"<span>{html.escape(word)}</span>" for word in known)
    listed = f"<details><summary>What it knows: {len(known)} words</summary><p>{chips}</p></details>" if known else ""
    return (
        '<div class="fm-toy"><p><b>mini knows only its toy world.</b> For real clips choose <code>zeroscope</code> '
        f"under Advanced, on a machine with a GPU.</p>{listed}</div>"
    )


@dataclass(frozen=True)
class Advanced:
    """The numbers that most edits leave alone.

    What may be left empty for the task's own value is a text field: a number field turns empty into 0 when shown.
    """

    backbone: gr.Dropdown
    steps: gr.Slider
    solver: gr.Radio
    guidance: gr.Slider
    frames: gr.Slider
    start: gr.Number
    fps: gr.Textbox
    size: gr.Textbox
    tau: gr.Textbox
    alpha_self: gr.Textbox
    alpha_cross: gr.Textbox
    alpha_temporal: gr.Textbox
    alpha_latent: gr.Textbox
    dilate: gr.Textbox
    union: gr.Checkbox
    selection: gr.Dropdown
    site: gr.Textbox
    timestep: gr.Textbox
    masks: gr.File
    features: gr.Radio
    low_vram: gr.Checkbox
    eta: gr.Slider
    seed: gr.Number

    @property
    def own(self) -> list[gr.Textbox]:
        """The fields that show the task's own value while they are empty."""
        return [getattr(self, name) for name in TASK_OWN]

    @classmethod
    def build(cls, *, backbone: str) -> Advanced:
        spec = known_backbone(backbone)
        listed = [(one.title, one.name) for one in backbones()]
        if spec is None:
            listed.append((backbone, backbone))
        preset = load_preset(task_names()[0])
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            chosen = gr.Dropdown(listed, value=spec.name if spec else backbone, label="Backbone", filterable=False)
            steps = gr.Slider(2, 200, 25, step=1, label="Steps", buttons=[])
            solver = gr.Radio(
                [("DDIM", "ddim"), ("DPM-Solver: exact in fewer steps", "dpm")], value="ddim", label="Solver"
            )
            with gr.Row():
                usual = spec.guidance if spec else 7.5
                guidance = gr.Slider(1, 30, usual, step=0.5, label="Guidance", buttons=[])
                frames = gr.Slider(1, 64, 8, step=1, label="Frames, at most 64", buttons=[])
            with gr.Row():
                start = gr.Number(0, label="Start (s)", step=0.1, min_width=90)
                fps = gr.Textbox("", label="Frames a second", placeholder="auto", max_lines=1, min_width=90)
                size = gr.Textbox("", label="Size", placeholder="auto", max_lines=1, min_width=90)
            gr.HTML(
                status.note(
                    "Mask threshold τ, the shares α of the steps that are fused or blended, and by how many cells the "
                    "mask grows. Empty: the task's own."
                )
            )
            with gr.Row():
                tau, alpha_self, alpha_cross, alpha_temporal, alpha_latent, dilate = (
                    gr.Textbox("", label=label, placeholder=f"{getattr(preset, name):g}", max_lines=1, min_width=130)
                    for name, label in TASK_OWN.items()
                )
            union = gr.Checkbox(False, label="Join the mask with the edit word's own (shape)")
            selection = gr.Dropdown(
                [
                    ("the task's own", ""),
                    ("the layer and timestep that this backbone's codebook names", "codebook"),
                    ("this clip's best layer and timestep", "adaptive"),
                    ("what this clip's sharper maps agree on", "consensus"),
                ],
                value="",
                label="Mask from",
                filterable=False,
                elem_id="selection",
            )
            with gr.Row():
                site = gr.Textbox(
                    "", label="Mask of one layer", placeholder="such as up 3.0", max_lines=1, min_width=120
                )
                timestep = gr.Textbox(
                    "", label="at timestep", placeholder="each step its own", max_lines=1, min_width=120
                )
            masks = gr.File(
                label="Masks of your own: a zip of PNGs, one a frame or one for all",
                file_types=[".zip"],
                height=90,
                elem_id="own-masks",
            )
            features = gr.Radio(
                [
                    ("replay: least memory", "replay"),
                    ("store: less computing", "store"),
                    ("host: stored in RAM", "host"),
                    ("auto: by what is free", "auto"),
                ],
                value="replay",
                label="Source features",
            )
            low_vram = gr.Checkbox(label="Least memory, for the most time (low VRAM)")
            with gr.Row():
                eta = gr.Slider(0, 1, 0, step=0.05, label="η: noise added", buttons=[])
                seed = gr.Number(0, label="Seed (acts where η > 0)", precision=0, min_width=120)
        return cls(
            chosen,
            steps,
            solver,
            guidance,
            frames,
            start,
            fps,
            size,
            tau,
            alpha_self,
            alpha_cross,
            alpha_temporal,
            alpha_latent,
            dilate,
            union,
            selection,
            site,
            timestep,
            masks,
            features,
            low_vram,
            eta,
            seed,
        )


@dataclass(frozen=True)
class Inputs:
    """The left column. `all` is the order of the handler's and the API's arguments."""

    examples: gr.Dataset
    clip: gr.Video
    facts: gr.HTML
    trim: gr.HTML
    source: gr.Textbox
    edit: gr.Textbox
    aligned: gr.HTML
    task: gr.Radio
    summary: gr.HTML
    word: gr.Textbox
    inferred: gr.State
    pace: gr.Radio
    advanced: Advanced
    settings: gr.UploadButton
    estimate: gr.HTML
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
        clip = gr.Video(
            label="Your clip",
            sources=["upload", "webcam"],
            # else the camera's largest picture is recorded, which no backbone uses and slow machines drop frames of
            webcam_options=gr.WebcamOptions(constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}),
            height=280,
            elem_id="clip",
            loop=True,
            buttons=[],
        )
        facts = gr.HTML(status.note("&nbsp;"), elem_id="facts")
        trim = _script("trim")
        source = gr.Textbox(
            "", label="What the clip shows", placeholder="a red car driving on the grass", elem_id="source"
        )
        edit = gr.Textbox(
            "", label="What it should show", placeholder="a blue car driving on the grass", elem_id="edit"
        )
        aligned = gr.HTML(status.prompts("", ""), elem_id="aligned")
        titles = [(load_preset(name).title, name) for name in task_names()]
        task = gr.Radio(titles, value=task_names()[0], label="Task", elem_id="task")
        summary = gr.HTML(status.note(html.escape(load_preset(task_names()[0]).summary)), elem_id="summary")
        word = gr.Textbox(
            label="Word that is edited", placeholder="inferred from the prompts", max_lines=1, elem_id="word"
        )
        pace = gr.Radio(list(PACES), value=next(iter(PACES)), label="Pace", elem_id="pace")
        advanced = Advanced.build(backbone=backbone)
        settings = gr.UploadButton("Load a settings.json", file_types=[".json"], size="sm", elem_id="settings")
        estimate = gr.HTML(status.note("&nbsp;"), elem_id="estimate")
        with gr.Row(elem_id="actions"):
            run = gr.Button("Edit", variant="primary", size="lg", scale=3, elem_id="run")
            cancel = gr.Button("Cancel", variant="secondary", size="lg", scale=1, min_width=100, elem_id="cancel")
        return cls(
            examples,
            clip,
            facts,
            trim,
            source,
            edit,
            aligned,
            task,
            summary,
            word,
            gr.State(""),
            pace,
            advanced,
            settings,
            estimate,
            run,
            cancel,
        )


def _script(name: str) -> gr.HTML:
    """A part that `static/NAME.js` draws in the browser."""
    script = {"studio": "grid"}.get(name, name)
    code = (STATIC / f"{script}.js").read_text(encoding="utf-8")
    return gr.HTML(
        value=None,
        html_template=f'<div class="fm-{name}"></div>',
        js_on_load=f"{code}\n{name}(element, props, trigger, watch);",
        apply_default_css=False,
        elem_id=name,
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
    link: gr.HTML
    report: gr.JSON
    files: gr.File
    run: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What an edit gives, in the API's order."""
        return [self.status, self.source, self.reconstruction, self.edited, self.report, self.files, self.run]

    @property
    def masks(self) -> list[Any]:
        return [self.sheet, self.curves]

    @classmethod
    def build(cls) -> Results:
        line = gr.HTML(status.idle(), elem_id="status")
        source, reconstruction, edited = (
            gr.Video(label=label, visible=False, interactive=False) for label in ("Source", "Reconstruction", "Edit")
        )
        studio = _script("studio")
        choice = gr.Radio([], label="Runs of this visit", visible=False, elem_id="choice")
        history = gr.HTML("", elem_id="history")
        with gr.Tabs():
            with gr.Tab("Downloads", id="downloads"):
                files = gr.File(label="Downloads", file_count="multiple", interactive=False, elem_id="files")
                link = gr.HTML("", elem_id="link")
            with gr.Tab("Contact sheet", id="sheet-tab"):
                with gr.Row():
                    word = gr.Dropdown([], label="Word", interactive=True, allow_custom_value=True, min_width=140)
                    frame = gr.Slider(1, 64, 1, step=1, label="Frame", interactive=True, buttons=[])
                sheet = gr.Image(
                    label="Attention by layer and timestep",
                    show_label=False,
                    alt_text="A grid of attention maps: a row for each layer, a column for each timestep",
                    format="png",
                    interactive=False,
                    elem_id="sheet",
                    buttons=["download", "fullscreen"],
                )
                curves = gr.Image(
                    label="Mask Matching Cost",
                    show_label=False,
                    buttons=["download", "fullscreen"],
                    alt_text="Two curves: the cost by layer and by timestep",
                    format="png",
                    interactive=False,
                    elem_id="curves",
                )
            with gr.Tab("Report", id="report"):
                report = gr.JSON(label="Report", elem_id="json")
        run = gr.State(None)
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
            link,
            report,
            files,
            run,
        )
