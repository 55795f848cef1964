"""The invariants of masked fusion, on a tiny random UNet."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import close, tiny_scheduler

from freemask.clips.video import Clip, read_clip
from freemask.errors import MaskError, PromptError, SettingError
from freemask.families.ddim import CLEAN, denoise, levels
from freemask.families.graphs import Usage
from freemask.jobs.metrics import psnr
from freemask.masks.candidates import candidate, extract, resize
from freemask.masks.features import Features
from freemask.masks.trace import load_trace, save_trace
from freemask.methods.base import fused_sites
from freemask.methods.editor import Editor
from freemask.methods.sessions import SESSIONS
from freemask.presets import load_preset
from freemask.settings import examples
from freemask.steps import finish
from freemask.words.prompts import find_word

pytestmark = pytest.mark.numeric

SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"
STEPS = 4


@pytest.fixture(scope="module")
def trace(editor, clip):
    return editor.invert(clip, prompt=SOURCE, steps=STEPS)


ALL = [*((name, "freemask") for name in ("style", "attribute", "shape", "place")), ("shape", "released")]
ALL += [("style", "released"), ("attribute", "fatezero"), ("shape", "fatezero"), ("shape", "p2p"), ("shape", "plain")]


def task(name="attribute", method="freemask", **changes):
    """A preset with the paper's shares, and a threshold that suits the flat maps of a random model: masks neither full
    nor empty."""
    own = {"tau": 0.8, "alpha_latent": 0.0}
    if method == "freemask":
        own |= {f"alpha_{kind}": 0.99 for kind in ("self", "cross", "temporal")}
        own |= {"selection": "codebook", "free_self": True, "mask": "mmc"}
    return replace(load_preset(name, method), **(own | changes))


def run(editor, trace, preset, *, prompt=EDIT, guidance=7.5, **options):
    steps = editor.edit_steps(trace, prompt=prompt, task=preset, word="car", guidance=guidance, **options)
    return finish(steps).latents


@torch.inference_mode()
def plain(editor: Editor, trace, prompt=EDIT, guidance=7.5, rescale=0.0, **options):
    """Classifier-free guidance with the stock processors."""
    text = editor.backbone.text(["", prompt])

    def predict(x, t, level):
        eps = editor.backbone.predict(x.expand(2, -1, -1, -1, -1), t, text, level)
        guided = eps[:1] + guidance * (eps[1:2] - eps[:1])
        return guided * (1 - rescale + rescale * eps[1:2].std() / guided.std())

    alpha = levels(editor.backbone.scheduler, trace.timesteps)
    *_, (_, x) = denoise(predict, trace.latents[trace.timesteps[-1]], alpha, **options)
    return x


def session(editor, trace, preset, prompt=EDIT, **options):
    plan = editor.plan_masks(trace, word="car", task=preset)
    return SESSIONS[preset.method](editor.backbone, trace, plan, preset, prompt=prompt, word="car", **options)


def everywhere(trace, value):
    return np.full(trace.clip.frames.shape[:3], value)


CLOSED = {"alpha_self": 0.0, "alpha_cross": 0.0, "alpha_temporal": 0.0}
OPEN = {"alpha_self": 1.0, "alpha_cross": 1.0, "alpha_temporal": 1.0}


def test_closed_windows_are_a_plain_denoise(editor, trace):
    assert torch.equal(run(editor, trace, task(**CLOSED)), plain(editor, trace))


def test_guidance_is_rescaled_where_asked(editor, trace):
    assert close(run(editor, trace, task(**CLOSED, rescale=0.7)), plain(editor, trace, rescale=0.7))


def test_everything_editable_is_a_plain_denoise(editor, trace):
    preset = task(delta=0, **OPEN)
    fused = run(editor, trace, preset, mask=everywhere(trace, True))
    assert close(fused, plain(editor, trace))


def test_nothing_editable_takes_the_sources_attention(editor, trace):
    fused = run(editor, trace, task(**OPEN), mask=everywhere(trace, False))
    assert not close(fused, plain(editor, trace), 1e-3)


def test_unconditional_rows_are_untouched(editor, trace):
    """With guidance 0 only the unconditional row counts, whatever is fused into the other."""
    assert close(run(editor, trace, task(**OPEN), guidance=0.0), plain(editor, trace, guidance=0.0))


@pytest.mark.parametrize(("name", "method"), ALL)
def test_replay_equals_store(editor, clip, trace, name, method):
    preset = task(name, method)
    stored = editor.invert(clip, prompt=SOURCE, steps=STEPS, store=preset)
    assert bool(stored.features) == (method != "plain")
    assert close(run(editor, stored, preset), run(editor, trace, preset))


@pytest.fixture(scope="module")
def solved(editor, clip):
    """The trace that the second-order solver leaves."""
    return editor.invert(clip, prompt=SOURCE, steps=STEPS, solver="dpm")


def test_the_solver_remembers_every_step_of_denoising(editor, clip, trace, solved):
    usage = Usage()
    finish(editor.invert_steps(clip, prompt=SOURCE, steps=STEPS, solver="dpm", usage=usage))
    assert usage.forwards == STEPS + 1  # the highest level too
    assert solved.maps.keys() == trace.maps.keys() and solved.latents.keys() == trace.latents.keys()
    assert not torch.equal(solved.latents[trace.timesteps[-1]], trace.latents[trace.timesteps[-1]])


@pytest.mark.parametrize("name", ["style", "shape"])
def test_replay_equals_store_with_the_solver(editor, clip, solved, name):
    preset = task(name)
    stored = editor.invert(clip, prompt=SOURCE, steps=STEPS, store=preset, solver="dpm")
    assert len(stored.features)
    usage = Usage()
    assert close(run(editor, stored, preset, usage=usage), run(editor, solved, preset))
    assert usage.rows == 2 * STEPS


def test_the_solver_edits_as_it_reconstructs(editor, solved):
    """The source prompt without guidance gives the reconstruction, which is nearer to the clip than DDIM's."""
    again = run(editor, solved, task(**CLOSED), prompt=SOURCE, guidance=1.0)
    assert close(again, finish(editor.reconstruct_steps(solved)))
    assert not close(again, finish(editor.reconstruct_steps(replace(solved, solver="ddim"))), 1e-3)
    with pytest.raises(SettingError, match="leave eta at 0"):
        run(editor, solved, task(), eta=0.5)


