"""Scenes of two objects, edits of them, and the bench that judges each object alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from freemask.bench.benchmark import Options
from freemask.bench.pairs import PAIR_METHODS, _figures, isolated, pair_markdown, pairs_steps, shows
from freemask.steps import finish
from freemask.toyworld.classify import load_classifier
from freemask.toyworld.pairs import (
    PAIR_CASES,
    Pair,
    pair_caption,
    render_any,
    render_pair,
    sample_pair,
    sample_pair_case,
)
from freemask.toyworld.scenes import DEVELOP, render_seed, vocabulary
from freemask.words.differences import differences


@pytest.fixture(scope="module")
def judge():
    return load_classifier()


def test_a_pair_has_two_objects_which_are_seen_and_the_one_in_front_hides_the_other():
    for seed in range(12):
        pair = sample_pair(seed)
        assert pair == sample_pair(seed) and pair.scenes[0].object != pair.scenes[1].object
        clip = render_pair(pair, 64, frames=2)
        assert not (clip.masks[0] & clip.masks[1]).any() and clip.masks.sum((2, 3)).min() > 64 * 64 / 40
    scenes = tuple(replace(scene, x=0.5, y=0.5, dx=0.03) for scene in sample_pair(0).scenes)
    stacked = Pair(scenes)
    back, front = stacked.order.index(0), stacked.order.index(1)
    masks = render_pair(stacked, 64, frames=1).masks
    alone = render_pair(Pair((scenes[1], scenes[1])), 64, frames=1).masks.any(0)
    assert np.array_equal(masks[front], alone) and masks[back].any()


def test_the_caption_names_both_from_the_left_or_turned_and_masks_follow():
    pair = next(one for one in map(sample_pair, range(50)) if not one.turned and one.scenes[0].style is None)
    first, second = pair.told
    assert first.x < second.x
    words = pair_caption(pair).split()
    assert words.index(first.object) < words.index("and") < words.index(second.object)
    assert {*words} <= {*vocabulary()}
    turned = replace(pair, turned=True)
    assert turned.told == (second, first)
    assert np.array_equal(render_pair(pair, 32, frames=2).masks, render_pair(turned, 32, frames=2).masks[::-1])


def test_every_third_training_scene_is_a_pair():
    clips = [render_any(seed, 32, 2) for seed in range(6)]
    assert ["and" in clip.caption.split() for clip in clips] == [True, False, False] * 2
    alone = render_seed(1, 32, 2)
    assert np.array_equal(clips[1].frames, alone.frames) and clips[1].caption == alone.caption


@pytest.mark.parametrize("kind", PAIR_CASES)
def test_a_case_changes_what_its_kind_says(kind):
    for seed in range(DEVELOP, DEVELOP + 4):
        case = sample_pair_case(kind, seed)
        tasks = [one.task for one in differences(*case.prompts)]
        wanted = {
            "colours": ["attribute", "attribute"],
            "objects": ["shape", "shape"],
            "one": ["attribute", "keep"],
            "swap": ["shape", "shape"],
            "all": ["attribute", "shape", "place"],
        }
        assert tasks == wanted[kind]
        stages = case.stages
        assert stages[-1] == case.true and len(stages) == sum(task != "keep" for task in tasks)
        assert all(scene.style is None and scene.colour for scene in (*case.pair.scenes, *case.true.scenes))
    with pytest.raises(ValueError, match="no kind of case 'both'"):
        sample_pair_case("both", 0)


def test_each_object_is_judged_alone_and_rightly(judge):
    right = []
    for seed in range(DEVELOP, DEVELOP + 8):
        pair = sample_pair_case("swap", seed).true
        clip = render_pair(pair, 128, frames=2)
        for scene, mask in zip(pair.told, clip.masks, strict=True):
            assert isolated(clip.frames, mask, pair).shape == clip.frames.shape
            right.append(shows(judge, clip.frames, mask, pair) == (scene.object, scene.colour))
    assert np.mean(right) > 0.9
    nothing = np.zeros_like(clip.masks[0])
    assert isolated(clip.frames, nothing, pair).shape == clip.frames.shape


def test_figures_tell_the_truth_from_the_source_and_a_leak(judge):
    case = sample_pair_case("one", DEVELOP)
    source, true = render_pair(case.pair, 128, frames=2), render_pair(case.true, 128, frames=2)
    told = {name: _figures(judge, case, source, true, clip.frames) for name, clip in (("t", true), ("s", source))}
    assert told["t"]["both"] == 1 and told["s"]["both"] == 0
    assert told["t"]["leakage"] == told["s"]["leakage"] == 0
    assert told["s"]["bystander_psnr"] == np.inf and told["t"]["true_psnr"] == np.inf
    scenes = tuple(replace(scene, colour=case.true.told[0].colour) for scene in case.true.scenes)
    leaked = render_pair(replace(case.true, scenes=scenes), 128, frames=2)
    found = _figures(judge, case, source, true, leaked.frames)
    assert found["both"] == found["leakage"] == 1 and found["bystander_psnr"] < 25


def test_the_bench_measures_every_method_and_keeps_what_it_has(tmp_path):
    options = Options(methods=PAIR_METHODS, steps=2, guidance=3.0, frames=2)
    asked = {"limit": 1, "seed": DEVELOP, "kinds": ("one",)}
    table = finish(pairs_steps("mini", tmp_path, options, **asked))
    assert [line["method"] for line in table["rows"]] == list(PAIR_METHODS)
    text = pair_markdown(table)
    assert text.startswith("## one") and text.count("| freemask") == 4  # the head has one
    (file,) = (tmp_path / "cases").glob("*.json")
    kept = json.loads(file.read_text())
    kept["rows"]["plain"]["true_psnr"] = 1.0
    file.write_text(json.dumps(kept))
    again = finish(pairs_steps("mini", tmp_path, options, **asked))
    assert next(line for line in again["rows"] if line["method"] == "plain")["true_psnr"] == 1.0
    assert (tmp_path / "strips" / f"one-{DEVELOP}.png").exists()
