"""The methods by name, a line each; what a method is called and says of itself stands in `presets/NAME/method.yaml`."""

from __future__ import annotations

from .base import Session
from .fatezero import FateZero
from .flowedit import FlowEdit
from .freemask import FreeMask
from .p2p import PromptToPrompt
from .plain import Plain
from .released import Released
from .videodirector import VideoDirector

__all__ = ["SESSIONS"]

SESSIONS: dict[str, type[Session]] = {
    "fatezero": FateZero,
    "flowedit": FlowEdit,
    "freemask": FreeMask,
    "p2p": PromptToPrompt,
    "plain": Plain,
    "released": Released,
    "videodirector": VideoDirector,
}
