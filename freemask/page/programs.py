"""The fields that programs and agents fill in."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..families.specs import backbones
from ..presets import Settings, task_names
from .fields import NAMES
from .parts import Inputs

__all__ = ["program_inputs"]


def program_inputs(inputs: Inputs) -> list[Any]:
    """The page's own fields, in their order, but for those that begin on the page with what suits this server or its
    first example: what a program leaves out is inferred from what it gives, or the same on every server. A backbone
    that cannot be used here is among them, so that the refusal says why."""
    here = inputs.advanced.backbone.value
    own = {
        "task": gr.Dropdown(list(task_names()), value=None, label="Task", visible=False),
        "backbone": gr.Dropdown(
            list(dict.fromkeys([*(spec.name for spec in backbones()), here])),
            value=here,
            label="Backbone",
            visible=False,
        ),
        "steps": gr.Slider(2, 200, Settings.steps, step=1, label="Steps", visible=False),
        "solver": gr.Dropdown(["ddim", "dpm"], value=Settings.solver, label="Solver", visible=False),
        "guidance": gr.Number(None, minimum=1, maximum=30, label="Guidance", visible=False),
    }
    return [own.get(name, field) for name, field in zip(NAMES, inputs.all, strict=True)]
