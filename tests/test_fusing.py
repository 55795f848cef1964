"""What an edit's hooks make of the attention of their rows, against Eq. 9-11 written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import drawn_trace, tiny_scheduler

from freemask.clips.video import Clip
from freemask.families.ddim import CLEAN
from freemask.families.paths import Diffusion
from freemask.families.sites import Site
from freemask.masks.candidates import extract, resize
from freemask.masks.mmc import Choice
from freemask.masks.plan import MaskPlan, plan_masks
from freemask.masks.trace import Trace
from freemask.methods.base import window, windows
from freemask.methods.fusing import TokenMap
from freemask.methods.sessions import SESSIONS
from freemask.presets import load_preset

pytestmark = pytest.mark.numeric

FRAMES, GRID, HEADS, WIDTH, TOKENS = 2, (4, 24), 2, 4, 5
SELF, CROSS, TIME = (Site(f"up_blocks.1.{kind}", kind, 0) for kind in ("self", "cross", "temporal"))
COARSE = Site("up_blocks.0.cross", "cross", 1)
KINDS = {"self", "cross", "temporal"}
LATER, FIRST = 1, 501  # the timesteps, in which masks differ
SOURCE_OF = torch.tensor([0, 2, -1, 1, 4])  # columns of the source, -1 for none
CHANGED = torch.tensor([False, False, True, True, False])


def drawn_mask(fill, seed):
    """(f, h, w) bool: all, none, or some of it and some of each frame."""
    some = np.random.default_rng(seed).random((FRAMES, *GRID)) > 0.5
    return {"all": np.ones_like(some), "none": np.zeros_like(some), "some": some}[fill]


class Words:
    """The text side of a backbone: each word a token."""

    name = "words"
    path = Diffusion(tiny_scheduler())

    def word_tokens(self, prompt):
        return tuple((i + 1,) for i in range(len(prompt.split())))

    def text(self, prompts):
        return torch.zeros(len(prompts), TOKENS, WIDTH)


def fusing(fill="some", *, watched=(), columns=(), swapped=None, method="freemask", **changes):
    clip = Clip(np.zeros((FRAMES, 16, 96, 3), np.uint8), 8.0)
    latents = dict.fromkeys((CLEAN, LATER, FIRST), torch.zeros(1, 4, FRAMES, *GRID))
    trace = Trace(clip, "a car", (LATER, FIRST), (SELF, CROSS, TIME, COARSE), ((1,), (2,)), latents)
    masks = {t: drawn_mask(fill, t) for t in (LATER, FIRST)}
    plan = MaskPlan(masks, masks[LATER].repeat(4, 1).repeat(4, 2), Choice(COARSE, LATER, "measured"))
    task = replace(load_preset("shape", method), max_positions=None, **changes)
    session = SESSIONS[method](Words(), trace, plan, task, prompt="a bus", word="car")
    session.tokens, session.edit_columns = TokenMap(SOURCE_OF, CHANGED), list(columns)
    session.watched, session.watched_tokens = tuple(range(len(watched))), [list(one) for one in watched]
    if swapped is not None:
        session.swapped = swapped
    return session


def maps(q, k):
    return (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)


def step(one, t, kinds=KINDS, *, keep_changed=False):
    """A step begins in which some kinds are fused; returns the names of its rows."""
    one.windows = {kind: len(one.order) for kind in kinds}
    one.changed_window = 0 if keep_changed else len(one.order)
    one.now = tuple(row.name for row in one.rows(t, torch.zeros(1, 4, FRAMES, *GRID)))
    return one.now


def passed(one, site, seed=0):
    """The outputs of a site's hook for the rows of the step, and each row's Q, K and V, (n, heads, s, d)."""
    h, w = site.grid(GRID)
    n, s = (h * w, FRAMES) if site.kind == "temporal" else (FRAMES, h * w)
    told = TOKENS if site.kind == "cross" else s
    generator = torch.Generator().manual_seed(seed)
    rows = [[torch.randn(n, HEADS, length, WIDTH, generator=generator) for length in (s, told, told)] for _ in one.now]
    out = one.hooks(one.span, one.now)[site](site, *map(torch.cat, zip(*rows, strict=True)))
    return out.chunk(len(rows)), rows


def hooked(one, site, t, *, keep_changed=False):
    """A step in which every kind is fused begins, and passes a site after the others of its level."""
    assert step(one, t, keep_changed=keep_changed) == ("plain", "edit", "source")
    for other in (SELF, CROSS, TIME):
        passed(one, other, seed=1)
    return passed(one, site)


def end(one):
    """The step's forwards are over."""
    one.combine(torch.zeros(1), {name: torch.zeros(1, 1, 1) for name in one.now})


