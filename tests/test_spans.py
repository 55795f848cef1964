import numpy as np
import pytest

from freemask.spans import spans, work

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 12, 20, 33, 64])
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


def test_a_share_fades_toward_a_seam():
    first, second, *_ = spans(20, 8)
    assert first.share[0] == 1 and (np.diff(first.share[second.start :]) < 0).all()


def test_work_grows_linearly():
    assert work(8, 8) == 8
    assert work(96, 8) - work(64, 8) == work(128, 8) - work(96, 8) <= 2 * 32