def test_an_edit_by_the_solver_begins_with_the_inversions_own_maps(editor, solved):
    other = replace(solved, prompt="a red truck driving on the grass")
    seen = finish(editor.edit_steps(other, prompt=SOURCE, task=task(**CLOSED), word="truck", watch=True))
    top = solved.timesteps[-1]
    for site in solved.sites:
        if site.kind == "cross":
            expected = torch.from_numpy(solved.word_map(top, site, [2]))
            assert close(torch.from_numpy(seen.maps[top, site.name].of([0])), expected, relative=0.02)


def test_a_trace_can_be_kept_in_a_file(editor, trace, tmp_path):
    save_trace(tmp_path / "trace.safetensors", trace)
    again = load_trace(tmp_path / "trace.safetensors", torch.device("cpu"))
    assert (again.prompt, again.timesteps, again.sites, again.tokens) == (
        trace.prompt,
        trace.timesteps,
        trace.sites,
        trace.tokens,
    )
    assert again.clip.fps == trace.clip.fps and np.array_equal(again.clip.frames, trace.clip.frames)
    assert torch.equal(run(editor, again, task("shape")), run(editor, trace, task("shape")))
    assert [path.name for path in tmp_path.iterdir()] == ["trace.safetensors"]


def test_what_was_stored_for_a_narrower_edit_serves_as_far_as_it_goes(editor, clip, trace):
    stored = editor.invert(clip, prompt=SOURCE, steps=STEPS, store=task(alpha_cross=0.5))
    usage = Usage()
    assert close(run(editor, stored, task(), usage=usage), run(editor, trace, task()))
    assert usage.rows == 2 * STEPS + 1  # the third step is replayed


