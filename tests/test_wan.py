"""A transformer that follows a flow: its path, its strides in time, its sites and hooks, and FlowEdit on it."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_graphs import traced
from tiny import tiny_wan

from freemask import Editor, load_preset
from freemask.clips.strides import latent_frames, of_frames, padded, to_frames, to_latent
from freemask.clips.video import Clip
from freemask.errors import BackboneError, SettingError
from freemask.families import graphs
from freemask.families.attention import attend
from freemask.families.ddim import CLEAN
from freemask.families.flow import Flow
from freemask.families.graphs import Usage
from freemask.jobs.check import refuse_pair
from freemask.masks.trace import load_trace, save_trace
from freemask.settings import make_settings
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE, EDIT = "a red car on the grass", "a blue car on the grass"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def wan(folder) -> Editor:
    return Editor.load(str(folder), device="cpu")


def moving(frames: int, height: int = 32, width: int = 48) -> Clip:
    """A bright square that moves over grey, not square."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for i, frame in enumerate(video):
        frame[8:24, 4 + 2 * i : 20 + 2 * i] = (220, 80, 40)
    return Clip(video, 8.0)


@pytest.fixture(scope="module")
def drawn(wan):
    return wan.invert(moving(7), prompt=SOURCE, steps=4, drawn=True)


# ---------------------------------------------------------------------- strides


@pytest.mark.parametrize(("frames", "held"), [(1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (13, 4), (81, 21)])
def test_a_latent_frame_holds_the_first_frame_and_then_four_each(frames, held):
    assert latent_frames(frames, 4) == held
    each = of_frames(frames, 4)
    assert each[0] == 0
    assert each[-1] == held - 1
    assert np.bincount(each)[1:-1].tolist() == [4] * (held - 2 if held > 1 else 0)


def test_frames_are_padded_by_the_last_one():
    clip = np.arange(6)[:, None]
    assert padded(clip, 4)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert padded(clip[:5], 4) is not None
    assert len(padded(clip[:5], 4)) == 5
    assert padded(clip, 1) is clip


def test_a_mask_holds_on_a_latent_frame_where_it_holds_on_any_of_its_frames():
    mask = np.zeros((7, 1, 2), bool)
    mask[3, 0, 0] = mask[6, 0, 1] = True
    assert to_latent(mask, 4)[:, 0].tolist() == [[False, False], [True, False], [False, True]]
    back = to_frames(to_latent(mask, 4), 7, 4)
    assert back[:, 0, 0].tolist() == [False, True, True, True, True, False, False]
    assert to_latent(mask, 1) is mask


# ---------------------------------------------------------------------- the path


def test_a_flows_labels_are_shifted_even_steps():
    assert Flow(1.0).timesteps(4) == (250, 500, 750, 1000)
    assert Flow(3.0).timesteps(4) == (500, 750, 900, 1000)  # 3u / (1 + 2u)
    assert Flow(3.0).levels((500, 1000)) == {CLEAN: 0.0, 500: 0.5, 1000: 1.0}


def test_a_step_of_euler_by_hand():
    """x − (σ − σ')·v in fp64, and at the end the clip where the velocity is the true one."""
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 2, 3, 4, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    path = Flow(2.0)
    levels = path.levels(path.timesteps(5))
    v = noise - x
    walk = list(path.denoise(lambda *_: v, noise, levels))
    first = noise - (1.0 - levels[sorted(levels)[-2]]) * v
    torch.testing.assert_close(walk[0][1], first, rtol=0, atol=1e-12)
    torch.testing.assert_close(walk[-1][1], x, rtol=0, atol=1e-12)
    half = path.noised(x, noise, 0.5)
    torch.testing.assert_close(path.clean(half, v, 0.5), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.noise(half, v, 0.5), noise, rtol=0, atol=1e-12)


def test_the_correction_makes_inversion_exact_to_the_second_order():
    """On dx/dσ = x the way up and down again ends where it began: within 4 % of a plain Euler's miss."""
    path = Flow(1.0)
    levels = path.levels(path.timesteps(50))
    x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)

    def field(x, t, level):
        return x

    asked = []
    up = list(path.invert(field, x, levels, solver="ddim", draft=lambda x, t, level: asked.append(t) or x))
    assert asked == [t for t, _ in up]  # one draft for each step, under its label
    down = list(path.denoise(field, up[-1][1], levels))[-1][1]
    plain = (1 + 1 / 50) ** 50 * (1 - 1 / 50) ** 50
    assert abs(float(down) - 1) < 0.04 * abs(plain - 1)


