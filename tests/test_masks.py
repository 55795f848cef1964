from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import drawn_trace

from freemask.errors import MaskError
from freemask.families.ddim import CLEAN
from freemask.families.sites import Site
from freemask.masks.candidates import SHARPER, candidate, candidates, consensus, dilate, extract, resize

pytestmark = pytest.mark.numeric


def test_threshold_is_strict_and_each_frame_has_its_own_scale():
    """And on a fine grid every cell counts as the largest around it."""
    for side, cells in ((31, 1), (32, 9)):
        soft = np.zeros((2, side, side + 4), np.float32)
        soft[0, 1, 1], soft[1, 4, 4] = 1.0, 1e-6
        soft[0, 4, 4] = 0.3
        mask = extract(soft, 0.3)
        grown = (cells > 1) * 1
        assert mask[0, 1 - grown : 2 + grown, 1 - grown : 2 + grown].all() and mask[0].sum() == cells
        assert mask[1, 4 - grown : 5 + grown, 4 - grown : 5 + grown].all() and mask[1].sum() == cells
        assert extract(soft, 0.3, pool=False).sum() == 2


def test_a_zero_or_constant_frame_is_an_error():
    soft = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    with pytest.raises(MaskError, match="zero"):
        extract(soft * np.array([1, 0], np.float32)[:, None, None], 0.3)
    soft[1] = 0.5
    with pytest.raises(MaskError, match="constant"):
        extract(soft, 0.3)


def test_a_grid_of_a_few_cells_may_be_all_mask():
    """A single cell has none to differ from."""
    assert extract(np.array([[[1, 0.5], [0.4, 0.9]]], np.float32), 0.3).all()
    assert extract(np.ones((2, 1, 1), np.float32), 0.3).all()


def test_growing_repeats_and_shrinking_asks_for_half():
    mask = np.array([[[True, False], [False, False]]])
    assert np.array_equal(resize(mask, (4, 6)), mask.repeat(2, 1).repeat(3, 2))
    assert resize(np.array([[[True, True], [False, False]]]), (1, 1)).all()
    assert not resize(mask, (1, 1)).any()
    thin = np.zeros((1, 8, 8), bool)
    thin[0, 4] = True
    assert not resize(thin, (2, 2)).any()


def test_odd_sizes_keep_the_area():
    mask = np.zeros((1, 9, 5), bool)
    mask[0, 2:7, 1:4] = True
    for size in ((72, 40), (36, 21), (5, 3), (13, 7), (3, 20)):
        out = resize(mask, size)
        assert out.shape == (1, *size)
        assert abs(out.mean() - mask.mean()) < 0.15
    assert np.array_equal(resize(resize(mask, (18, 10)), (9, 5)), mask)


@pytest.mark.parametrize("size", [(13, 7), (12, 4), (4, 12), (4, 3), (3, 20)])
def test_a_cell_is_true_where_half_of_its_area_is(size):
    mask = np.random.default_rng(0).random((2, 9, 5)) > 0.5
    fine = mask.repeat(size[0], 1).repeat(size[1], 2)  # each new cell is 9 × 5 of these
    share = fine.reshape(2, size[0], 9, size[1], 5).mean((2, 4))
    assert np.array_equal(resize(mask, size), share > 0.5)


def test_dilation_grows_by_cells():
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 4, 4] = True
    assert dilate(mask, 0) is mask
    assert dilate(mask, 2).sum() == 25


def test_every_site_and_timestep_has_a_candidate(editor, clip):
    trace = editor.invert(clip, prompt="a red car driving on the grass", steps=2)
    cross = [s for s in trace.sites if s.kind == "cross"]
    found = candidates(trace, "car", tau=0.3, size=(32, 32))
    assert set(found) == {(t, s.name) for t in trace.timesteps for s in cross}
    assert all(m.shape == (4, 32, 32) and m.dtype == bool for m in found.values())
    several = trace.word_map(trace.timesteps[0], cross[0], [1, 2])
    assert several.max() == pytest.approx(1.0)


FINE = Site("up_blocks.1.attentions.0.attn2", "cross", 0)
COARSE = Site("mid_block.attentions.0.attn2", "cross", 1)


def moving_square():
    """Two frames of a square on a grid of 12 × 12, (2, 12, 12) float32."""
    square = np.zeros((2, 12, 12), np.float32)
    square[0, 3:8, 3:8], square[1, 3:8, 5:10] = 1, 1
    return square


def square_trace(*, flat=False):
    """The moving square: sharp at the fine site's low timesteps, vague elsewhere."""
    square = moving_square()
    rng = np.random.default_rng(0)
    maps = {}
    for t in range(1, 201, 20):
        noise = 0.01 * rng.random((2, 12, 12)).astype(np.float32)
        maps[t, FINE] = noise + square * (0.5 if t < 120 else 0.01)
        maps[t, COARSE] = 0.2 + noise[:, :6, :6]
    if flat:
        maps = {cell: np.ones_like(soft) for cell, soft in maps.items()}
    return drawn_trace(maps, (12, 12)), square > 0


