import json

import numpy as np
import pytest

from freemask import mmc
from freemask.mmc import choose, cost, iou, lmmc, tmmc
from freemask.trace import Site


def test_cost_of_a_half_and_a_quarter():
    d = np.array([[0.5], [0.25]])
    assert lmmc(d) == pytest.approx([3.0])
    assert tmmc(d) == pytest.approx([2.0, 4.0])


def test_a_useless_candidate_costs_a_hundred():
    assert cost(np.array([0.0, 0.005, 1.0])) == pytest.approx([100, 100, 1])


def test_iou_is_over_the_whole_volume():
    a, b = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    assert iou(a, b) == 1.0
    a[0], b[:, 0] = True, True
    assert iou(a, b) == pytest.approx(2 / 6)


def sites():
    names = ["down_blocks.0", "mid_block", "up_blocks.1", "up_blocks.1", "up_blocks.2", "up_blocks.2", "up_blocks.3"]
    levels = [0, 3, 2, 2, 1, 1, 0]
    return [
        Site(f"{n}.attentions.{i}.attn2", "cross", level)
        for i, (n, level) in enumerate(zip(names, levels, strict=True))
    ]


def test_the_fallback_is_the_second_site_of_the_coarsest_usable_up_block():
    ts = tuple(range(1, 982, 20))
    zeroscope = choose("none/such", sites(), ts, (64, 64))
    assert (zeroscope.site, zeroscope.timestep, zeroscope.origin) == (sites()[3], 201, "fallback")
    assert choose("none/such", sites(), ts, (16, 16)).site == sites()[5]


def test_a_measured_codebook_serves_at_the_nearest_timestep(tmp_path, monkeypatch):
    monkeypatch.setattr(mmc, "PRESETS", tmp_path)
    (tmp_path / "codebooks").mkdir()
    book = {"site": sites()[4].name, "timestep": 101}
    (tmp_path / "codebooks" / "some--model.json").write_text(json.dumps(book))
    choice = choose("some/model", sites(), (1, 41, 81, 121), (16, 16))
    assert (choice.site, choice.timestep, choice.origin) == (sites()[4], 81, "measured")
