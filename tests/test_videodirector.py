"""VideoDirector's equations and its two stages, on random models; `test_methods` has what all methods share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import close

from freemask.clips.video import Clip
from freemask.errors import SettingError
from freemask.families.attention import attend
from freemask.families.graphs import Usage
from freemask.families.loading import load_backbone
from freemask.methods import videodirector
from freemask.methods.editor import Editor
from freemask.methods.videodirector import STDG, VideoDirector, attend_both
from freemask.presets import Director, load_preset
from freemask.settings import fast_settings, make_settings
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE, EDIT = "a red car driving on the grass", "a red bus driving on the grass"
SHAPE = load_preset("shape", "videodirector")
OFF = Director(null_text_steps=0, stdg=0.0, sa_ii=False)
T = 501


@pytest.fixture(scope="module")
def motion(motion_pipeline):
    return Editor(load_backbone(str(motion_pipeline), "cpu"))


@pytest.fixture(scope="module")
def exact(motion_pipeline):
    """The same model in float64."""
    return load_backbone(str(motion_pipeline), "cpu", torch.float64)


def noise_clip(frames, seed=3):
    return Clip(np.random.default_rng(seed).integers(0, 255, (frames, 32, 48, 3), dtype=np.uint8), 8.0)


@pytest.fixture(scope="module")
def trace(motion):
    """4 frames, not square."""
    return motion.invert(noise_clip(4), prompt=SOURCE, steps=3)


def preset(**changes):
    return replace(SHAPE, **changes)


def directed(**changes):
    return replace(SHAPE, director=replace(SHAPE.director, **changes))


def run(editor, trace, task, **options):
    given = {"prompt": EDIT, "word": "car", "guidance": 4.0, "mask": half(trace)} | options
    return finish(editor.edit_steps(trace, task=task, **given))


def half(trace):
    """The left half of every frame."""
    mask = np.zeros(trace.clip.frames.shape[:3], bool)
    mask[:, :, : mask.shape[2] // 2] = True
    return mask


def latents(frames, dtype=torch.float64, seed=0):
    return torch.randn(1, 4, frames, 8, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compared(backbone, **weights):
    zero = dict.fromkeys(("eta_f", "eta_b", "zeta_f", "zeta_b"), 0.0)
    return STDG(backbone, Director(**(zero | weights)), Usage())


def pull(backbone, at, x, pivot, **weights):
    source, told = backbone.text([SOURCE]).clone(), backbone.text([EDIT]).clone()
    return compared(backbone, **weights).gradient(x, pivot, T, told, source, 0.5, at)


LEFT = np.zeros((8, 8, 12), bool)
LEFT[:, :, :4] = True


@pytest.mark.parametrize("fixture", ["pipeline", "image_pipeline", "motion_pipeline"])
def test_a_row_of_text_for_each_frame(request, fixture):
    """Equal rows are one row; a frame's own row changes what is predicted."""
    backbone = load_backbone(str(request.getfixturevalue(fixture)), "cpu")
    x, text = latents(5, torch.float32), backbone.text([SOURCE])
    rows = text[:, None].repeat(1, 5, 1, 1)
    wanted = backbone.predict(x, T, text)
    assert close(backbone.predict(x, T, rows), wanted)
    rows[:, 2] = backbone.text(["a blue boat on the water"])[0]
    assert not close(backbone.predict(x, T, rows)[:, :, 2], wanted[:, :, 2], 1e-3)
    assert close(backbone.predict(x, T, text), wanted)


def test_nothing_switched_on_is_the_plain_way_to_the_bit(motion, trace):
    """τ_s = τ_c = 0, φ_t the encoder's "", no STDG and no SA-II."""
    task = preset(alpha_self=0.0, alpha_cross=0.0, director=OFF)
    plain = run(motion, trace, load_preset("shape", "plain")).latents
    assert torch.equal(run(motion, trace, task).latents, plain)
    for part in ({"alpha_self": 0.4}, {"alpha_cross": 0.8}, {"director": replace(OFF, sa_ii=True)}):
        assert not close(run(motion, trace, replace(task, **part)).latents, plain, 1e-3), part


def test_rows_that_were_not_optimised_are_the_encoders_own(motion, trace):
    usage = Usage()
    task = preset(director=replace(OFF, null_text_steps=0, stdg=1.0, guided="source"))
    done = run(motion, trace, task, preparing=usage)
    null = motion.backbone.text([""])
    assert torch.equal(done.prepared["null"], null.expand(3, 4, -1, -1))
    assert done.prepared["losses"].shape == (3, 1) and usage.forwards == 3 * (2 + 2) and usage.backwards == 3


