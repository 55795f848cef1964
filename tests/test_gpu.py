"""What only a CUDA GPU can show; skipped elsewhere."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from freemask.bench import LEVERS, lever_steps
from freemask.bench.speed import host_pace
from freemask.clips.video import read_clip
from freemask.families import graphs
from freemask.families.graphs import Usage
from freemask.jobs.metrics import psnr
from freemask.jobs.run import run_steps
from freemask.methods.editor import Editor
from freemask.pictures.mask_zip import read_mask_zip
from freemask.presets import load_preset
from freemask.settings import examples
from freemask.steps import finish
from freemask.toyworld.train import train_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

EXAMPLE = examples()[0]
OWN = replace(EXAMPLE.settings, steps=8)


@pytest.fixture(scope="module")
def clip():
    return read_clip(EXAMPLE.clip, frames=8, size=(64, 64))


def frames(editor, clip, **options):
    trace = editor.invert(clip, prompt=OWN.source, steps=8, **options)
    return trace, editor.edit(trace, prompt=OWN.edit, task=load_preset(OWN.task), guidance=4.0).clip.frames


def test_halves_draw_what_singles_draw(clip):
    exact = frames(Editor.load("mini", dtype=torch.float32), clip)[1]
    for dtype in (torch.float16, torch.bfloat16):
        editor = Editor.load("mini", dtype=dtype)
        assert editor.backbone.unet.dtype == dtype
        assert psnr(frames(editor, clip)[1], exact) >= (40 if dtype == torch.float16 else 30)


def test_levers_draw_what_is_drawn_plainly():
    """Which of them a GPU's torch refuses is its own matter; compiling takes minutes."""
    names = [name for name in LEVERS if not name.startswith("torch.compile")]
    steps = lever_steps(Editor.load("mini"), frames=4, size=(32, 32), only=names, rounds=2)
    told = finish(steps)["levers"]
    assert not {"CUDA graph", "fused QKV", "channels-last", "attention by flash_attention"} & {
        name for name in told if "refused" in told[name]
    }
    assert all(figures.get("apart", 0.0) < 0.05 for figures in told.values())


@pytest.mark.parametrize("name", ["mini", "mini-sd", "mini-motion"])
@pytest.mark.parametrize("method", ["freemask", "fatezero", "p2p", "plain", "released"])
@pytest.mark.parametrize("task", ["shape", "style"])
@pytest.mark.parametrize("stored", [False, True])
def test_recorded_passes_draw_what_passes_draw(clip, monkeypatch, name, method, task, stored):
    editor, preset, found = Editor.load(name, dtype=torch.float32), load_preset(task, method), []
    for recorder in (graphs.recorder, lambda backbone: None):
        monkeypatch.setattr(graphs, "recorder", recorder)
        used = {stage: Usage() for stage in ("invert", "reconstruct", "edit")}
        kept = preset if stored and method != "released" else None
        trace = editor.invert(clip, prompt=OWN.source, steps=8, store=kept, usage=used["invert"])
        restored = finish(editor.reconstruct_steps(trace, used["reconstruct"]))
        about = {"prompt": OWN.edit, "task": preset, "word": "car", "guidance": 4.0, "usage": used["edit"]}
        edited = finish(editor.edit_steps(trace, watch=True, **about))
        found.append((edited.latents, restored, trace.maps | edited.maps, used))
    ours, theirs = found
    for stage, used in ours[3].items():
        assert used.why == "" and used.recorded > 0 == theirs[3][stage].recorded, stage
    for i in (0, 1):
        torch.testing.assert_close(ours[i], theirs[i], rtol=1e-3, atol=1e-3)
    assert all(np.abs(ours[2][at].values.astype(int) - theirs[2][at].values).max() <= 2 for at in theirs[2])


def test_no_step_waits_for_the_device(clip):
    editor, preset = Editor.load("mini"), load_preset("shape")
    for _ in range(2):  # memory of the first is taken from the device, which waits
        inverted, trace = host_pace(editor.invert_steps(clip, prompt=OWN.source, steps=8), editor.backbone.device)
        edit = editor.edit_steps(trace, prompt=OWN.edit, task=preset, word="car", guidance=4.0)
        edited, _ = host_pace(edit, editor.backbone.device)
    assert (inverted["waits"], edited["waits"]) == (0, 0)