def test_rows_follow_the_windows(editor, clip, trace):
    usage = Usage()
    run(editor, trace, task(alpha_self=0.5, alpha_cross=0.0, alpha_temporal=0.25), usage=usage)
    assert (usage.forwards, usage.rows) == (STEPS, 2 * STEPS + 2)
    stored, usage = editor.invert(clip, prompt=SOURCE, steps=STEPS, store=task()), Usage()
    run(editor, stored, task(), usage=usage)
    assert (usage.forwards, usage.rows) == (STEPS, 2 * STEPS)


def test_own_features_change_nothing(editor, trace, clip):
    """A store filled from a denoise with the same prompt and guidance 1 gives the same output."""
    backbone = editor.backbone
    text = backbone.text([SOURCE])
    features = Features()
    at = CLEAN

    def keep(site, q, k, v):
        features.keep((at, site.name, 0), q.clone(), k.clone())
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    sites = [s for s in backbone.sites if s.kind != "input"]

    def predict(x, t, level):
        nonlocal at
        at = t
        return backbone.predict(x, t, text, level, dict.fromkeys(sites, keep))

    alpha = levels(backbone.scheduler, trace.timesteps)
    with torch.inference_mode():
        *_, (_, expected) = denoise(predict, trace.latents[trace.timesteps[-1]], alpha)
    own = replace(trace, features=features)
    fused = run(editor, own, task(**OPEN), prompt=SOURCE, guidance=1.0, mask=everywhere(trace, False))
    assert close(fused, expected)


def test_same_inputs_same_frames(editor, clip, trace):
    again = editor.invert(clip, prompt=SOURCE, steps=STEPS)
    first, second = (run(editor, t, task(), eta=0.5, seed=3) for t in (trace, again))
    assert torch.equal(first, second)
    assert not torch.equal(first, run(editor, trace, task(), eta=0.5, seed=4))


def test_frames_that_do_not_fit_are_refused(deep_editor):
    for h, w in ((30, 32), (32, 30)):
        with pytest.raises(SettingError, match=f"{w}x{h} do not fit"):
            deep_editor.invert(Clip(np.zeros((1, h, w, 3), np.uint8), 8.0), prompt=SOURCE, steps=2)
    assert deep_editor.backbone.multiple == 16 and deep_editor.backbone.native_size == (32, 32)
    assert deep_editor.fit((47, 15)) == (32, 16)  # down, but one multiple at least
    assert deep_editor.frame_size(128, 64) == (64, 32) and deep_editor.frame_size(30, 100) == (32, 96)


def test_any_grid_and_length(editor):
    """A 9 × 5 grid with 24 frames, and a single frame."""
    rng = np.random.default_rng(0)
    for frames in (24, 1):
        tall = Clip(rng.integers(0, 255, (frames, 36, 20, 3), dtype=np.uint8), 8.0)
        for name in ("style", "shape"):
            trace = editor.invert(tall, prompt=SOURCE, steps=2)
            edited = editor.edit(trace, prompt=EDIT, task=task(name), word="car")
            assert edited.clip.frames.shape == (frames, 36, 20, 3)
            assert edited.plan.shown.shape == (frames, 36, 20)


def test_latent_blend_keeps_the_source_outside(editor, trace):
    """Blended to the last step, everything outside the mask is the source's own latent."""
    preset = task(alpha_latent=1.0)
    mask = everywhere(trace, False)
    mask[:, :16] = True
    out = run(editor, trace, preset, mask=mask)
    kept = trace.latents[CLEAN]
    assert torch.equal(out[..., 4:, :], kept[..., 4:, :])
    assert not torch.equal(out[..., :4, :], kept[..., :4, :])


