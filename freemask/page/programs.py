"""The edit as programs and agents see it: its fields, and what each is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gradio as gr

from ..families.specs import backbones
from ..presets import task_names
from ..settings import Settings
from .fields import NAMES
from .parts import Inputs

__all__ = ["program_inputs", "told_of_settings"]


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


def told_of_settings(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of all fields in the order of `NAMES`, as the API and agents are to see it: a parameter for each
    setting, told as `Settings` has it."""
    first, *rest = inspect.signature(handler).parameters.values()
    request, clip = rest[:2]
    left_out = {name: None for name in NAMES} | {one.name: one.default for one in fields(Settings)}
    left_out |= {"task": None, "guidance": None}
    asked = [inspect.Parameter(name, clip.kind) for name in ("source", "edit")]
    asked += [inspect.Parameter(name, clip.kind, default=left_out[name]) for name in NAMES[3:]]
    handler.__signature__ = inspect.Signature([first, request, clip, *asked])  # type: ignore[attr-defined]
    told = Settings.told() | {
        "clip": "The video to edit, up to 5 minutes of which `frames` frames are used. A picture is one frame."
    }
    arguments = "\n".join(f"    {name}: {told[name]}" for name in NAMES)
    handler.__doc__ = f"{handler.__doc__}\n\nArgs:\n{arguments}\n"
    return handler
