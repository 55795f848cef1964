"""The page's parts and handlers: the only room that imports gradio. `app.py` wires them."""

from .bodies import Body, diffusion, painted_circles
from .handlers import Desk, Run, describe_clip, fill_fields, follow_prompts, follow_task, forget, open_masks, show_masks
from .parts import Inputs, Results, header, theme, toy_world

__all__ = [
    "Body",
    "Desk",
    "Inputs",
    "Results",
    "Run",
    "describe_clip",
    "diffusion",
    "fill_fields",
    "follow_prompts",
    "follow_task",
    "forget",
    "header",
    "open_masks",
    "painted_circles",
    "show_masks",
    "theme",
    "toy_world",
]