@pytest.mark.parametrize("region", ["object", "background"])
def test_latents_are_blended_in_their_own_window_under_each_steps_mask(editor, trace, region):
    """z = z_src + E·(z − z_src) after the first half of the steps, at the same level."""
    preset = task("shape", **CLOSED | {"alpha_latent": 0.5}, region=region)
    masks = editor.plan_masks(trace, word="car", task=preset).object_at
    first, second = trace.timesteps[:-3:-1]
    assert not np.array_equal(masks[first], masks[trace.timesteps[0]])

    def adjust(level, x):
        if level < trace.below(second):
            return x
        m = masks[first if level == second else second]
        e = torch.from_numpy(m if region == "object" else ~m)
        return torch.where(e, x, trace.latents[level])

    assert close(run(editor, trace, preset), plain(editor, trace, adjust=adjust))


def test_self_attention_that_is_not_free_is_the_sources_everywhere(editor, trace):
    alone = {"alpha_self": 1.0, "alpha_cross": 0.0, "alpha_temporal": 0.0}
    held = run(editor, trace, task(**alone, free_self=False))
    assert torch.equal(held, run(editor, trace, task(**alone), mask=everywhere(trace, False)))
    assert not close(held, run(editor, trace, task(**alone)), 1e-3)


def test_time_aware_and_time_agnostic_masks(editor, trace):
    shape = editor.plan_masks(trace, word="car", task=task("shape", tau=0.6))
    assert 0.05 < shape.area < 0.95
    assert len({m.tobytes() for m in shape.object_at.values()}) > 1
    style = editor.plan_masks(trace, word="car", task=task("style", tau=0.6))
    assert len({m.tobytes() for m in style.object_at.values()}) == 1
    t = shape.choice.timestep
    assert np.array_equal(style.object_at[t], shape.object_at[t])


def test_a_clip_chooses_its_own_mask(editor, trace):
    """Adaptive selection takes one candidate of this clip, the consensus a mean of several, at every step alike."""
    adaptive = editor.plan_masks(trace, word="car", task=task(selection="adaptive"))
    (cell,) = adaptive.cells
    assert cell == (adaptive.choice.timestep, adaptive.choice.site.name) and adaptive.choice.origin == "adaptive"
    assert np.array_equal(
        adaptive.object_at[trace.timesteps[0]],
        resize(candidate(trace, "car", t=cell[0], site=adaptive.choice.site, tau=0.8), trace.grid),
    )
    shape = editor.plan_masks(trace, word="car", task=task("shape", selection="adaptive"))
    assert [t for t, _ in shape.cells] == list(trace.timesteps)
    agreed = editor.plan_masks(trace, word="car", task=task("shape", selection="consensus"))
    assert agreed.choice.origin == "consensus" and len(agreed.cells) > 1
    assert len({m.tobytes() for m in agreed.object_at.values()}) == 1
    painted = editor.plan_masks(trace, word="car", task=task(selection="consensus"), mask=everywhere(trace, True))
    assert painted.choice.origin == "painted" and painted.cells == ()


def test_union_only_adds(editor, trace):
    narrow = run(editor, trace, task(delta=0))
    assert not torch.equal(run(editor, trace, task(delta=0, union=True)), narrow)


def test_a_union_is_what_either_mask_holds(editor, trace):
    """And E is it for an object's edit, all but it for a background's."""
    for union in (True, False):
        fusing = session(editor, trace, task("shape", union=union))
        plan, t = fusing.plan, trace.timesteps[0]
        other = np.roll(plan.object_at[t], 3, -1)
        assert np.array_equal(fusing.object(t), plan.object_at[t])  # nothing is known of the edit's own mask yet
        fusing.edit_map = other
        wanted = plan.object_at[t] | other if union else plan.object_at[t]
        assert np.array_equal(fusing.object(t), wanted) and np.array_equal(fusing.editable(t), wanted)
        fusing.task = replace(fusing.task, region="background")
        assert np.array_equal(fusing.editable(t), ~wanted)


@pytest.mark.parametrize(
    ("edit", "expected"), [("a red bus driving on the grass", (3,)), ("two blue boats sailing", ()), (SOURCE, (3,))]
)
def test_the_mask_that_joins_is_that_of_the_words_own_tokens(editor, trace, edit, expected):
    """The columns of the edit prompt that stand for the edited word: its own, and no other's."""
    assert session(editor, trace, task("shape", union=True), edit).edit_columns == list(expected)