def test_the_sharper_maps_agree_on_the_object():
    trace, square = square_trace()
    found = consensus(trace, "car")
    assert len(found.cells) == round(SHARPER * 20)
    assert {site for _, site in found.cells} == {trace.sites[0].name} and {t for t, _ in found.cells} == {
        1,
        21,
        41,
        61,
        81,
        101,
    }
    assert np.array_equal(extract(found.soft, 0.3, pool=False), square)
    wide = replace(trace, latents={CLEAN: torch.zeros(1, 4, 2, 24, 30)})
    assert consensus(wide, "car").soft.shape == (2, 24, 30)


def test_every_frame_of_a_clip_counts_alike_in_what_its_maps_agree_on():
    """A frame on which the word's probabilities are a thousandth of another's has the same mask."""
    trace, square = square_trace()
    dim = np.array([1, 1e-3], np.float32)
    maps = {cell: soft._replace(scales=soft.scales * dim) for cell, soft in trace.maps.items()}
    found = consensus(replace(trace, maps=maps), "car")
    assert found.soft.max((1, 2)) == pytest.approx(np.ones(2), abs=0.01)
    assert np.array_equal(extract(found.soft, 0.3, pool=False), square)
    # maps of unlike size speak alike too: one with a thousand times the probability is one voice
    loud, *_ = found.cells
    maps = maps | {loud: maps[loud]._replace(scales=maps[loud].scales * 1000)}
    assert np.allclose(consensus(replace(trace, maps=maps), "car").soft, found.soft, atol=1e-5)
    maps[loud] = maps[loud]._replace(scales=maps[loud].scales * np.array([1, 1e-3], np.float32))  # on one frame
    assert np.allclose(consensus(replace(trace, maps=maps), "car").soft, found.soft, atol=1e-5)


def test_what_maps_agree_on_goes_from_0_to_1_on_each_frame():
    soft = np.float32([[[0.2, 0.6], [0.2, 1.0]], [[0.5, 0.6], [0.75, 1.0]]])
    found = consensus(drawn_trace({(1, FINE): soft}, (2, 2)), "car").soft
    assert np.allclose(found, [[[0, 0.5], [0, 1]], [[0, 0.2], [0.5, 1]]], atol=0.01)


def test_flat_candidates_are_empty():
    square = moving_square()
    trace = drawn_trace({(1, FINE): square, (1, COARSE): np.ones((2, 6, 6), np.float32)}, (12, 12))
    found = candidates(trace, "car", tau=0.3, size=(12, 12))
    assert np.array_equal(found[1, FINE.name], square > 0)
    assert np.array_equal(candidate(trace, "car", t=1, site=FINE, tau=0.3), square > 0)
    assert not found[1, COARSE.name].any()


def spot(*cells):
    """As many cells of a 12 × 12 grid as are asked for in each frame, (f, 12, 12) float32: of n a map has the
    coefficient of variation √((144 − n)/n)."""
    return np.stack([np.arange(144, dtype=np.float32).reshape(12, 12) < n for n in cells]).astype(np.float32)


@pytest.mark.parametrize(
    ("vaguer", "sharper"),
    [
        (0.5 + 0.5 * spot(9, 9), 0.01 * spot(9, 9)),  # the spread counts for its mean,
        (spot(1, 72), spot(2, 2)),  # 12.0 and 1.0, so 6.5 in the mean of the frames, for 8.4,
        (spot(1, 0) + [[[0]], [[1]]], spot(72, 72)),  # and a map that is flat on a frame not at all
    ],
)
def test_the_sharpest_map_speaks_where_there_are_few(vaguer, sharper):
    trace = drawn_trace({(1, FINE): vaguer.astype(np.float32), (21, FINE): sharper}, (12, 12))
    found = consensus(trace, "car")
    assert found.cells == ((21, FINE.name),)
    assert np.allclose(found.soft, sharper / sharper.max(), atol=0.003)


def test_the_share_that_speaks_is_of_all_maps():
    """Six of twenty, though fourteen are flat."""
    maps = {(t, FINE): moving_square() if t < 6 else np.ones((2, 12, 12), np.float32) for t in range(20)}
    assert len(consensus(drawn_trace(maps, (12, 12)), "car").cells) == 6


def test_coarser_maps_are_drawn_linearly():
    """Cell centres a quarter and three quarters of the way between two coarse ones."""
    soft = consensus(drawn_trace({(1, COARSE): np.float32([[[0, 1], [0, 1]]])}, (4, 4)), "car").soft
    assert np.allclose(soft, [0, 0.25, 0.75, 1], atol=1e-5)


def test_flat_maps_agree_on_nothing():
    with pytest.raises(MaskError, match="choose another word"):
        consensus(square_trace(flat=True)[0], "car")