def test_the_second_order_is_nearer():
    path = Flow(1.0)
    levels = path.levels(path.timesteps(20))
    top = torch.full((1, 1, 1, 1, 1), np.e, dtype=torch.float64)
    ends = {
        solver: float(list(path.denoise(lambda x, t, level: x, top, levels, solver=solver))[-1][1])
        for solver in ("ddim", "dpm")
    }
    assert abs(ends["dpm"] - 1) < 0.2 * abs(ends["ddim"] - 1)
    with pytest.raises(SettingError, match="add no noise"):
        next(path.denoise(lambda x, t, level: x, top, levels, eta=0.5))


# ---------------------------------------------------------------------- the family


def test_a_pipeline_in_wans_layout_loads(wan):
    backbone = wan.backbone
    assert [site.short for site in backbone.sites] == [f"block {i}" for i in range(3) for _ in range(2)]
    assert [site.kind for site in backbone.sites] == ["self", "cross"] * 3
    assert backbone.path == Flow(3.0)
    assert (backbone.vae_factor, backbone.multiple, backbone.time_stride, backbone.native_frames) == (8, 16, 4, 21)
    assert backbone.word_tokens(SOURCE) == tuple((i,) for i in range(6))  # no mark begins the prompt


def test_text_after_the_end_is_zero(wan):
    states = wan.backbone.text([SOURCE])
    assert states.shape == (1, 32, 16)
    assert bool(states[0, :7].abs().sum(-1).all())
    assert not states[0, 7:].any()


@pytest.mark.parametrize("frames", [5, 9, 13])
def test_encoding_norms_by_channel_and_decoding_undoes_it(wan, frames):
    clip = moving(frames)
    latents = wan.backbone.encode(clip.frames)
    assert latents.shape == (1, 16, latent_frames(frames, 4), 4, 6)
    vae = wan.backbone.vae
    x = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        raw = vae.encode(x).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (raw - mean) / std)
    assert wan.backbone.decode(latents).shape == clip.frames.shape


def test_padded_frames_leave_the_others_as_they_were(wan):
    clip = moving(9)
    held = Clip(np.concatenate([clip.frames[:6], clip.frames[5:6], clip.frames[5:6], clip.frames[5:6]]), 8.0)
    assert torch.equal(wan.backbone.encode(clip.frames[:6]), wan.backbone.encode(held.frames))
    assert len(wan.decode(wan.backbone.encode(clip.frames[:6]), Clip(clip.frames[:6], 8.0)).frames) == 6


def test_hooks_that_change_nothing_change_nothing(wan):
    """Rotary positions and norms are the library's own: within rounding, and to the bit once the hooks are gone."""
    backbone = wan.backbone
    x, text = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0)), backbone.text([SOURCE, EDIT])
    before = {site.name: backbone.unet.get_submodule(site.name).processor for site in backbone.sites}
    plain = backbone.predict(x, 500, text)
    met = []

    def look(site, q, k, v):
        met.append((site, tuple(q.shape), tuple(k.shape)))
        return attend(q, k, v)

    hooked = backbone.predict(x, 500, text, hooks=dict.fromkeys(backbone.sites, look))
    assert float((hooked - plain).abs().max()) < 1e-5 * float(plain.abs().max())
    assert [site for site, *_ in met] == list(backbone.sites)
    joint, cross = met[0], met[1]
    assert joint[1:] == ((2, 2, 18, 12), (2, 2, 18, 12))  # the positions of all three latent frames at once
    assert cross[1:] == ((6, 2, 6, 12), (6, 2, 32, 12))  # frame by frame
    assert {name: backbone.unet.get_submodule(name).processor for name in before} == before
    assert torch.equal(backbone.predict(x, 500, text), plain)


def test_stock_processors_are_back_after_an_error(wan):
    backbone = wan.backbone
    before = [backbone.unet.get_submodule(site.name).processor for site in backbone.sites]

    def fail(*_):
        raise RuntimeError("hook")

    with pytest.raises(RuntimeError, match="hook"):
        backbone.predict(torch.zeros(1, 16, 2, 4, 6), 500, backbone.text([""]), hooks={backbone.sites[3]: fail})
    assert [backbone.unet.get_submodule(site.name).processor for site in backbone.sites] == before