def test_changed_words_are_left_to_the_edit_after_their_window(editor, trace):
    """And with the other words where nothing is said of them."""
    a0, a1 = torch.rand(2, 4, 2, 64, editor.backbone.text_shape[0])
    for changes, wanted in (({"alpha_changed": 0.5}, STEPS // 2), ({"alpha_cross": 0.75}, 3)):
        one = session(editor, trace, task(**({"alpha_cross": 1.0} | changes)))
        changed = one.tokens.changed
        for i, t in enumerate(reversed(trace.timesteps)):
            one.t = t
            out = one.weighed(trace.sites[0], a0, a1)
            assert torch.equal(out[..., changed], (a1 if i >= wanted else a0)[..., changed])
            assert torch.equal(out[..., ~changed], a0[..., ~changed])


def test_only_grids_of_so_many_positions_are_fused(deep_editor, clip):
    trace = deep_editor.invert(clip, prompt=SOURCE, steps=2)
    kinds = ("self", "cross", "temporal")
    sites = [site for site in trace.sites if site.kind in kinds]
    count = {site: int(np.prod(site.grid(trace.grid))) for site in sites}
    assert {64, 16, 4} == set(count.values())
    small = fused_sites(trace.sites, trace.grid, kinds, task(max_positions=16))
    assert small == [site for site in sites if site.kind == "temporal" or count[site] <= 16]
    assert fused_sites(trace.sites, trace.grid, kinds, task()) == sites
    assert {site.kind for site in fused_sites(trace.sites, trace.grid, ("self",), task())} == {"self"}


def test_the_released_code_swaps_source_and_edit_in_time(editor, trace):
    """At the label nearest 201 and each site's own grid, True where its own Eq. 10 takes the edit: off the object."""
    one = session(editor, trace, task("shape", "released"))
    t = min(trace.timesteps, key=lambda t: abs(t - 201))
    temporal = [site for site in trace.sites if site.kind == "temporal"]
    assert one.swapped.keys() == {site.level for site in temporal}
    for there in temporal:
        at = [site for site in trace.sites if site.kind == "cross" and site.level == there.level]
        soft = np.mean([trace.word_map(t, site, find_word(SOURCE, "car")) for site in at], axis=0)
        assert np.array_equal(one.moved_in_time(there), ~extract(soft, one.task.tau)), there
    unmasked = session(editor, trace, task("style", "released"))
    unmasked.t = t
    assert not unmasked.moved_in_time(temporal[0]).any()


@pytest.mark.parametrize(("side", "level"), [(16, 0), (32, 2), (48, 2)])
def test_the_released_codes_level_is_a_quarter_of_the_finest(deep_editor, side, level):
    """16 × 16 at 512²: two halvings, or none where that would leave under 8 × 8 positions."""
    clip = Clip(np.random.default_rng(0).integers(0, 255, (1, 4 * side, 4 * side, 3), dtype=np.uint8), 8.0)
    trace = deep_editor.invert(clip, prompt=SOURCE, steps=2)
    t = trace.timesteps[0]
    preset = task("shape", "released")
    sites = [site for site in trace.sites if site.kind == "cross" and site.level == level]
    soft = np.mean([trace.word_map(t, site, find_word(SOURCE, "car")) for site in sites], axis=0)
    plan = deep_editor.plan_masks(trace, word="car", task=preset)
    assert np.array_equal(plan.object_at[t], resize(extract(soft, preset.tau), trace.grid))


def test_a_word_that_is_not_there(editor, trace):
    with pytest.raises(PromptError, match="red, car"):
        editor.plan_masks(trace, word="bus", task=task())


def test_a_flat_map_is_an_error(editor, trace):
    flat = {key: soft._replace(scales=soft.scales * 0) for key, soft in trace.maps.items()}
    with pytest.raises(MaskError, match="flat"):
        editor.plan_masks(replace(trace, maps=flat), word="car", task=task())


def test_maps_survive_rounding(trace):
    """Quantised maps keep probabilities to half a step of each frame's own scale."""
    for soft in trace.maps.values():
        assert soft.values.dtype == np.uint8 and soft.values.max() == 255
        assert soft.scales.min() > 0


def test_a_picked_cell_is_the_mask_and_a_picked_row_each_steps_own(editor, trace):
    site = next(s for s in trace.sites if s.name.startswith("up_blocks") and s.kind == "cross")
    t = trace.timesteps[1]
    cell = editor.plan_masks(trace, word="car", task=task("shape", time_aware=False), site=site.short, timestep=t + 3)
    made = resize(candidate(trace, "car", t=t, site=site, tau=0.8), trace.grid)
    assert (cell.choice.site, cell.choice.timestep, cell.choice.origin) == (site, t, "picked")
    assert all(np.array_equal(m, made) for m in cell.object_at.values()) and cell.cells == ((t, site.name),)
    row = editor.plan_masks(trace, word="car", task=task(time_aware=True), site=site.name)
    assert np.array_equal(row.object_at[t], made) and len(row.cells) == STEPS
    with pytest.raises(SettingError, match="Known: "):
        editor.plan_masks(trace, word="car", task=task(), site="up 9.9")


def test_a_painted_mask_grows_as_any_other(editor, trace):
    mask = everywhere(trace, False)
    mask[:, 16:32, 16:32] = True
    plan = editor.plan_masks(trace, word="car", task=task(dilate=1), mask=mask)
    assert plan.shown.sum() > mask.sum() and plan.shown[mask].all()
    assert np.array_equal(editor.plan_masks(trace, word="car", task=task(), mask=mask).shown, mask)


def test_the_tokens_of_either_prompt_are_its_own(editor, trace):
    """Without the second word, each token of the edit prompt from there on is the next one of the source's."""
    tokens = session(editor, trace, task(), SOURCE.replace("red ", "")).tokens
    assert tokens.source_of[:9].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9] and not tokens.changed.any()


def test_a_glance_is_the_middle_frame_without_the_noise_that_is_predicted(editor, trace):
    """Where no noise is left below the lowest timestep, the last step's is the clip itself."""
    own = Editor(replace(editor.backbone, scheduler=tiny_scheduler(set_alpha_to_one=True)))
    *_, last = own.edit_steps(trace, prompt=EDIT, task=task(**CLOSED), word="car", glances=STEPS)
    frames = own.backbone.decode(run(own, trace, task(**CLOSED)))
    assert np.abs(last.picture.astype(int) - frames[2]).max() <= 1 < np.abs(frames[1].astype(int) - frames[2]).max()


def test_glances_show_the_clip_on_its_way(editor, trace):
    steps = list(editor.edit_steps(trace, prompt=EDIT, task=task(), word="car", glances=2))
    seen = [i for i, step in enumerate(steps) if step.picture is not None]
    assert seen == [1, 3]
    assert steps[1].picture.shape == trace.clip.frames.shape[1:] and steps[1].picture.dtype == np.uint8


@pytest.mark.parametrize("name", ["attribute", "shape"])
def test_watching_new_words_changes_nothing_and_sees_every_cell(editor, trace, name):
    steps = editor.edit_steps(trace, prompt="a blue car flying", task=task(name), word="car", watch=True)
    watched = finish(steps)
    assert torch.equal(watched.latents, run(editor, trace, task(name), prompt="a blue car flying"))
    assert watched.watched == (1, 3)
    cross = [site for site in trace.sites if site.kind == "cross"]
    assert watched.maps.keys() == {(t, site.name) for t in trace.timesteps for site in cross}
    for site in cross:
        maps = watched.maps[trace.timesteps[0], site.name]
        assert maps.values.shape == (2, len(trace.clip.frames), *site.grid(trace.grid))


def test_an_edit_that_is_the_inversion_watches_the_inversions_maps(editor, trace):
    """The first step's own maps, of a word that the source calls otherwise, where the rest of the row is the same."""
    top = trace.timesteps[-1]
    again = replace(trace, latents=trace.latents | {top: trace.latents[trace.below(top)]})
    other = replace(again, prompt="a red truck driving on the grass")
    steps = editor.edit_steps(other, prompt=SOURCE, task=task(**CLOSED), word="truck", watch=True)
    seen = finish(steps)
    assert seen.watched == (2,)
    for site in trace.sites:
        if site.kind == "cross":
            assert close(
                torch.from_numpy(seen.maps[top, site.name].of([0])),
                torch.from_numpy(trace.word_map(top, site, [2])),
                relative=0.02,
            )


@pytest.fixture(scope="module")
def still(editor):
    """The editor with layers over time that pass frames on as they are."""
    unet = copy.deepcopy(editor.backbone.unet)
    for name, module in unet.named_modules():
        if name.startswith("transformer_in") or "temp_" in name:
            if name.endswith(("proj_out", "conv4.3")):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
    return Editor(replace(editor.backbone, unet=unet))


@pytest.fixture(scope="module")
def long_clip():
    frames = np.full((20, 32, 32, 3), 60, np.uint8)
    for i in range(20):
        frames[i, 8:24, i : 12 + i] = (220, 80, 40)
    return Clip(frames, 8.0)


def spanning(editor, native):
    return Editor(replace(editor.backbone, native_frames=native))


@pytest.mark.parametrize("painted", [False, True])
def test_spans_change_nothing_where_no_layer_looks_over_time(still, long_clip, painted):
    """With masks from the maps, and with one of the frames' own that is joined with the edit word's."""
    made = []
    mask = np.arange(20 * 32 * 32).reshape(20, 32, 32) % 7 < 3 if painted else None
    for native in (20, 8):
        own = spanning(still, native)
        trace = own.invert(long_clip, prompt=SOURCE, steps=2)
        made.append((trace, run(own, trace, task("shape", union=painted), mask=mask)))
    (whole, one), (parts, many) = made
    assert close(parts.latents[parts.timesteps[-1]], whole.latents[whole.timesteps[-1]])
    for cell, soft in whole.maps.items():
        assert np.abs(soft.of([3]) - parts.maps[cell].of([3])).max() < 0.01 * soft.of([3]).max()
    assert close(many, one, relative=1e-4)


def test_a_long_clip_is_seen_in_spans_of_the_native_length(editor, long_clip):
    own, seen = spanning(editor, 8), []
    predict = own.backbone.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(own.backbone), "predict", lambda self, x, *rest: seen.append(x.shape[2]) or predict(x, *rest)
        )
        trace = own.invert(long_clip, prompt=SOURCE, steps=2)
        run(own, trace, task())
    assert set(seen) == {8}
    assert trace.latents[CLEAN].shape[2] == 20


