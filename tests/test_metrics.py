import math

import numpy as np
import pytest

from freemask.metrics import psnr


def test_only_the_kept_pixels_count():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    keep = np.ones((2, 8, 8), bool)
    keep[:, 2:6, 2:6] = False
    edited = source.copy()
    edited[~keep] = 255 - edited[~keep]
    assert psnr(edited, source, keep=keep) == math.inf
    assert psnr(edited, source) < 20
    brighter = source + 1
    brighter[~keep] = 0
    assert psnr(brighter, source, keep=keep) == pytest.approx(48.13, abs=0.01)
    assert math.isnan(psnr(edited, source, keep=np.zeros_like(keep)))
