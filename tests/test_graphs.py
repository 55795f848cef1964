"""Recorded forward passes say what the passes themselves do, in every method: what differs from step to step reaches
them. In the place of CUDA graphs, operations are traced and run again: likewise the same ones, on the same memory."""

import gc
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from tiny import close
from torch.utils._python_dispatch import TorchDispatchMode

from freemask.clips.video import Clip
from freemask.families import graphs
from freemask.families.attention import attend
from freemask.families.graphs import Forwards, Usage, given, taken
from freemask.families.loading import load_backbone
from freemask.methods.editor import Editor
from freemask.methods.freemask import FreeMask
from freemask.presets import load_preset
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE, EDIT, STEPS = "a red car on the grass", "a blue bus on the grass", 4


class Operations(TorchDispatchMode):
    """Those of a run, with what each was given and gave."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen.append((function, args, kwargs or {}, out))
        return out


def traced(run):
    """A run's operations, to be run again without Python: on what they got from outside as it is then."""
    with Operations() as operations:
        told = run()

    def again():
        new = {}

        def now(x):
            return [now(one) for one in x] if isinstance(x, list | tuple) else new.get(id(x), x)

        for function, args, kwargs, out in operations.seen:
            got = function(*now(args), **{name: now(x) for name, x in kwargs.items()})
            several = isinstance(out, list | tuple)
            new |= {id(old): one for old, one in zip(out if several else [out], got if several else [got], strict=True)}
        return now(told)

    return again


def never(backbone):
    return None


def always(backbone):
    return traced


FAMILIES = ("pipeline", "image_pipeline", "motion_pipeline")


@lru_cache  # a fixture would be made anew for each case of the edits
def of_folder(path):
    return Editor(replace(load_backbone(str(path), "cpu"), native_frames=4))


@pytest.fixture(params=FAMILIES)
def editor(request):
    return of_folder(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def clip():
    """Not square, and longer than the video models see at once."""
    return Clip(np.random.default_rng(3).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), 8.0)


def alike(ours, theirs):
    return all(
        np.abs(ours[at].values.astype(int) - theirs[at].values).max() <= 1
        and np.allclose(ours[at].scales, theirs[at].scales, rtol=1e-4)
        for at in theirs
    )


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_an_inversion_by_recordings(editor, clip, monkeypatch, solver):
    """Latents, maps and features of every step, in windows that end at different ones."""
    preset = replace(load_preset("shape"), alpha_self=0.8, alpha_cross=0.4, alpha_temporal=0.6)
    traces, used = [], Usage()
    for recorder in (never, always):
        monkeypatch.setattr(graphs, "recorder", recorder)
        usage = used if recorder is always else None
        options = {"prompt": SOURCE, "steps": STEPS, "solver": solver, "store": preset, "usage": usage}
        traces.append(editor.invert(clip, **options))
    ours, theirs = traces[1], traces[0]
    spans = len(editor.spans(6))
    kinds = 3 + (editor.backbone.network.__name__ != "UNet2DConditionModel") + (solver == "dpm")
    assert used.why == "" and used.recorded == used.forwards - kinds and used.rows >= STEPS * spans
    assert all(close(ours.latents[t], theirs.latents[t]) for t in theirs.latents) and alike(ours.maps, theirs.maps)
    kept = theirs.features._kept
    assert len(kept) == len(ours.features) and kept
    assert all(close(one, other) for key in kept for one, other in zip(ours.features.read(key), kept[key], strict=True))


CASES = [
    ("shape", "plain", False, {}),
    ("shape", "p2p", True, {}),
    ("shape", "released", False, {}),
    ("style", "fatezero", False, {}),
    ("shape", "fatezero", True, {}),
    *(("shape", "freemask", stored, {}) for stored in (False, True)),
    ("attribute", "freemask", True, {"alpha_cross": 0.6, "alpha_changed": 0.25, "reweight": 2.0}),
    ("place", "freemask", True, {"free_self": True, "time_aware": True, "selection": "codebook", "tau": 0.3}),
    ("shape", "freemask", False, {"union": True, "max_positions": 60}),
]


EDITS = [(family, *case) for family in FAMILIES for case in (CASES if family == "pipeline" else CASES[4:7])]


@pytest.mark.parametrize(("editor", "task", "method", "stored", "changes"), EDITS, indirect=["editor"])
def test_an_edit_by_recordings(editor, clip, monkeypatch, task, method, stored, changes):
    preset = replace(load_preset(task, method), **{"alpha_self": 0.8, "alpha_latent": 0.5} | changes)
    if method == "plain":
        preset = load_preset(task, method)
    monkeypatch.setattr(graphs, "recorder", never)
    trace = editor.invert(clip, prompt=SOURCE, steps=STEPS, store=preset if stored else None)
    assert by_both(editor, trace, monkeypatch, task=preset).recorded > 0