@pytest.mark.parametrize("null_text", ["multi-frame", "shared"])
def test_the_distance_to_the_pivot_never_rises_and_falls(motion, trace, null_text):
    done = run(motion, trace, directed(null_text=null_text, null_text_steps=4), guidance=7.5)
    losses = done.prepared["losses"]
    assert done.prepared["null"].shape[1] == (4 if null_text == "multi-frame" else 1)
    assert (losses.diff(dim=1).nan_to_num(0.0) <= 0).all()
    assert (losses.nan_to_num(torch.inf).amin(1) < losses[:, 0]).any()


def test_rows_of_their_own_reach_the_pivots_nearer_than_one_for_all(motion, trace):
    each, shared = (
        run(motion, trace, directed(null_text=kind, null_text_steps=8, stdg=0.0), guidance=7.5).prepared
        for kind in ("multi-frame", "shared")
    )
    away = [(made["reached"] - trace.latents[-1]).square().mean() for made in (each, shared)]
    assert away[0] < away[1]


def test_the_network_is_optimised_at_the_clips_own_spans(motion, trace, monkeypatch):
    """5 frames, of which the network sees 2 at once: running spans again for their gradients changes nothing."""
    few = Editor(replace(motion.backbone, native_frames=2))
    long = few.invert(noise_clip(5), prompt=SOURCE, steps=2)
    task = directed(null_text_steps=2)
    made = run(few, long, task).prepared
    assert made["null"].shape[:2] == (2, 5) and made["reached"].shape == long.latents[-1].shape
    assert (made["losses"][:, -1] < made["losses"][:, 0]).any()
    monkeypatch.setattr(videodirector, "checkpoint", lambda run, x, **_: run(x))
    assert close(run(few, long, task).prepared["null"], made["null"])


@pytest.mark.parametrize("fixture", ["pipeline", "image_pipeline", "motion_pipeline"])
def test_running_blocks_anew_for_their_gradients_changes_nothing(request, fixture, monkeypatch):
    """As on a GPU, also with rows of text a frame and in several spans."""
    backbone = replace(load_backbone(str(request.getfixturevalue(fixture)), "cpu"), native_frames=2)
    task, found = directed(null_text_steps=2, stdg=50.0), []
    trace = Editor(backbone).invert(noise_clip(3), prompt=SOURCE, steps=2)
    for again in (False, True):
        monkeypatch.setattr(videodirector, "_is_short", lambda _, again=again: again)
        found.append(run(Editor(backbone), trace, task))
    assert close(found[1].prepared["null"], found[0].prepared["null"])
    assert close(found[1].latents, found[0].latents)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in backbone.unet.modules())


def test_the_guidance_is_zero_at_the_pivot(exact):
    x, text = latents(8), exact.text([SOURCE]).clone()
    stdg = compared(exact, eta_f=0.5, eta_b=0.3, zeta_f=0.2, zeta_b=0.4)
    assert not stdg.gradient(x, x, T, text, text, 0.5, LEFT).any()
    assert stdg.usage.forwards == 2 and stdg.usage.backwards == 1
    assert compared(exact).gradient(x, latents(8, seed=1), T, text, text, 0.5, LEFT).equal(torch.zeros_like(x))


@pytest.mark.parametrize("weights", [{"eta_f": 1.0, "eta_b": 0.5}, {"zeta_f": 0.5, "zeta_b": 1.0}])
def test_the_guidance_is_the_gradient_of_the_distance(exact, weights):
    """Finite differences in float64, of Eq. 2 and of Eq. 3."""
    x, pivot = latents(8), latents(8, seed=1)
    found = pull(exact, LEFT, x, pivot, **weights)
    source, told = exact.text([SOURCE]).clone(), exact.text([EDIT]).clone()
    stdg = compared(exact, **weights)

    def distance(x):
        return stdg.loss(stdg.see(pivot, T, source, 0.5), stdg.see(x, T, told, 0.5), LEFT)

    for seed in (5, 6):
        way = latents(8, seed=seed)
        with torch.no_grad():
            slope = (distance(x + 1e-4 * way) - distance(x - 1e-4 * way)) / 2e-4
        assert torch.isclose((found * way).sum(), slope, rtol=1e-4)
    assert found.abs().max() > 0


