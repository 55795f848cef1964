import numpy as np
import pytest

from freemask.errors import MaskError
from freemask.masks import candidates, dilate, extract, resize


def test_threshold_is_strict_and_each_frame_has_its_own_scale():
    soft = np.zeros((2, 6, 6), np.float32)
    soft[0, 1, 1], soft[1, 4, 4] = 1.0, 1e-6
    soft[0, 4, 4] = 0.3
    mask = extract(soft, 0.3)
    assert mask[0, :3, :3].all() and mask[0].sum() == 9
    assert mask[1, 3:, 3:].all() and mask[1].sum() == 9


def test_a_zero_or_constant_frame_is_an_error():
    soft = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    with pytest.raises(MaskError, match="zero"):
        extract(soft * np.array([1, 0], np.float32)[:, None, None], 0.3)
    soft[1] = 0.5
    with pytest.raises(MaskError, match="constant"):
        extract(soft, 0.3)


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
