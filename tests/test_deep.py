"""Coarse layers taken from the step before, in every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_graphs import alike, always, never
from tiny import close, save_pipeline, tiny_image_unet, tiny_motion_unet, tiny_unet

from freemask.clips.video import Clip
from freemask.families import graphs
from freemask.families.attention import attend
from freemask.families.deep import DeepCache
from freemask.families.graphs import Usage
from freemask.families.loading import load_backbone
from freemask.methods.editor import Editor
from freemask.presets import load_preset
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE, EDIT, STEPS = "a red car on the grass", "a blue bus on the grass", 3


@pytest.fixture(scope="module", params=[tiny_unet, tiny_image_unet, tiny_motion_unet])
def editor(request, tiny_editor, tmp_path_factory):
    """Of three levels: among the coarse layers are blocks with and without one below."""
    folder = save_pipeline(tmp_path_factory.mktemp("deep"), tiny_editor.backbone, request.param(levels=3))
    return Editor(replace(load_backbone(str(folder), "cpu"), native_frames=4))


@pytest.fixture(scope="module")
def trace(editor):
    clip = Clip(np.random.default_rng(3).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), 8.0)
    return editor.invert(clip, prompt=SOURCE, steps=STEPS)


def edit(editor, trace, **options):
    about = {"prompt": EDIT, "task": load_preset("shape"), "word": "car", "watch": True} | options
    return finish(editor.edit_steps(trace, **about))


@torch.inference_mode()
def test_a_pass_takes_the_coarse_layers_of_the_last_whole_one(editor):
    """The same input gives the same; of another the finest layers alone are its own."""
    backbone = editor.backbone
    x, y = torch.randn(2, 1, 4, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    text, deep, met = backbone.text(["a car"]), DeepCache(backbone.unet, 2), []
    hooks = {site: lambda site, q, k, v: (met.append(site), attend(q, k, v))[1] for site in backbone.sites}

    def ask(x):
        met.clear()
        deep.begin(("edit",))
        with deep.over("one"):
            return backbone.predict(x, 500, text, hooks=hooks), deep.reused

    whole, first = ask(x)
    assert not first and set(met) == set(backbone.sites) and torch.equal(whole, backbone.predict(x, 500, text))
    again, second = ask(x)
    assert second and torch.equal(again, whole)
    fine = {site for site in backbone.sites if site.name.startswith(("down_blocks.0", "transformer_in", "up_blocks.2"))}
    assert set(met) == fine < set(backbone.sites)
    assert ask(y)[1] is False
    mixed, reused = ask(x)
    assert reused and not close(mixed, whole) and not close(mixed, backbone.predict(y, 500, text))
    assert torch.equal(backbone.predict(x, 500, text), whole)  # the network is as it was
    for rows in (("edit",), ("edit",), ("edit", "source")):  # of other rows there are no coarse layers yet
        deep.begin(rows)
    assert not deep.reused


def test_one_step_of_one_is_the_edit_itself(editor, trace):
    assert torch.equal(edit(editor, trace, deep_cache=1).latents, edit(editor, trace).latents)


def test_an_edit_has_the_maps_of_every_step_and_rows_do_not_mix(editor, trace, monkeypatch):
    """One row at a time, in spans, and recorded it is the same."""
    cached = edit(editor, trace, deep_cache=2)
    plainly = edit(editor, trace)
    assert not close(cached.latents, plainly.latents, 1e-3)
    assert cached.maps.keys() == plainly.maps.keys()
    coarse = next(site for site in trace.sites if site.kind == "cross" and site.name.startswith("mid_block"))
    high, low = sorted(trace.timesteps, reverse=True)[:2]
    assert np.array_equal(cached.maps[high, coarse.name].values, cached.maps[low, coarse.name].values)
    assert close(edit(editor, trace, deep_cache=2, one_row=True).latents, cached.latents)
    monkeypatch.setattr(graphs, "recorder", always)
    recorded = edit(editor, trace, deep_cache=2, usage=(used := Usage()))
    assert used.recorded and not used.why
    assert close(recorded.latents, cached.latents) and alike(recorded.maps, cached.maps)


def test_videodirector_computes_every_layer(editor, trace, monkeypatch):
    monkeypatch.setattr(graphs, "recorder", never)
    made = []

    def watched(unet, every):
        made.append(every)
        return DeepCache(unet, every)

    monkeypatch.setattr("freemask.methods.editor.DeepCache", watched)
    about = {"prompt": EDIT, "word": "car", "deep_cache": 3}
    task = load_preset("shape", "videodirector")
    steps = editor.edit_steps(trace, task=replace(task, director=replace(task.director, null_text_steps=1)), **about)
    next(step for step in steps if step.stage == "edit")
    next(editor.edit_steps(trace, task=load_preset("shape"), **about))
    assert made == [1, 3]