def flat(mask):
    return torch.from_numpy(mask.reshape(len(mask), -1))


def others_are_plain(outs, rows):
    return all(torch.allclose(outs[i], maps(*rows[i][:2]) @ rows[i][2], atol=1e-5) for i in (0, 2))


@pytest.mark.parametrize("fill", ["some", "all", "none"])
@pytest.mark.parametrize("region", ["object", "background"])
@pytest.mark.parametrize("free", [True, False])
def test_self_rows_are_the_edits_in_e_and_the_sources_elsewhere(fill, region, free):
    """A = E·A1 + (1−E)·A0 with the step's own mask, nothing in E where self-attention is not free."""
    one = fusing(fill, region=region, free_self=free)
    for t in (FIRST, LATER):
        outs, rows = hooked(one, SELF, t)
        (_, (q1, k1, v1), (q0, k0, _)) = rows
        mask = drawn_mask(fill, t)
        e = flat(mask if region == "object" else ~mask)[:, None, :, None].float() * free
        assert torch.allclose(outs[1], (e * maps(q1, k1) + (1 - e) * maps(q0, k0)) @ v1, atol=1e-5)
        assert others_are_plain(outs, rows)


@pytest.mark.parametrize("fill", ["some", "all", "none"])
@pytest.mark.parametrize(("delta", "region"), [(0, "object"), (0, "background"), (1, "object"), (1, "background")])
def test_temporal_queries_and_keys_are_the_edits_on_a_changing_object(fill, delta, region):
    """Q, K = (1−m)·{Q0, K0} + m·{Q1, K1}, m = (1−δ)·M by position and frame, whatever the region."""
    one = fusing(fill, delta=delta, region=region)
    for t in (FIRST, LATER):
        outs, rows = hooked(one, TIME, t)
        (_, (q1, k1, v1), (q0, k0, _)) = rows
        m = (1 - delta) * flat(drawn_mask(fill, t)).T[:, None, :, None].float()
        assert torch.allclose(outs[1], maps((1 - m) * q0 + m * q1, (1 - m) * k0 + m * k1) @ v1, atol=1e-5)
        assert others_are_plain(outs, rows)


def test_the_released_codes_own_temporal_mask_takes_the_place_of_m():
    mask = drawn_mask("some", 7)
    outs, rows = hooked(fusing(swapped={0: mask}, method="released"), TIME, FIRST)
    (_, (q1, k1, v1), (q0, k0, _)) = rows
    m = flat(mask).T[:, None, :, None].float()
    assert torch.allclose(outs[1], maps((1 - m) * q0 + m * q1, (1 - m) * k0 + m * k1) @ v1, atol=1e-5)


