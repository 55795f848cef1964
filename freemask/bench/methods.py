"""The methods that the benchmark compares, each a preset of the same engine.

`plain`, `p2p`, `fatezero` and `released` are the methods of those names (`presets/METHOD`), `fatezero-mmc` is FateZero
with FreeMask's masks in the place of its own (the row of FreeMask's Table 2); `freemask` is the task's own preset,
`freemask-oracle` the same under the true mask, `freemask-codebook`, `-adaptive` and `-consensus` with each way to
select the mask, also where the task's own preset has none. `paper` has the paper's shares, 0.99 for all three kinds and
no latent blending, and its masks; `no-latent` is `freemask` without that blending, `free-self` with self-attention free
in E for every task. Beside `freemask-codebook`, `no-lmmc` takes the mean over all sites in the place of l*, and
`no-tmmc` swaps the two ways in time, one mask for every step and each step's own. `self`, `cross`, `temporal` fuse that
kind alone for 0.99 of the steps without a mask, with `-masked` under FreeMask's (the paper's Fig. 4).

`videodirector` is the method of that name, the others of that name lack a part: `-shared` has one null text for all
frames, `-no-stdg` no guidance but the classifier-free one, `-vanilla` neither (null-text inversion as it is for
pictures), `-fast` no stage 1 at all, `-no-ca`, `-no-sa`, `-no-sa1`, `-no-sa2` less attention control. `-oracle` has the
true mask, what SAM2 would give at best, and `-everywhere` one of the whole picture. They are measured on backbones with
motion modules, and on others where they are asked for.

On transformers `flowedit` is the method of that name as its paper has it, without a mask, `-mmc` under FreeMask's, the
consensus of the clip's maps there, `-codebook` under that of the measured layer and timestep, and `-oracle` under the
true one. `-block` and `-blocks` have the fixed rules of others: the map of the block at .6 of the
depth (FlowDirector's 18th of 30), and the mean of those from .37 to .57 (WANAlign's 11th to 17th), over all timesteps.
`-align` adds the consistency term, `-anchor` the contrast and the lift, both under FreeMask's masks, and `-lend` the
source's keys and values. `sdedit` denoises the clip with fresh noise in the lower levels. What they share with the
methods above is measured beside them: copy, plain and freemask.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..families.specs import known_backbone
from ..masks.plan import is_time_aware
from ..presets import SELECTION_TAU, Preset, load_preset, masked

__all__ = ["METHODS", "drawn", "presets", "usual_methods"]

KINDS = ("self", "cross", "temporal")
USUAL = (
    "copy",
    "plain",
    "p2p",
    "fatezero",
    "fatezero-mmc",
    "released",
    "freemask",
    "freemask-codebook",
    "freemask-adaptive",
    "freemask-consensus",
    "freemask-oracle",
    "paper",
    "no-latent",
    "free-self",
    "no-lmmc",
    "no-tmmc",
    *(f"{kind}{under}" for kind in KINDS for under in ("", "-masked")),
)
PARTS = ("shared", "no-stdg", "vanilla", "fast", "no-ca", "no-sa", "no-sa1", "no-sa2", "oracle", "everywhere")
DIRECTED = ("videodirector", *(f"videodirector-{part}" for part in PARTS))
FLOWED = (
    *("sdedit", "flowedit", "flowedit-mmc", "flowedit-codebook", "flowedit-block", "flowedit-blocks"),
    *("flowedit-align", "flowedit-anchor", "flowedit-anchor-oracle", "flowedit-lend", "flowedit-oracle"),
)
METHODS = (*USUAL, *DIRECTED, *FLOWED)


def drawn(method: str) -> bool:
    """Whether a method begins at the clip with fresh noise in the place of an inversion."""
    return method in FLOWED


def usual_methods(backbone: str) -> tuple[str, ...]:
    """Those that are measured where none are named."""
    spec = known_backbone(backbone)
    if spec and spec.path == "flow":
        return ("copy", "plain", "freemask", "freemask-oracle", *FLOWED)
    return ("copy", "plain", "freemask", *DIRECTED) if spec and spec.motion_adapter else USUAL


def presets(task: str) -> dict[str, Preset]:
    """The preset of every method but `copy`, for a task: style, attribute, shape or place."""
    own = load_preset(task)
    held = masked(own)
    codebook = replace(held, selection="codebook", tau=SELECTION_TAU["codebook"])
    closed = replace(held, free_self=True, alpha_self=0.0, alpha_cross=0.0, alpha_temporal=0.0, alpha_latent=0.0)
    plain = replace(closed, mask="none", region="object", delta=1)
    fatezero = load_preset(task, "fatezero")
    found = {
        "plain": load_preset(task, "plain"),
        "p2p": load_preset(task, "p2p"),
        "fatezero": fatezero,
        "fatezero-mmc": replace(masked(fatezero), selection=own.selection, tau=own.tau),
        "released": load_preset(task, "released"),
        "freemask": own,
        "freemask-oracle": held,
        "freemask-codebook": codebook,
        "freemask-adaptive": replace(codebook, selection="adaptive"),
        "freemask-consensus": replace(held, selection="consensus", tau=SELECTION_TAU["consensus"]),
        "paper": replace(
            closed, selection="codebook", tau=codebook.tau, alpha_self=0.99, alpha_cross=0.99, alpha_temporal=0.99
        ),
        "no-latent": replace(own, alpha_latent=0.0),
        "free-self": replace(held, free_self=True),
        "no-lmmc": replace(codebook, mask="mean"),
        "no-tmmc": replace(codebook, time_aware=not is_time_aware(codebook)),
    }
    found |= _directed(load_preset(task, "videodirector")) | _flowed(task)
    for kind in KINDS:
        alpha: dict[str, Any] = {f"alpha_{kind}": 0.99}
        found[kind] = replace(plain, **alpha)
        # where δ = 1, m = 0 everywhere (Eq. 9), so only self-attention, which reads E, has a mask
        found[f"{kind}-masked"] = replace(closed, **alpha) if kind == "self" or own.delta == 0 else found[kind]
    return {name: found[name] for name in METHODS if name != "copy"}


def _flowed(task: str) -> dict[str, Preset]:
    """FlowEdit whole, under masks and with each of the terms of others, and SDEdit."""
    own = load_preset(task, "flowedit")
    flow = own.flow
    assert flow
    held = own if own.mask == "mmc" else replace(own, mask="mmc")
    anchored = replace(held, flow=replace(flow, contrast=1.0, lift=1.0))
    return {
        "sdedit": replace(load_preset(task, "plain"), strength=0.6),
        "flowedit": replace(own, mask="none"),
        "flowedit-mmc": held,
        "flowedit-codebook": replace(held, selection="codebook", tau=SELECTION_TAU["codebook"]),
        "flowedit-block": held,
        "flowedit-blocks": held,
        "flowedit-align": replace(held, flow=replace(flow, consistency=0.5)),
        "flowedit-anchor": anchored,
        "flowedit-anchor-oracle": anchored,
        "flowedit-lend": replace(held, alpha_self=0.5),
        "flowedit-oracle": held,
    }


def _directed(own: Preset) -> dict[str, Preset]:
    """VideoDirector whole and without each of its parts."""
    director = own.director
    assert director
    without: dict[str, dict[str, Any]] = {
        "shared": {"null_text": "shared"},
        "no-stdg": {"stdg": 0.0},
        "vanilla": {"null_text": "shared", "stdg": 0.0},
        "fast": {"null_text_steps": 0},
        "no-sa2": {"sa_ii": False},
    }
    found = {name: replace(own, director=replace(director, **changes)) for name, changes in without.items()}
    found |= {"no-ca": replace(own, alpha_cross=0.0), "no-sa1": replace(own, alpha_self=0.0)}
    found["no-sa"] = replace(found["no-sa2"], alpha_self=0.0)
    held = masked(own)
    found |= {"oracle": held, "everywhere": held}
    return {"videodirector": own} | {f"videodirector-{name}": preset for name, preset in found.items()}
