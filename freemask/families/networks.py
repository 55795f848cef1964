"""The UNets of diffusers, imported while no garbage is looked for.

With them come most of diffusers, transformers and what both need: hundreds of thousands of objects that stay. Looking
through these time and again would take a fifth of the import, or a second and a half before an edit begins.
"""

from __future__ import annotations

import gc

__all__ = ["UNet2DConditionModel", "UNet3DConditionModel", "UNetMotionModel"]

_looking = gc.isenabled()
gc.disable()
try:
    from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
finally:
    if _looking:
        gc.enable()