def test_maps_are_of_latent_frames_and_masks_of_frames(wan, tmp_path):
    trace = wan.invert(moving(7), prompt=SOURCE, steps=3)
    site = next(site for site in trace.sites if site.kind == "cross")
    t = trace.timesteps[0]
    assert trace.maps[t, site.name].values.shape == (6, 3, 2, 3)  # six words' tokens
    soft = trace.word_map(t, site, [2])
    assert soft.shape == (7, 2, 3)
    assert all(np.array_equal(soft[1], soft[i]) for i in (2, 3, 4))
    assert not np.array_equal(soft[0], soft[1])
    assert all(trace.seen(t) == t for t in trace.timesteps)  # no latent of the level below was seen at last
    save_trace(tmp_path / "trace.safetensors", trace)
    again = load_trace(tmp_path / "trace.safetensors", torch.device("cpu"))
    assert (again.stride, again.seen_below, again.drawn, again.sites) == (4, False, False, trace.sites)


@pytest.mark.parametrize("frames", [5, 7])
@pytest.mark.parametrize("method", ["freemask", "fatezero", "p2p", "released", "plain"])
def test_every_method_edits_with_it(wan, method, frames):
    clip = moving(frames)
    trace = wan.invert(clip, prompt=SOURCE, steps=3)
    mask = np.zeros((frames, 32, 48), bool)
    mask[:, 8:24, 8:32] = True
    for task in ("attribute", "shape"):
        preset = load_preset(task, method)
        given = mask if method in ("freemask", "fatezero", "released") else None
        edited = wan.edit(trace, prompt=EDIT, task=preset, word="car", guidance=3.0, mask=given)
        assert edited.clip.frames.shape == clip.frames.shape


def test_rows_of_joint_self_attention_are_the_sources_outside_the_object(wan):
    """Eq. 10 on a transformer: a query keeps the source's map by its place in space and in time."""
    clip = moving(5)
    trace = wan.invert(clip, prompt=SOURCE, steps=2)
    task = replace(load_preset("attribute"), alpha_self=1.0, alpha_cross=0.0, alpha_latent=0.0, free_self=True)
    none, every = np.zeros((5, 32, 48), bool), np.ones((5, 32, 48), bool)
    options = {"prompt": EDIT, "task": task, "word": "car", "guidance": 3.0}
    held, free = (finish(wan.edit_steps(trace, mask=mask, **options)).latents for mask in (none, every))
    unfused = replace(task, alpha_self=0.0)
    loose = finish(wan.edit_steps(trace, mask=every, **(options | {"task": unfused}))).latents
    rounding = float((free - loose).abs().max())  # E everywhere: nothing is fused
    assert rounding < 1e-5 * float(loose.abs().max())
    assert float((held - loose).abs().max()) > max(1e-5, 10 * rounding)


def test_a_long_clip_is_seen_in_spans_of_latent_frames(wan):
    few = Editor(replace(wan.backbone, native_frames=2))
    assert [(span.start, span.stop) for span in few.spans(13)] == [(0, 2), (2, 4)]
    trace = few.invert(moving(13), prompt=SOURCE, steps=2)
    assert trace.latents[CLEAN].shape[2] == 4
    edited = few.edit(trace, prompt=EDIT, task="attribute", guidance=3.0)
    assert len(edited.clip.frames) == 13


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("transformer/config.json", {"num_layers": 40}, "14B"),
        ("transformer/config.json", {"in_channels": 48, "out_channels": 48}, "48 channels"),
        ("transformer/config.json", {"in_channels": 36}, "Image-to-video"),
        ("transformer/config.json", {"patch_size": [2, 2, 2]}, "Patches of 2x2x2"),
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "two experts"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "no flow with one shift"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "no flow with one shift"),
        ("text_encoder/config.json", {"architectures": ["GemmaModel"]}, "GemmaModel"),
    ],
)
def test_layouts_that_do_not_work_yet_are_refused_with_the_reason(tmp_path, file, changes, told):
    path = tiny_wan(tmp_path) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BackboneError, match=told):
        Editor.load(str(tmp_path), device="cpu")


