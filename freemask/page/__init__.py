"""The page's parts and handlers: the only room that imports gradio. `app.py` wires them."""

from .bodies import Body, diffusion, outliving, painted_circles
from .changes import follow_changes, take_changes
from .desk import Desk
from .estimate import Estimates
from .explorer import Explorer
from .fields import (
    describe_clip,
    drop_mask,
    fill_example,
    fill_settings,
    follow_link,
    follow_method,
    follow_task,
    follow_trim,
    own_mask,
    take_trim,
)
from .look import cards, header, theme
from .parts import Inputs, Results, toy_world
from .preview import make_preview
from .programs import program_inputs
from .studio import open_studio, take_bend, take_cell
from .visits import Run
from .wire import EACH, LATEST, QUIET, follow, in_turn
from .wording import follow_difference, follow_prompts, take_word
from .world import tell_world

__all__ = [
    "EACH",
    "LATEST",
    "QUIET",
    "Body",
    "Desk",
    "Estimates",
    "Explorer",
    "Inputs",
    "Results",
    "Run",
    "cards",
    "describe_clip",
    "diffusion",
    "drop_mask",
    "fill_example",
    "fill_settings",
    "follow",
    "follow_changes",
    "follow_link",
    "follow_method",
    "follow_prompts",
    "follow_difference",
    "follow_task",
    "follow_trim",
    "header",
    "in_turn",
    "make_preview",
    "open_studio",
    "outliving",
    "own_mask",
    "painted_circles",
    "program_inputs",
    "take_bend",
    "take_cell",
    "take_changes",
    "take_trim",
    "take_word",
    "tell_world",
    "theme",
    "toy_world",
]
