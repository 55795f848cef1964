"""The folded panel of the page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..clips.strides import MOST_FRAMES
from ..families.reach import has_gpu, obstacle
from ..families.specs import backbones, known_backbone, usual_guidance
from ..presets import Preset, load_preset, methods, task_names
from ..settings import FAST
from . import status

__all__ = ["MASK_OWN", "PACES", "TASK_OWN", "Advanced", "first_pace", "task_own"]

PACES: dict[str, dict[str, Any]] = {
    "Usual: 25 steps of DDIM": {"steps": 25, "solver": "ddim"},
    "Fast: 15 steps of DPM-Solver": FAST,
}

TASK_OWN = {
    "tau": "τ",
    "alpha_self": "α self",
    "alpha_cross": "α cross",
    "alpha_temporal": "α temporal",
    "alpha_latent": "α latent",
    "dilate": "Grow mask",
    "null_text_steps": "Null-text iterations",
    "strength": "Strength",
    "source_guidance": "Source guidance",
}
MASK_OWN = {
    "selection": "Mask from",
    "site": "Mask of one layer",
    "timestep": "at timestep",
    "masks": "Masks of your own",
}


def task_own(preset: Preset, name: str) -> dict[str, Any]:
    """How the field of a number of `TASK_OWN` is shown: with the task's own in it, or not where the method has none."""
    value = None if name == "strength" and preset.director else getattr(preset, name)
    return {"visible": value is not None, "placeholder": "" if value is None else f"{value:g}"}


def first_pace() -> str:
    """The pace that the page begins with: the fast one where there is no GPU."""
    usual, fast = PACES
    return usual if has_gpu() else fast


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
    null_text_steps: gr.Textbox
    strength: gr.Textbox
    source_guidance: gr.Textbox
    union: gr.Checkbox
    selection: gr.Dropdown
    site: gr.Textbox
    timestep: gr.Textbox
    bend: gr.Textbox
    changes: gr.Textbox
    masks: gr.File
    features: gr.Radio
    low_vram: gr.Checkbox
    eta: gr.Slider
    seed: gr.Number
    method: gr.Dropdown

    @property
    def own(self) -> list[gr.Textbox]:
        """The fields that show the task's own value while they are empty."""
        return [getattr(self, name) for name in TASK_OWN]

    @classmethod
    def build(cls, *, backbone: str) -> Advanced:
        spec = known_backbone(backbone)
        met = {one.name: obstacle(one.name) for one in backbones() if one is not spec}
        listed = [(one.title, one.name) for one in backbones() if not met.get(one.name)]
        if spec is None:
            listed.append((backbone, backbone))
        absent: dict[str, list[str]] = {}
        for name, one in met.items():
            if one:
                absent.setdefault(one.why, []).append(name)
        told = " ".join(f"{', '.join(names)}: not on this server, since {why}." for why, names in absent.items())
        preset, pace = load_preset(task_names()[0]), PACES[first_pace()]
        chosen = gr.Dropdown(listed, value=spec.name if spec else backbone, label="Backbone", filterable=False)
        gr.HTML(status.note(html.escape(told)), elem_id="absent", visible=bool(told))
        known = methods()
        method = gr.Dropdown(
            [(f"{one.title} ({one.paper})", one.name) for one in known],
            value=known[0].name,
            label="Method",
            info=known[0].summary,
            filterable=False,
            elem_id="method",
        )
        steps = gr.Slider(2, 200, pace["steps"], step=1, label="Steps", buttons=[])
        solvers = [("DDIM", "ddim"), ("DPM-Solver: exact in fewer steps", "dpm")]
        solver = gr.Radio(solvers, value=pace["solver"], label="Solver")
        with gr.Row():
            guidance = gr.Slider(1, 30, usual_guidance(backbone), step=0.5, label="Guidance", buttons=[])
            frames = gr.Slider(1, MOST_FRAMES, 8, step=1, label=f"Frames, at most {MOST_FRAMES}", buttons=[])
        with gr.Row():
            start = gr.Number(0, label="Start (s)", step=0.1, min_width=90)
            fps = gr.Textbox("", label="Frames a second", placeholder="auto", max_lines=1, min_width=90)
            size = gr.Textbox("", label="Size", placeholder="auto", max_lines=1, min_width=90)
        gr.HTML(
            status.note(
                "Mask threshold τ, the shares α of the steps that are fused or blended, by how many cells the mask "
                "grows, and the strength: the share of the noise that the edit begins with. Empty: the task's own."
            )
        )
        with gr.Row():
            own = {
                name: gr.Textbox("", label=label, max_lines=1, min_width=130, **task_own(preset, name))
                for name, label in TASK_OWN.items()
            }
        union = gr.Checkbox(False, label="Join the mask with the edit word's own (shape)")
        selection = gr.Dropdown(
            [
                ("the task's own", ""),
                ("the layer and timestep that this backbone's codebook names", "codebook"),
                ("this clip's best layer and timestep", "adaptive"),
                ("what this clip's sharper maps agree on", "consensus"),
            ],
            value="",
            label=MASK_OWN["selection"],
            filterable=False,
            elem_id="selection",
        )
        with gr.Row():
            site = gr.Textbox("", label=MASK_OWN["site"], placeholder="such as up 3.0", max_lines=1, min_width=120)
            timestep = gr.Textbox(
                "", label=MASK_OWN["timestep"], placeholder="each step its own", max_lines=1, min_width=120
            )
        bend = gr.Textbox(
            "",
            label="Bent attention",
            placeholder="up 2.0@161: car scale 2",
            info="LAYER@TIMESTEP#HEAD: WORD scale, blur or shift, by how much. The explorer's Bend fills it.",
            max_lines=1,
        )
        changes = gr.Textbox(
            "",
            label="Several changes",
            placeholder='[{"word": "car", "to": "blue car", "task": "attribute"}]',
            info="JSON, with τ, windows and site of each; “auto” takes what the prompts say, [] makes one change.",
            max_lines=1,
            elem_id="changes-text",
        )
        masks = gr.File(
            label=f"{MASK_OWN['masks']}: a zip of PNGs, one a frame or one for all",
            file_types=[".zip"],
            height=150,
            elem_id="own-masks",
        )
        features = gr.Radio(
            [
                ("auto: by what is free", "auto"),
                ("replay: least memory", "replay"),
                ("store: less computing", "store"),
                ("host: stored in RAM", "host"),
            ],
            value="auto",
            label="Source features",
        )
        low_vram = gr.Checkbox(label="Least memory, for the most time (low VRAM)")
        with gr.Row():
            eta = gr.Slider(0, 1, 0, step=0.05, label="η: noise added", buttons=[])
            seed = gr.Number(0, label="Seed (acts where η > 0)", precision=0, min_width=120)
        return cls(
            backbone=chosen,
            steps=steps,
            solver=solver,
            guidance=guidance,
            frames=frames,
            start=start,
            fps=fps,
            size=size,
            **own,
            union=union,
            selection=selection,
            site=site,
            timestep=timestep,
            bend=bend,
            changes=changes,
            masks=masks,
            features=features,
            low_vram=low_vram,
            eta=eta,
            seed=seed,
            method=method,
        )