def test_what_a_transformer_has_not_is_refused(folder):
    settings = partial(make_settings, source=SOURCE, edit=EDIT, task="attribute", backbone=str(folder))
    with pytest.raises(SettingError, match="VideoDirector is for diffusion models"):
        refuse_pair(settings(method="videodirector"), "flow")
    with pytest.raises(SettingError, match="FlowEdit is for transformers"):
        refuse_pair(settings(method="flowedit"), "diffusion")
    with pytest.raises(SettingError, match="no coarse layers"):
        refuse_pair(settings(deep_cache=2), "flow")
    with pytest.raises(SettingError, match="add no noise"):
        refuse_pair(settings(eta=0.5), "flow")
    with pytest.raises(SettingError, match="leave source_guidance out"):
        settings(source_guidance=2.0)
    with pytest.raises(SettingError, match="leave strength out"):
        settings(method="videodirector", strength=0.5)


# ---------------------------------------------------------------------- FlowEdit


def _moved(wan, trace, task, **options):
    options = {"prompt": EDIT, "word": "car", "guidance": 4.0} | options
    return finish(wan.edit_steps(trace, task=task, **options)).latents


def test_noise_is_drawn_and_known_exactly(wan, drawn):
    again = wan.invert(moving(7), prompt=SOURCE, steps=4, drawn=True)
    other = wan.invert(moving(7), prompt=SOURCE, steps=4, drawn=True, seed=1)
    for t in drawn.timesteps:
        assert torch.equal(drawn.latents[t], again.latents[t])
        assert not torch.equal(drawn.latents[t], other.latents[t])
        noise = (drawn.latents[t] - (1 - t / 1000) * drawn.latents[CLEAN]) / (t / 1000)
        assert abs(float(noise.std()) - 1) < 0.1
    assert len(drawn.maps) == 4 * 3  # every level and block


@pytest.mark.parametrize("n_avg", [1, 2])
def test_equal_prompts_and_guidances_give_the_source_back(wan, drawn, n_avg):
    task = load_preset("attribute", "flowedit")
    task = replace(task, mask="none", strength=1.0, flow=replace(task.flow, source_guidance=4.0, n_avg=n_avg))
    same = _moved(wan, drawn, task, prompt=SOURCE)
    torch.testing.assert_close(same, drawn.latents[CLEAN], rtol=0, atol=1e-4)


def test_no_mask_gives_the_source_and_a_full_one_the_unmasked_method(wan, drawn):
    task = load_preset("attribute", "flowedit")
    none, every = np.zeros((7, 32, 48), bool), np.ones((7, 32, 48), bool)
    source = drawn.latents[CLEAN]
    assert torch.equal(_moved(wan, drawn, task, mask=none), source)
    free = _moved(wan, drawn, replace(task, mask="none"))
    assert not torch.equal(free, source)
    assert torch.equal(_moved(wan, drawn, task, mask=every), free)
    half = none.copy()
    half[:, :, 24:] = True
    kept = _moved(wan, drawn, task, mask=half)
    assert torch.equal(kept[..., :3], source[..., :3])
    assert not torch.equal(kept[..., 3:], source[..., 3:])


def test_one_step_by_hand(wan):
    """Algorithm 1 at one level, from velocities that are asked one row at a time."""
    trace = wan.invert(moving(5), prompt=SOURCE, steps=1, drawn=True)
    task = load_preset("attribute", "flowedit")
    task = replace(task, mask="none", strength=1.0, flow=replace(task.flow, source_guidance=2.0))
    backbone, x, noisy = wan.backbone, trace.latents[CLEAN], trace.latents[1000]
    plain, edit, source = (backbone.predict(noisy, 1000, backbone.text([p])).double() for p in ("", EDIT, SOURCE))
    delta = (plain + 4.0 * (edit - plain)) - (plain + 2.0 * (source - plain))
    torch.testing.assert_close(_moved(wan, trace, task).double(), x.double() - delta, rtol=1e-4, atol=1e-4)


def test_strength_leaves_the_highest_levels_out(wan, drawn):
    task = replace(load_preset("attribute", "flowedit"), mask="none")
    steps = list(wan.edit_steps(drawn, prompt=EDIT, task=replace(task, strength=0.5), word="car", guidance=4.0))
    assert [step.timestep for step in steps] == list(drawn.timesteps[1::-1])
    assert steps[-1].total == 2


