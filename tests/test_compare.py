"""Two edits beside each other: equal ones differ by nothing."""

import numpy as np
import pytest

from freemask.pictures.compare import FIRST, SECOND, difference_sheet, masks_strip
from freemask.pictures.sheets import PAPER, SCREEN, WordMaps


@pytest.mark.parametrize("ink", [SCREEN, PAPER])
def test_a_difference_has_the_colour_of_the_stronger(ink):
    index = WordMaps(
        tokens=("car",),
        edit_words=(),
        sites=("up_blocks.1.attentions.0.transformer_blocks.0.attn2",),
        timesteps=(1, 21),
        of_frames=(0, 1),
        chosen=np.zeros((2, 1), bool),
        mask=np.zeros((2, 4, 4), bool),
    )
    soft = np.zeros((2, 4, 4), np.float32)
    soft[:, 0, 0] = 0.5
    moved = np.roll(soft, 2, axis=2)
    cells = lambda first, second: {(t, index.sites[0]): one for t, one in zip((1, 21), (first, second), strict=True)}  # noqa: E731
    equal = difference_sheet(index, cells(soft, soft), cells(soft, 3 * soft), frame=1, title="car", ink=ink)
    apart = difference_sheet(index, cells(soft, soft), cells(soft, moved), frame=1, title="car", ink=ink)
    for colour in (FIRST, SECOND):
        assert not (equal == colour).all(-1).any() and (apart == colour).all(-1).any()
    assert (equal[0, 0] == ink.rgb("ground")).all()
    assert np.abs(equal[equal.shape[0] // 2].astype(int) - ink.rgb("ground")).max(-1).min() <= 20
    changed = np.flatnonzero((equal != apart).any((0, 2)))
    assert changed.max() < equal.shape[1] // 2  # the later timestep stands left


def test_masks_are_outlined_on_the_frames():
    frames = np.full((12, 30, 40, 3), 90, np.uint8)
    first, second = np.zeros((2, 12, 15, 20), bool)
    first[:, 2:6, 2:6] = second[:, 8:12, 10:16] = True
    strip = masks_strip(frames, first, second)
    assert strip.shape == (112, 1200, 3)
    assert (strip == FIRST).all(-1).any() and (strip == SECOND).all(-1).any()
    same = masks_strip(frames, first, first)
    assert (same == FIRST).all(-1).any() and (same == SECOND).all(-1).any()  # one line within the other
