import numpy as np
import pytest

from freemask.clips.spans import spans, work

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 12, 20, 33, 81])
@pytest.mark.parametrize("native", [2, 8, 24])
def test_every_frame_is_said_whole_and_no_span_is_longer_than_the_model_knows(frames, native):
    parts = spans(frames, native)
    said = np.zeros(frames)
    for span in parts:
        assert span.stop - span.start == len(span.share) == min(frames, native)
        assert (span.share > 0).all()
        said[span.frames] += span.share
    assert np.allclose(said, 1)
    assert parts[0].start == 0 and parts[-1].stop == frames
    assert all(b.start < a.stop for a, b in zip(parts, parts[1:], strict=False)) or native < 3


@pytest.mark.parametrize(
    ("frames", "native", "starts"),
    [(20, 8, [0, 6, 12]), (22, 8, [0, 5, 9, 14]), (32, 8, [0, 6, 12, 18, 24]), (30, 24, [0, 6]), (44, 24, [0, 10, 20])],
)
def test_as_few_spans_as_share_a_quarter_evenly_spread(frames, native, starts):
    """n frames and three quarters of n more for each span but the first."""
    assert [span.start for span in spans(frames, native)] == starts


def test_shares_are_in_proportion_to_the_distance_from_a_spans_end():
    """Of frames 6 and 7 the first of three spans of 8 is 2 and 1 from its end, the second 1 and 2 from its start."""
    first, second, _ = spans(20, 8)
    assert first.share == pytest.approx([1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])
    assert second.share == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_a_share_fades_toward_a_seam():
    first, second, *_ = spans(20, 8)
    assert first.share[0] == 1 and (np.diff(first.share[second.start :]) < 0).all()


def test_work_grows_linearly():
    assert work(8, 8) == 8
    assert work(96, 8) - work(64, 8) == work(128, 8) - work(96, 8) <= 2 * 32