@pytest.mark.parametrize("native", [4, 3])
def test_where_the_sources_features_come_from_makes_no_difference(editor, clip, native):
    """Replayed beside the edit or alone before it, stored on the device or in host RAM: by the maps of one inversion,
    since another batch's rounding may turn a mask's pixel."""
    own = spanning(editor, native)
    trace = own.invert(clip, prompt=SOURCE, steps=STEPS)
    wanted = run(own, trace, task("shape"))
    assert close(run(own, trace, task("shape"), one_row=True), wanted)
    for host in (False, True):
        stored = own.invert(clip, prompt=SOURCE, steps=STEPS, store=task("shape"), host=host)
        assert len(stored.features) and all(close(stored.latents[t], trace.latents[t]) for t in trace.latents)
        stored = replace(trace, features=stored.features)
        assert close(run(own, stored, task("shape")), wanted)
        assert close(run(own, stored, task("shape"), one_row=True), wanted)


def test_spans_side_by_side_are_as_one_after_the_other(editor, clip):
    """Three spans, of which two run together and the last alone: latents, maps, features and reconstruction."""
    long = Clip(np.concatenate([clip.frames] * 3)[:10], clip.fps)
    own = spanning(editor, 4)
    assert len(own.spans(10)) == 3
    traces, used, restored = [], [], []
    for one_row in (True, False):
        used.append(Usage())
        options = {"prompt": SOURCE, "steps": STEPS, "store": task("shape"), "usage": used[-1], "one_row": one_row}
        traces.append(own.invert(long, **options))
        restored.append(finish(own.reconstruct_steps(traces[-1], used[-1], one_row=one_row)))
    theirs, ours = traces
    assert [(u.forwards, u.rows) for u in used] == [(6 * STEPS, 6 * STEPS), (4 * STEPS, 6 * STEPS)]
    assert close(*restored) and all(close(ours.latents[t], theirs.latents[t]) for t in theirs.latents)
    for at, soft in theirs.maps.items():
        assert np.abs(ours.maps[at].values.astype(int) - soft.values).max() <= 1
        assert np.allclose(ours.maps[at].scales, soft.scales, rtol=1e-4)
    kept = theirs.features._kept
    assert len(kept) == len(ours.features)
    assert all(close(a, b) for key in kept for a, b in zip(ours.features.read(key), kept[key], strict=True))


