"""The maps in an edit's folder are those that the model saw, word by word."""

import json

import numpy as np
import pytest
import torch

from freemask.clips.video import Clip
from freemask.families.ddim import CLEAN
from freemask.families.sites import Site
from freemask.jobs.extras import make_extra
from freemask.jobs.files import word_arrays
from freemask.masks.mmc import Choice
from freemask.masks.plan import MaskPlan
from freemask.masks.trace import SoftMap, Trace
from freemask.methods.editor import Denoised
from freemask.pictures.mask_zip import save_mask_zip
from freemask.pictures.word_maps import save_word_files

SITES = (Site("down", "cross", 0), Site("middle", "cross", 1), Site("up", "cross", 0), Site("other", "self", 0))
TIMESTEPS, TOKENS = (1, 21, 41), ((1,), (2, 3), (4,))  # the second word has two tokens


@pytest.fixture
def seen():
    """A trace of "a skateboard here" on 2 frames of 4 × 6, and an edit that saw one word more."""
    rng = np.random.default_rng(0)
    trace = Trace(Clip(np.zeros((2, 16, 24, 3), np.uint8), 8.0), "a skateboard here", TIMESTEPS, SITES, TOKENS)
    trace.latents[CLEAN] = torch.zeros(1, 4, 2, 4, 6)
    shapes = {(t, site.name): (2, *site.grid((4, 6))) for t in TIMESTEPS for site in SITES[:3]}
    trace.maps.update({cell: SoftMap.pack(rng.random((5, *shape), np.float32)) for cell, shape in shapes.items()})
    fresh = {cell: SoftMap.pack(rng.random((1, *shape), np.float32)) for cell, shape in shapes.items()}
    mask = np.zeros((2, 4, 6), bool)
    plan = MaskPlan(dict.fromkeys(TIMESTEPS, mask), np.zeros((2, 16, 24), bool), Choice(SITES[0], 21, "measured"))
    return trace, Denoised(trace.latents[CLEAN], plan, (1,), fresh)


def told(stored, site, row):
    """Probabilities (t, …, f, h, w) of a site whose place on the axis of sites is `row`."""
    h, w = site.grid((4, 6))
    maps, scales = stored[f"maps_{h}x{w}"][:, row], stored[f"scales_{h}x{w}"][:, row]
    return maps / 255 * scales[..., None, None]


@pytest.mark.parametrize("word", ["here", "skateboard", "a skateboard"])
def test_every_word_has_its_maps(seen, tmp_path, word):
    trace, edited = seen
    save_word_files(tmp_path, word_arrays(trace, edited, "a surfboard here"))
    save_mask_zip(tmp_path / "masks.zip", edited.plan.shown)
    report = {"settings": {"source": trace.prompt}, "words": {"word": word}}
    report["clip"] = {"frames": 2, "width": 24, "height": 16}
    (tmp_path / "report.json").write_text(json.dumps(report))
    for name in ("masks.npz", "words.npz"):
        assert make_extra(tmp_path, name) == tmp_path / name
    one, every = np.load(tmp_path / "masks.npz"), np.load(tmp_path / "words.npz")
    assert every["tokens"].tolist() == ["a", "skateboard", "here", "surfboard"]
    at = [trace.prompt.split().index(part) for part in word.split()]
    for site, row in ((SITES[0], 0), (SITES[1], 0), (SITES[2], 1)):
        for i, t in enumerate(TIMESTEPS):
            words = [trace.word_map(t, site, [k]) for k in range(3)] + [edited.maps[t, site.name].of([0])]
            assert np.allclose(told(every, site, row)[i], words, atol=2 / 255)
            assert np.allclose(told(one, site, row)[i], trace.word_map(t, site, at), atol=2 / 255)
    exact = every["maps_4x6"][1, 1, 2], trace.maps[21, "up"].values[4]
    assert np.array_equal(*exact)
