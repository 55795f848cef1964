"""The page's parts and handlers: the only room that imports gradio. `app.py` wires them."""

from .bodies import Body, diffusion, painted_circles
from .handlers import Desk, Run, describe_clip, follow_prompts, follow_task
from .parts import Advanced, Inputs, Results, header, theme

__all__ = [
    "Advanced",
    "Body",
    "Desk",
    "Inputs",
    "Results",
    "Run",
    "describe_clip",
    "diffusion",
    "follow_prompts",
    "follow_task",
    "header",
    "painted_circles",
    "theme",
]