def test_what_waits_in_host_ram_is_not_recorded(editor, clip, monkeypatch):
    preset = load_preset("shape", "p2p")
    monkeypatch.setattr(graphs, "recorder", always)
    used = Usage()
    trace = editor.invert(clip, prompt=SOURCE, steps=2, store=replace(preset, alpha_self=1.0), host=True, usage=used)
    assert used.recorded == 0
    for options in ({}, {"one_row": True}):
        edit = editor.edit_steps(trace, prompt=EDIT, task=preset, word="car", usage=(used := Usage()), **options)
        finish(edit)
        assert used.recorded < used.forwards and used.why == ""


def by_both(editor, trace, monkeypatch, **options):
    """An edit as ever and by recordings: latents, maps, and the usage of the second."""
    found = []
    for recorder in (never, always):
        monkeypatch.setattr(graphs, "recorder", recorder)
        about = {"prompt": EDIT, "word": "car", "watch": True, "usage": (used := Usage())} | options
        found.append(finish(editor.edit_steps(trace, **about)))
    assert used.why == "" and close(found[1].latents, found[0].latents) and alike(found[1].maps, found[0].maps)
    return used


def test_a_mask_that_is_whole_or_empty_on_some_steps(editor, clip, monkeypatch):
    """Which other operations then serve."""

    def free(self, t):
        object = self.object(t)
        return (np.zeros_like(object), object, np.ones_like(object))[self.order[t] % 3]

    monkeypatch.setattr(FreeMask, "free", free)
    monkeypatch.setattr(graphs, "recorder", never)
    trace = editor.invert(clip, prompt=SOURCE, steps=6)
    used = by_both(editor, trace, monkeypatch, task=replace(load_preset("shape"), alpha_self=1.0, alpha_cross=1.0))
    assert used.recorded >= 6  # of 12: a coarser grid may be whole where the finest is not


def test_rows_one_at_a_time(editor, clip, monkeypatch):
    monkeypatch.setattr(graphs, "recorder", never)
    trace = editor.invert(clip, prompt=SOURCE, steps=STEPS)
    used = by_both(editor, trace, monkeypatch, task=load_preset("shape", "plain"), one_row=True)
    assert used.recorded == used.forwards - 2


def asked(backbone, seed):
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, 100 * seed, backbone.text(["a car" + " red" * seed])


def test_a_recording_gets_what_each_step_has_of_its_own_and_hands_out_what_it_saw(editor, monkeypatch):
    monkeypatch.setattr(graphs, "recorder", always)
    backbone, site = editor.backbone, next(one for one in editor.backbone.sites if one.kind == "self")
    seen, scale = [], 1.0

    def hook(site, q, k, v):
        (by,) = given("scale", lambda: (torch.tensor(scale),))
        taken(seen.append, q.mean())
        return by * attend(q, k, v)

    with torch.inference_mode(), Forwards(backbone) as forwards:
        for seed in (1, 2, 3):
            scale = float(seed)
            x, t, text = asked(backbone, seed)
            ours = forwards.predict(x, t, text, hooks={site: hook}, kind="scaled")
            assert close(ours, backbone.predict(x, t, text, hooks={site: hook}))
            assert torch.allclose(seen[-2], seen[-1], atol=1e-6)  # the recording's, and the pass's
        assert forwards.usage.recorded == 2 and len(seen) == 6
        forwards.predict(*asked(backbone, 4), kind=None)
        forwards.predict(*asked(backbone, 4), kind="another")
        assert (forwards.usage.recorded, forwards.usage.forwards) == (2, 5)
        assert forwards._kept
    assert not forwards._kept


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nmore"), "operation not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory"), "no memory"),
        (None, "differed"),
    ],
)
def test_what_cannot_be_recorded_runs_as_ever(editor, monkeypatch, fault, why):
    def fails(run):
        if fault:
            raise type(fault)(*fault.args)  # a new one, since it holds what raised it
        out = run()
        return lambda: [2 * x for x in out]

    monkeypatch.setattr(graphs, "recorder", lambda backbone: fails)
    with torch.inference_mode(), Forwards(editor.backbone) as forwards:
        for seed in (1, 2):
            x, t, text = asked(editor.backbone, seed)
            assert torch.equal(forwards.predict(x, t, text, kind="plain"), editor.backbone.predict(x, t, text))
    assert forwards.usage.recorded == 0 and why in forwards.usage.why and "\n" not in forwards.usage.why
    assert forwards.usage.told()["why"] == forwards.usage.why and "recorded" not in Usage(2, 2).told()


def test_nothing_of_recordings_stays_when_an_edit_is_cancelled(editor, clip, monkeypatch):
    monkeypatch.setattr(graphs, "recorder", always)
    steps = editor.invert_steps(clip, prompt=SOURCE, steps=STEPS)
    for _ in range(3):
        next(steps)
    gc.collect()
    held = [one for one in gc.get_objects() if type(one).__name__ == "_Recording"]
    assert held
    del held
    steps.close()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one).__name__ == "_Recording"]
