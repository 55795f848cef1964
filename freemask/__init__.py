"""FreeMask: zero-shot, text-driven video editing, and the attention masks that made the edit.

Names are imported when first used, so that looking at a clip does not import torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clips.video import Clip, read_clip, write_clip
    from .errors import FreeMaskError
    from .methods.editor import Editor
    from .presets import Preset, load_preset

# OpenMP's threads wait for each other by spinning. Where another process wants a core, as many turns as usual make a
# step three times as long; with so few it is not twice as long, and on an idle machine they cost nothing (mini, two
# cores: .43 s alone, 1.41 and .80 s beside a busy process). It counts only before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Clip", "Editor", "FreeMaskError", "Preset", "load_preset", "read_clip", "write_clip"]

_HOMES = {
    "Clip": "clips.video",
    "Editor": "methods.editor",
    "FreeMaskError": "errors",
    "Preset": "presets",
    "load_preset": "presets",
    "read_clip": "clips.video",
    "write_clip": "clips.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freemask' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