def test_one_row_at_a_time_is_one_row_at_a_time(editor, trace):
    usage = Usage()
    run(editor, trace, task(), one_row=True, usage=usage)
    assert usage.forwards == usage.rows > 2 * STEPS


def test_halves_draw_what_singles_draw():
    """bf16, which gives 46 dB, and weights rounded to eight bits 31 dB; `test_gpu.py` has fp16 too, with eight times
    finer steps."""
    own = examples()[0]
    shown = read_clip(own.clip, frames=2, size=(64, 64))
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        editor = Editor.load("mini", dtype=dtype, device="cpu")
        trace = editor.invert(shown, prompt=own.settings.source, steps=STEPS)
        assert {latents.dtype for latents in trace.latents.values()} == {torch.float32}
        preset = load_preset(own.settings.task)
        drawn.append(editor.edit(trace, prompt=own.settings.edit, task=preset, guidance=4.0).clip.frames)
    assert 40 <= psnr(drawn[1], drawn[0]) < 70


@pytest.mark.parametrize(("name", "method"), ALL)
@pytest.mark.parametrize(("word", "other"), [("car", "car#2"), ("car#2", "car")])
def test_of_a_word_that_stands_twice_its_own_maps_are_the_mask(editor, twice, name, method, word, other):
    """With the two words' tokens exchanged, the mask of the one is the mask of the other."""
    tokens = list(twice.tokens)
    tokens[1], tokens[4] = tokens[4], tokens[1]
    own, its = (editor.plan_masks(twice, word=one, task=task(name, method)).shown for one in (word, other))
    exchanged = editor.plan_masks(replace(twice, tokens=tuple(tokens)), word=other, task=task(name, method)).shown
    assert np.array_equal(own, exchanged)
    assert np.array_equal(own, its) == (task(name, method).mask == "none")


@pytest.mark.parametrize(
    ("prompt", "word", "at"), [("a car passing a bus", "car#2", 4), ("a bus passing a car", "car", 1)]
)
def test_the_word_that_changed_is_edited_and_its_columns_are_the_new_words(editor, twice, prompt, word, at):
    done = editor.edit(twice, prompt=prompt, task=task("shape"))
    assert np.array_equal(done.plan.shown, editor.plan_masks(twice, word=word, task=task("shape")).shown)
    rows = editor.backbone.word_tokens(prompt)
    plan, preset = done.plan, task("shape")
    one = SESSIONS["freemask"](editor.backbone, twice, plan, preset, prompt=prompt, word=word)
    assert one.edit_columns == list(rows[at])


@pytest.fixture(scope="module")
def twice(editor, clip):
    """The trace of a prompt in which a word stands twice; the second looks where the first does, upside down."""
    trace = editor.invert(clip, prompt="a car passing a car", steps=STEPS)
    (first,), (second,) = trace.tokens[1], trace.tokens[4]
    for soft in trace.maps.values():
        soft.values[second] = soft.values[first][:, ::-1]
        soft.scales[second] = soft.scales[first]
    return trace