def test_the_released_codes_temporal_mask_is_of_the_label_nearest_201():
    """And True off the object, for its Eq. 10 swaps source and edit."""
    square = np.zeros((2, 12, 16), bool)
    square[:, 3:8, 4:9] = True
    drawn = {(t, CROSS): np.roll(square, t // 100, 1).astype(np.float32) for t in (1, 101, 221, 301, 401)}
    trace = drawn_trace(drawn, (12, 16))
    trace = replace(trace, sites=(*trace.sites, TIME))
    task = replace(load_preset("shape", "released"), level=0)
    plan = plan_masks(trace, Choice(CROSS, 1, "measured"), word="car", task=task)
    one = SESSIONS["released"](Words(), trace, plan, task, prompt="bus", word="car")
    assert one.swapped.keys() == {0}
    assert np.array_equal(one.swapped[0], ~np.roll(square, 2, 1))


@pytest.mark.parametrize(("delta", "region"), [(0, "object"), (0, "background"), (1, "background")])
@pytest.mark.parametrize("method", ["freemask", "released"])
@pytest.mark.parametrize("keep_changed", [True, False])
def test_cross_maps_are_the_edits_on_a_changing_object(delta, region, method, keep_changed):
    """A = (1−m)·A0' + m·A1, A0' the source's columns at the edit's tokens and A1 where there is none; with changed
    words weighed, and left to A1 after their window. The released code blends first."""
    time = {0: drawn_mask("some", 7)} if method == "released" else None
    one = fusing(delta=delta, region=region, method=method, swapped=time, reweight=3.0)
    for t in (FIRST, LATER):
        outs, rows = hooked(one, CROSS, t, keep_changed=keep_changed)
        (_, (q1, k1, v1), (q0, k0, _)) = rows
        a0, a1 = maps(q0, k0), maps(q1, k1)
        m = (1 - delta) * flat(drawn_mask("some", t))[:, None, :].float()
        columns = []
        for j, i in enumerate(SOURCE_OF.tolist()):
            if i < 0:
                column = a1[..., j]
            else:
                column = (1 - m) * a0[..., i] + m * (a1[..., i] if method == "released" else a1[..., j])
            if CHANGED[j]:
                column = 3 * (a1[..., j] if keep_changed else column)
            columns.append(column)
        assert torch.allclose(outs[1], torch.stack(columns, -1) @ v1, atol=1e-5)
        assert others_are_plain(outs, rows)


def test_the_edit_words_own_mask_is_that_of_its_tokens_at_the_chosen_site():
    """From the step before, by the task's threshold: the mean over heads, summed over the word's tokens."""
    one = fusing(union=True, tau=0.9, columns=(2, 3))
    step(one, FIRST)
    _, (_, (q1, k1, _), _) = passed(one, COARSE)
    passed(one, CROSS, seed=1)
    assert np.array_equal(one.object(FIRST), drawn_mask("some", FIRST))  # not yet
    end(one)
    soft = maps(q1, k1).mean(1)[..., 2:4].sum(-1).reshape(FRAMES, *COARSE.grid(GRID))
    own = resize(extract(soft.numpy(), 0.9), GRID)
    assert own.any() and not own.all()
    assert np.array_equal(one.object(LATER), drawn_mask("some", LATER) | own)
    step(one, LATER)
    _, (_, (q1, k1, _), _) = passed(one, COARSE, seed=2)
    end(one)
    soft = maps(q1, k1).mean(1)[..., 2:4].sum(-1).reshape(FRAMES, *COARSE.grid(GRID))
    renewed = resize(extract(soft.numpy(), 0.9), GRID)
    assert not np.array_equal(renewed, own)
    assert np.array_equal(one.object(LATER), drawn_mask("some", LATER) | renewed)


@pytest.mark.parametrize("method", ["freemask", "fatezero"])
def test_self_attention_is_free_in_the_object_only_where_the_task_says_so(method):
    assert np.array_equal(fusing(method=method, free_self=True).free(FIRST), drawn_mask("some", FIRST))
    assert not fusing(method=method, free_self=False).free(FIRST).any()


@pytest.mark.parametrize("kinds", [KINDS, set()])
def test_watched_words_are_seen_as_the_edit_looks_before_any_fusion(kinds):
    one = fusing(watched=[(1,), (2, 3)])
    step(one, FIRST, kinds)
    _, (_, (q1, k1, _), *_) = passed(one, CROSS)
    end(one)
    for i, columns in enumerate(([1], [2, 3])):
        wanted = maps(q1, k1).mean(1)[..., columns].sum(-1).reshape(FRAMES, *GRID).numpy()
        assert np.allclose(one.seen.packed()[FIRST, CROSS.name].of([i]), wanted, atol=wanted.max() / 255)


@pytest.mark.parametrize(
    ("alpha", "steps", "count"), [(0.99, 50, 49), (0.99, 4, 3), (0.29, 100, 29), (0.7, 10, 7), (0, 9, 0), (1, 9, 9)]
)
def test_a_window_is_the_floor_of_its_share(alpha, steps, count):
    """0.29 · 100 is 28.999… in binary, and means 29."""
    assert window(alpha, steps) == count


def test_every_kind_has_its_own_window():
    preset = replace(load_preset("shape"), alpha_self=0.1, alpha_cross=0.5, alpha_temporal=0.9)
    assert windows(preset, 10) == {"self": 1, "cross": 5, "temporal": 9}
