"""Which mask an edit uses, from maps that are drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import drawn_trace

from freemask.errors import PromptError
from freemask.families.sites import Site
from freemask.masks.candidates import dilate
from freemask.masks.mmc import Choice
from freemask.masks.plan import is_time_aware, plan_masks
from freemask.presets import load_preset
from freemask.settings import make_settings

pytestmark = pytest.mark.numeric

VAGUE = Site("mid_block.attentions.0.attn2", "cross", 1)
FINE = Site("up_blocks.1.attentions.0.attn2", "cross", 0)
TS = tuple(range(1, 201, 20))
BEST = 41
GRID = (12, 16)


def box(top, left, bottom, right):
    """(2, 12, 16) bool; in the second frame two cells to the right."""
    made = np.zeros((2, *GRID), bool)
    made[0, top:bottom, left:right] = made[1, top:bottom, left + 2 : right + 2] = True
    return made


OBJECT = box(3, 4, 8, 9)
SHARP = {1: np.roll(OBJECT, 1, 2), 21: np.roll(OBJECT, -1, 2), BEST: OBJECT}
SHARP |= {61: box(4, 4, 8, 9), 81: box(3, 4, 7, 9), 101: OBJECT & ~box(5, 6, 6, 7)}


def maps():
    """Six sharp maps, at least four of which hold each cell of the object; one is the object. The rest is faint, and
    above any threshold nearly everywhere."""
    faint = np.random.default_rng(0).random((2, *GRID), np.float32) * 0.01 + 0.2
    drawn = {(t, VAGUE): faint[:, ::2, ::2] for t in TS} | {(t, FINE): faint for t in TS}
    return drawn | {(t, FINE): sharp.astype(np.float32) for t, sharp in SHARP.items()}


BACKGROUND = replace(load_preset("style"), mask="mmc")


def plan(painted=None, *, choice=None, drawn=None, **changes):
    """The masks by a backbone without a codebook, or by a choice."""
    trace = drawn_trace(drawn or maps(), GRID)
    choice = choice or Choice(VAGUE, trace.timesteps[-1], "fallback")
    return plan_masks(trace, choice, word="car", task=replace(BACKGROUND, **changes), mask=painted)


def at_frames(mask):
    return mask.repeat(4, 1).repeat(4, 2)


def test_without_a_codebook_the_clip_chooses_what_agrees_with_its_consensus():
    """Not the candidate that holds most of it, which is everywhere."""
    for selection in ("codebook", "adaptive"):
        chosen = plan(selection=selection)
        assert chosen.choice == Choice(FINE, BEST, "adaptive")
        assert chosen.cells == ((BEST, FINE.name),)
        assert all(np.array_equal(mask, OBJECT) for mask in chosen.object_at.values())
    measured = Choice(FINE, 21, "measured")
    assert plan(choice=measured).choice == measured


@pytest.mark.parametrize("cells", [0, 1])
def test_the_consensus_is_the_mask_and_grown_by_what_is_asked(cells):
    """By cells of the latents' grid, for the edit and for what is shown alike; a candidate's mask too."""
    for changes in ({"selection": "consensus"}, {"selection": "adaptive", "delta": 0}):
        made = plan(**changes, dilate=cells)
        assert np.array_equal(made.object_at[BEST], dilate(OBJECT, cells))
        assert np.array_equal(made.shown, at_frames(dilate(OBJECT, cells)))


def test_a_time_aware_mask_is_each_steps_own_and_shown_is_the_chosen_steps():
    made = plan(delta=0, choice=Choice(FINE, BEST, "measured"))
    assert np.array_equal(made.object_at[21], SHARP[21])
    assert np.array_equal(made.object_at[BEST], OBJECT) and np.array_equal(made.shown, at_frames(OBJECT))
    assert made.cells == tuple((t, FINE.name) for t in TS)


@pytest.mark.parametrize(
    ("changes", "aware"),
    [
        ({"delta": 0}, True),
        ({"delta": 1}, False),
        ({"delta": 1, "mask": "level"}, True),
        ({"delta": 1, "mask": "mean"}, False),
        ({"delta": 0, "mask": "mean"}, True),
        ({"delta": 0, "time_aware": False}, False),
        ({"delta": 1, "time_aware": True}, True),
        ({"delta": 0, "selection": "consensus"}, False),
        ({"delta": 0, "selection": "consensus", "mask": "level"}, True),
    ],
)
def test_where_the_object_changes_every_step_has_its_own_mask(changes, aware):
    """Eq. 8; a consensus is one for all steps, a level's mask each step's own."""
    assert is_time_aware(replace(BACKGROUND, **changes)) == aware


@pytest.mark.parametrize(("faint", "everywhere"), [(0.2, False), (1.0, True)])
def test_a_mean_is_over_all_sites_at_the_finest_grid(faint, everywhere):
    """The coarser site adds the same to every cell: outside the object there is faint/(1 + faint) of the maximum."""
    drawn = {(1, VAGUE): np.full((2, 6, 8), faint, np.float32), (1, FINE): OBJECT.astype(np.float32)}
    for choice in (Choice(VAGUE, 1, "measured"), Choice(FINE, 1, "measured")):
        made = plan(mask="mean", drawn=drawn, choice=choice)
        assert np.array_equal(made.object_at[1], OBJECT | everywhere)


def test_a_levels_mask_is_of_the_level_that_is_asked_for():
    drawn = {(1, VAGUE): OBJECT[:, ::2, ::2].astype(np.float32), (1, FINE): box(0, 0, 3, 3).astype(np.float32)}
    fine, coarse = (plan(mask="level", level=level, drawn=drawn).object_at[1] for level in (0, 1))
    assert np.array_equal(fine, box(0, 0, 3, 3))
    assert np.array_equal(coarse, OBJECT[:, ::2, ::2].repeat(2, 1).repeat(2, 2))


def test_a_painted_mask_replaces_any():
    painted = at_frames(OBJECT)
    for kind in ("mmc", "level", "mean", "none"):
        made = plan(painted, mask=kind)
        assert all(np.array_equal(mask, OBJECT) for mask in made.object_at.values())
        assert np.array_equal(made.shown, painted)
        assert (made.choice.origin, made.cells) == ("painted", ())
    nothing = plan(mask="none")
    assert not nothing.shown.any() and not nothing.object_at[BEST].any() and nothing.warnings == []


@pytest.mark.parametrize("painted", [None, at_frames(OBJECT)])
def test_the_word_must_be_there_though_no_map_is_read(painted):
    trace = drawn_trace(maps(), GRID)
    task = replace(BACKGROUND, mask="none")
    with pytest.raises(PromptError, match="choose one of: car"):
        plan_masks(trace, Choice(FINE, 1, "measured"), word="bus", task=task, mask=painted)


@pytest.mark.parametrize(("rows", "notes"), [(45, 0), (46, 1), (48, 1)])
def test_a_mask_over_more_than_95_percent_is_told(rows, notes):
    painted = np.zeros((2, 48, 64), bool)
    painted[:, :rows] = True  # .94, .96 and 1
    told = plan(painted).warnings
    assert len(told) == notes and all("almost the whole picture" in note for note in told)


def test_a_mask_that_is_empty_on_one_frame_is_told():
    painted = at_frames(OBJECT)
    assert plan(painted).warnings == []
    painted[1] = False
    (note,) = plan(painted).warnings
    assert "empty on some frames" in note


def test_a_style_has_no_mask_until_one_is_chosen():
    """Its structure is then held by all of the source's self-attention; under a mask, by the object's alone."""
    told = {"source": "a red car", "edit": "sketch style painting of a red car", "task": "style"}
    assert (own := make_settings(**told).preset()).mask == "none" and not own.free_self
    for chosen in ({"selection": "consensus"}, {"site": "up 3.0"}, {"masks": Path("masks.zip")}):
        preset = make_settings(**told, **chosen).preset()
        assert preset.mask == "mmc" and preset.free_self and preset.region == "background"