@pytest.mark.parametrize("kind", ["eta", "zeta"])
def test_the_parts_of_object_and_background_sum_to_the_whole(exact, kind):
    x, pivot = latents(8), latents(8, seed=1)
    front = pull(exact, LEFT, x, pivot, **{f"{kind}_f": 1.0})
    back = pull(exact, LEFT, x, pivot, **{f"{kind}_b": 1.0})
    both = pull(exact, np.ones_like(LEFT), x, pivot, **{f"{kind}_f": 1.0, f"{kind}_b": 7.0})
    assert torch.allclose(front + back, both)
    assert not torch.allclose(front, both) and front.any()


def test_the_other_mask_with_swapped_weights_is_the_same(exact):
    x, pivot = latents(8), latents(8, seed=1)
    one = pull(exact, LEFT, x, pivot, eta_f=0.5, eta_b=0.2, zeta_f=0.0, zeta_b=0.5)
    other = pull(exact, ~LEFT, x, pivot, eta_f=0.2, eta_b=0.5, zeta_f=0.5, zeta_b=0.0)
    assert torch.allclose(one, other)


def test_the_guidance_of_long_clips_is_averaged_over_spans(exact):
    x, pivot = latents(20), latents(20, seed=1)
    at = np.zeros((20, 8, 12), bool)
    few = replace(exact, native_frames=8)
    found = pull(few, at, x, pivot, eta_b=0.5, zeta_b=0.5)
    first = pull(few, at[:8], x[:, :, :8], pivot[:, :, :8], eta_b=0.5, zeta_b=0.5)
    assert torch.allclose(found[:, :, 0], first[:, :, 0])  # a frame of one span alone
    assert found.shape == x.shape and not torch.allclose(found[:, :, 7], first[:, :, 7])


def test_the_guidance_draws_the_edit_to_the_pivot(motion, trace):
    """A step with it is nearer in what it compares than one without, in both stages."""
    stdg = STDG(motion.backbone, Director(zeta_f=0.5), Usage())
    text = motion.backbone.text([SOURCE]).clone()
    t, at = trace.timesteps[1], np.zeros((4, *trace.grid), bool)
    pivot = trace.latents[t].clone()
    x = pivot + 0.3 * torch.randn(pivot.shape, generator=torch.Generator().manual_seed(0))
    g = stdg.gradient(x, pivot, t, text, text, 0.5, at)
    wanted = stdg.see(pivot, t, text, 0.5)
    before, after = (stdg.loss(wanted, stdg.see(z, t, text, 0.5), at) for z in (x, x - 0.1 * g))
    assert after < before
    plain, pushed = (run(motion, trace, preset(director=replace(OFF, stdg=s))).latents for s in (0.0, 5.0))
    assert not torch.equal(plain, pushed)


def test_a_block_without_attention_is_refused(motion, trace):
    with pytest.raises(SettingError, match=r"no self-attention in 'up_blocks.9': compare .*up_blocks.1"):
        run(motion, trace, directed(blocks=("up_blocks.9",)))