def test_twenty_edits_of_changing_sizes_leave_nothing_on_the_device():
    editor, preset, held = Editor.load("mini"), load_preset("shape"), []
    for i in range(20):
        clip = read_clip(EXAMPLE.clip, frames=4 + i % 3, size=(64 + 32 * (i % 4), 64))
        trace = editor.invert(clip, prompt=OWN.source, steps=4)
        steps = editor.edit_steps(trace, prompt=OWN.edit, task=preset, word="car")
        for _ in range(2 + i % 2):
            next(steps)
        steps.close() if i % 2 else finish(steps)
        del trace, steps
        gc.collect()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[-1][0] <= held[3][0] + 2**20 and held[-1][1] <= held[3][1] + 64 * 2**20


def test_features_from_the_device_from_ram_and_replayed_agree(clip):
    editor, task = Editor.load("mini", dtype=torch.float32), load_preset(OWN.task)
    _, replayed = frames(editor, clip)
    for host in (False, True):
        trace, stored = frames(editor, clip, store=task, host=host)
        kept = next(iter(trace.features._kept.values()))[0]
        assert (kept.device.type, kept.is_pinned()) == (("cpu", True) if host else ("cuda", False))
        assert psnr(stored, replayed) > 50


@pytest.mark.parametrize("low_vram", [False, True])
def test_a_job_leaves_nothing_behind_and_needs_what_was_expected(tmp_path, low_vram):
    editor = Editor.load("mini", low_vram=low_vram)
    settings = replace(OWN, low_vram=low_vram)
    finish(run_steps(EXAMPLE.clip, settings, tmp_path / "warm", editor=editor))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    report = finish(run_steps(EXAMPLE.clip, settings, tmp_path / "out", editor=editor))
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20
    if not low_vram:  # whose few MiB are mostly what the libraries work in
        assert report["memory"]["expected_mib"] == pytest.approx(report["memory"]["peak_mib"], rel=0.15)


def test_the_least_memory_draws_the_same(clip):
    whole = frames(Editor.load("mini", dtype=torch.float32), clip)[1]
    editor = Editor.load("mini", dtype=torch.float32, low_vram=True)
    trace = editor.invert(clip, prompt=OWN.source, steps=8)
    task = load_preset(OWN.task)
    shown = editor.edit(trace, prompt=OWN.edit, task=task, guidance=4.0, one_row=True).clip.frames
    on_device = [part for part in (editor.backbone.unet, editor.backbone.vae) if next(part.parameters()).is_cuda]
    assert len(on_device) == 1 and psnr(shown, whole) > 50


def test_an_edit_that_does_not_fit_steps_down(tmp_path):
    """A limit on this process that leaves too little for three rows, and enough for one."""
    editor = Editor.load("mini")
    settings = replace(OWN, size=(512, 512), steps=2)
    free = finish(run_steps(EXAMPLE.clip, settings, tmp_path / "free", editor=editor))["memory"]
    total = torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * free["peak_mib"] * 2**20 / total)
    try:
        report = finish(run_steps(EXAMPLE.clip, settings, tmp_path / "out", editor=editor))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert report["memory"]["one_row"] and report["words"]["warnings"]
    assert read_mask_zip(tmp_path / "out" / "masks.zip", frames=8).any()


def test_training_by_a_graph_is_training(tmp_path):
    """The same six steps, of which three are the graph's: only rounding is left between the two."""
    from test_toyworld import TINY

    losses = []
    for graph in (False, True):
        run = tmp_path / str(graph)
        torch.manual_seed(0)  # of the first weights
        train_unet(run, TINY, stage="frames", steps=6, batch=2, lr=1e-3, device="cuda", graph=graph)
        losses.append(torch.load(run / "unet-frames.pt", weights_only=True)["average"])
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-2, atol=1e-3)
