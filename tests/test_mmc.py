import numpy as np
import pytest

from freemask.errors import SettingError
from freemask.families.sites import Site
from freemask.masks import mmc
from freemask.masks.mmc import (
    choose,
    codebook_path,
    cost,
    find_site,
    iou,
    lmmc,
    read_codebook,
    summarise,
    tmmc,
    write_codebook,
)

pytestmark = pytest.mark.numeric


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
    assert choose("none/such", sites(), ts, (4, 4)).site == sites()[3]  # none has 8 × 8: still of an up block


def test_a_picked_site_has_the_picked_timestep_or_the_fallbacks():
    ts = tuple(range(1, 982, 20))
    name = f" {sites()[6].short.upper()} "
    assert choose("none/such", sites(), ts, (64, 64), site=name, timestep=605) == (
        mmc.Choice(sites()[6], 601, "picked")
    )
    assert choose("none/such", sites(), ts, (64, 64), site=name).timestep == 201


def test_only_a_cross_site_can_be_picked():
    other = Site("up_blocks.1.attentions.2.attn1", "self", 2)
    with pytest.raises(SettingError, match="no cross-attention layer"):
        find_site(other.name, [other, *sites()])


def book(**changes):
    """A codebook of two clips over three timesteps and two sites, the second better."""
    d = {"one": np.array([[0.2, 0.5], [0.25, 0.8], [0.2, 0.5]]), "two": np.array([[0.0, 0.4], [0.5, 0.5], [0.1, 0.4]])}
    about = {
        "backbone": "some/model",
        "dataset": "toyworld",
        "date": "2026-01-01",
        "tau": 0.3,
        "steps": 3,
        "frames": 8,
        "sites": [sites()[3].name, sites()[4].name],
        "timesteps": [1, 101, 201],
    }
    return summarise(d, **(about | changes))


def test_a_codebook_is_the_mean_of_its_clips_own_costs():
    made = book()
    assert (made.site, made.timestep) == (sites()[4].name, 101)
    assert made.lmmc[0] == pytest.approx(np.mean([(5 + 4 + 5) / 3, (100 + 2 + 10) / 3]), abs=1e-4)
    assert made.tmmc[1] == pytest.approx(np.mean([(4 + 1.25) / 2, 2.0]), abs=1e-4)
    assert (made.candidates, made.capped, [clip.capped for clip in made.clips]) == (12, 1, [0, 1])
    assert made.iou[1] == pytest.approx([0.375, 0.65])
    second = made.clips[1]
    assert second.lmmc == pytest.approx([(100 + 2 + 10) / 3, (2.5 + 2 + 2.5) / 3], abs=1e-4)
    assert second.tmmc == pytest.approx([(100 + 2.5) / 2, 2, (10 + 2.5) / 2], abs=1e-4)
    assert second.best_iou == 0.5


def test_every_clip_counts_alike():
    """And what costs a hundred without the cap was not capped."""
    d = {name: np.array([[one]]) for name, one in (("good", 1.0), ("half", 0.5), ("bad", 0.01))}
    about = {key: getattr(book(), key) for key in ("backbone", "dataset", "date", "tau", "steps", "frames")}
    made = summarise(d, **about, sites=[sites()[0].name], timesteps=[1])
    assert made.lmmc == made.tmmc == pytest.approx([(1 + 2 + 100) / 3], abs=1e-4)
    assert made.capped == 0


def test_a_measured_codebook_serves_at_the_nearest_timestep(tmp_path, monkeypatch):
    monkeypatch.setattr(mmc, "PRESETS", tmp_path)
    write_codebook(codebook_path("some/model"), book())
    assert read_codebook("some/model") == book()
    choice = choose("some/model", sites(), (1, 41, 81, 121), (16, 16))
    assert (choice.site, choice.timestep, choice.origin) == (sites()[4], 81, "measured")
    others = choose("some/model", sites()[:4], (1, 41, 81, 121), (64, 64))  # a backbone without the codebook's site
    assert (others.site, others.timestep, others.origin) == (sites()[3], 121, "fallback")
    codebook_path("some/model").write_text('{"sites": 3}')
    with pytest.raises(SettingError, match="is no codebook"):
        choose("some/model", sites(), (1, 41), (16, 16))


def test_a_codebook_is_found_by_short_name_and_by_hub_id(tmp_path, monkeypatch):
    monkeypatch.setattr(mmc, "PRESETS", tmp_path)
    assert read_codebook("zeroscope") is None
    write_codebook(codebook_path("cerspense/zeroscope_v2_576w"), book(backbone="zeroscope"))
    assert read_codebook("zeroscope") == read_codebook("cerspense/zeroscope_v2_576w") == book(backbone="zeroscope")
    assert codebook_path("zeroscope").name == "zeroscope.json"