def test_hidden_columns_take_no_part():
    """SA-II: all hidden is attention on the edit alone, none hidden that on both."""
    q, k, v, k0, v0 = torch.randn(5, 3, 2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    every = torch.ones(3, 6, dtype=torch.bool)
    assert torch.allclose(attend_both(q, k, v, (k0, v0), every), attend(q, k, v), atol=1e-6)
    both = attend(q, torch.cat([k, k0], 2), torch.cat([v, v0], 2))
    assert torch.allclose(attend_both(q, k, v, (k0, v0), ~every), both, atol=1e-6)
    some = every.clone()
    some[:, 2] = False
    wanted = attend(q, torch.cat([k, k0[:, :, 2:3]], 2), torch.cat([v, v0[:, :, 2:3]], 2))
    assert torch.allclose(attend_both(q, k, v, (k0, v0), some), wanted, atol=1e-6)


@pytest.mark.parametrize("fixture", ["pipeline", "image_pipeline", "motion_pipeline"])
def test_a_mask_of_everything_leaves_self_attention_to_the_edit(request, fixture):
    """In every family, the image model's keys of other frames included."""
    editor = Editor(load_backbone(str(request.getfixturevalue(fixture)), "cpu"))
    trace = editor.invert(noise_clip(4), prompt=SOURCE, steps=2)
    every = np.ones_like(half(trace))
    on, off = (preset(alpha_self=0.0, director=replace(OFF, sa_ii=ii)) for ii in (True, False))
    alone = run(editor, trace, off, mask=every).latents
    assert close(run(editor, trace, on, mask=every).latents, alone)
    both, some = (run(editor, trace, on, mask=mask).latents for mask in (~every, half(trace)))
    assert not close(both, alone, 1e-3) and not close(some, both, 1e-3)


def test_a_place_hides_the_background(motion, trace):
    """The mirror of a shape's mask."""
    on = preset(alpha_self=0.0, director=replace(OFF, sa_ii=True))
    shape = run(motion, trace, on, mask=half(trace)).latents
    assert close(run(motion, trace, replace(on, region="background"), mask=~half(trace)).latents, shape)


@pytest.mark.parametrize("fixture", ["pipeline", "image_pipeline", "motion_pipeline"])
def test_rows_one_at_a_time_give_the_same(request, fixture):
    editor = Editor(load_backbone(str(request.getfixturevalue(fixture)), "cpu"))
    trace = editor.invert(noise_clip(4), prompt=SOURCE, steps=3)
    task = replace(directed(null_text_steps=1), alpha_self=0.4)
    assert close(run(editor, trace, task, one_row=True).latents, run(editor, trace, task).latents)


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_twice_is_the_same_and_leaves_nothing_behind(motion, solver):
    trace = motion.invert(noise_clip(4), prompt=SOURCE, steps=3, solver=solver)
    stock = dict(motion.backbone.unet.attn_processors)
    task = directed(null_text_steps=2)
    one, two = (run(motion, trace, task) for _ in range(2))
    assert torch.equal(one.latents, two.latents)
    for made in (*trace.latents.values(), *one.prepared.values(), one.latents):
        assert not made.requires_grad and made.grad_fn is None
    assert all(p.grad is None and not p.requires_grad for p in motion.backbone.unet.parameters())
    now = motion.backbone.unet.attn_processors
    assert now.keys() == stock.keys() and all(now[name] is stock[name] for name in stock)


def test_stage_1_is_made_once_for_what_it_depends_on(motion):
    trace, other = (motion.invert(noise_clip(4, seed=seed), prompt=SOURCE, steps=2) for seed in (3, 4))
    kept, task = {}, directed(null_text_steps=1)

    def again(**options):
        usage = Usage()
        done = run(motion, trace, options.pop("task", task), prepared=kept, preparing=usage, **options)
        return done, usage.forwards > 0

    first, made = again()
    assert made
    second, made = again()
    assert not made and torch.equal(second.latents, first.latents)
    assert not again(prompt="a red truck driving on the grass")[1]
    assert not again(task=replace(task, alpha_self=0.5))[1]
    assert again(guidance=5.0)[1] and again(mask=~half(trace))[1]
    assert again(task=directed(null_text_steps=2))[1]
    usage = Usage()
    run(motion, other, task, prepared=kept, preparing=usage)
    assert usage.forwards > 0
    task = directed(null_text_steps=1, stdg=0.0)
    assert again()[1] and not again(mask=~half(trace))[1]  # no guidance, so no mask


def test_the_steps_of_both_stages_are_told(motion, trace):
    steps = motion.edit_steps(trace, prompt=EDIT, task=directed(null_text_steps=1), word="car")
    told = [(step.stage, step.index) for step in steps]
    assert told == [*(("null-text", i) for i in (1, 2, 3)), *(("edit", i) for i in (1, 2, 3))]


def test_only_videodirector_optimises_null_text():
    assert fast_settings("videodirector") == fast_settings("freemask") | {"null_text_steps": 0}
    about = {"source": SOURCE, "edit": EDIT, "task": "shape"}
    own = make_settings(**about, method="videodirector", null_text_steps=3).preset()
    assert own.director.null_text_steps == 3 and own.director.zeta_b == SHAPE.director.zeta_b
    assert make_settings(**about, method="videodirector").preset() == SHAPE
    with pytest.raises(SettingError, match="'freemask' optimises no null text: leave null_text_steps out"):
        make_settings(**about, null_text_steps=3)


def test_cross_attention_of_words_that_change_is_the_edits(motion, trace):
    """γ (Eq. 7): with every word changed there is nothing of the source's in it."""
    task = preset(alpha_self=0.0, director=OFF)
    session = VideoDirector(
        motion.backbone, trace, motion.plan_masks(trace, word="car", task=task), task, prompt=EDIT, word="car"
    )
    session.t = trace.timesteps[-1]
    a0, a1 = torch.rand(2, 3, 2, 6, session.text["edit"].shape[1], generator=torch.Generator().manual_seed(0))
    fused = session.fuse_cross(a0, a1, torch.zeros(3, 6, dtype=torch.bool))
    out = session.weighed(trace.sites[0], fused, a1)
    changed = session.tokens.changed
    assert changed.any() and torch.equal(out[..., changed], a1[..., changed])
    assert torch.equal(out[..., ~changed], a0[..., ~changed])