@pytest.mark.parametrize(
    "changes",
    [{"mask": "soft"}, {"consistency": 0.5}, {"contrast": 1.0}, {"lift": 2.0}, {"n_avg": 2}, {"source_guidance": 1.0}],
)
def test_each_term_does_something(wan, drawn, changes):
    task = load_preset("attribute", "flowedit")
    mask = np.zeros((7, 32, 48), bool)
    mask[:, :, :24] = True
    one = _moved(wan, drawn, task, mask=mask)
    other = _moved(wan, drawn, replace(task, flow=replace(task.flow, **changes)), mask=mask)
    assert not torch.equal(one, other)
    assert bool(torch.isfinite(other).all())


def test_keys_and_values_are_lent_outside_the_mask_alone(wan, drawn):
    task = replace(load_preset("attribute", "flowedit"), alpha_self=1.0)
    every = np.ones((7, 32, 48), bool)
    half = every.copy()
    half[:, :, 24:] = False
    closed = replace(task, alpha_self=0.0)
    assert torch.equal(_moved(wan, drawn, task, mask=every), _moved(wan, drawn, closed, mask=every))
    assert not torch.equal(_moved(wan, drawn, task, mask=half), _moved(wan, drawn, closed, mask=half))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_one_at_a_time_say_the_same(wan, drawn, share):
    task = load_preset("attribute", "flowedit")
    task = replace(task, alpha_self=share, flow=replace(task.flow, n_avg=2))
    together, alone = (_moved(wan, drawn, task, one_row=one_row) for one_row in (False, True))
    assert float((together - alone).abs().max()) < 1e-4 * float(together.abs().max())


def test_the_consistency_term_draws_towards_the_source(wan, drawn):
    task = replace(load_preset("attribute", "flowedit"), mask="none")
    far, near = (
        float((_moved(wan, drawn, replace(task, flow=replace(task.flow, consistency=c))) - drawn.latents[CLEAN]).norm())
        for c in (0.0, 0.5)
    )
    assert near < far


def test_a_trace_of_the_wrong_kind_is_refused(wan, drawn, editor, clip):
    trace = wan.invert(moving(5), prompt=SOURCE, steps=2)
    with pytest.raises(SettingError, match="begins at the clip with fresh noise"):
        wan.edit(trace, prompt=EDIT, task="attribute", method="flowedit")
    own = editor.invert(clip, prompt=SOURCE, steps=2, drawn=True)
    with pytest.raises(SettingError, match="FlowEdit is for transformers"):
        editor.edit(own, prompt=EDIT, task="attribute", method="flowedit")


def test_every_method_of_the_bench_runs_on_a_transformer(wan, tmp_path):
    from freemask.bench.methods import presets, usual_methods

    assert {"flowedit-mmc", "flowedit-block", "sdedit", "freemask"} <= set(usual_methods("wan"))
    known = presets("attribute")
    assert all(known[name].method == "flowedit" for name in usual_methods("wan") if name.startswith("flowedit"))
    assert known["sdedit"].strength < 1


@pytest.mark.parametrize("method", ["freemask", "flowedit"])
def test_recorded_passes_say_what_passes_say(wan, drawn, monkeypatch, method):
    """As CUDA graphs run them: what differs from step to step reaches them (`test_graphs`)."""
    trace = drawn if method == "flowedit" else wan.invert(moving(7), prompt=SOURCE, steps=4)
    task = replace(load_preset("shape", method), alpha_self=0.6)
    if method == "flowedit":
        task = replace(task, strength=1.0, flow=replace(task.flow, lift=1.0))
    mask = np.zeros((7, 32, 48), bool)
    mask[:, 8:24, 4:28] = True
    found = []
    for recorder in (lambda backbone: None, lambda backbone: traced):
        monkeypatch.setattr(graphs, "recorder", recorder)
        usage = Usage()
        options = {"prompt": EDIT, "task": task, "word": "car", "guidance": 3.0, "mask": mask, "watch": True}
        found.append(finish(wan.edit_steps(trace, usage=usage, **options)))
    assert usage.recorded > 0 and usage.why == ""
    plain, recorded = found
    assert float((plain.latents - recorded.latents).abs().max()) < 1e-4 * float(plain.latents.abs().max())
    assert plain.maps.keys() == recorded.maps.keys()
    for cell in plain.maps:
        assert np.abs(plain.maps[cell].values.astype(int) - recorded.maps[cell].values).max() <= 1
