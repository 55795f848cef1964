"""Several changes in one pass: which they are, disjoint masks, what each word and each region may do."""

import json
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_concepts import seen  # noqa: F401

from freemask import page
from freemask.changes import AUTO, Change, check_changes, found_changes, new_words, read_changes
from freemask.clips.strides import to_latent
from freemask.errors import PromptError, SettingError
from freemask.families.ddim import CLEAN
from freemask.jobs.check import check
from freemask.jobs.run import run_steps
from freemask.masks.candidates import resize
from freemask.masks.disjoint import by_phrase, disjoint, overlap
from freemask.masks.mmc import Choice
from freemask.masks.plan import MaskPlan
from freemask.methods.several import Part, Several, parts_of
from freemask.page.changes import change_shown, follow_changes, painted_change, with_cell
from freemask.pictures.mask_zip import read_label_zip, read_mask_zip, save_mask_zip
from freemask.presets import load_preset
from freemask.settings import LABELS, examples, infer_settings, make_settings, read_settings
from freemask.steps import finish
from freemask.words.differences import align_phrases, differences, objects

pytestmark = pytest.mark.numeric
SOURCE = "a red car and a yellow dog on the grass"
EDIT = "a blue car and a white cat on the snow"


def told(source, edit):
    return [(one.word, one.to, one.task) for one in differences(source, edit)]


@pytest.mark.parametrize(
    ("source", "edit", "wanted"),
    [
        (SOURCE, EDIT, [("car", "blue car", "attribute"), ("dog", "white cat", "shape"), ("grass", "snow", "place")]),
        (
            SOURCE,
            "a yellow dog and a red car on the grass",
            [("car", "yellow dog", "shape"), ("dog", "red car", "shape")],
        ),
        ("a dog chasing a dog", "a dog chasing a cat", [("dog", "dog", "keep"), ("dog#2", "cat", "shape")]),
        (
            "a red car on the road",
            "sketch style painting of a blue car on the road",
            [("car", "blue car", "attribute")],
        ),
        ("a car driving by a dog", "a boat sailing by a dog", [("car", "boat", "shape"), ("dog", "dog", "keep")]),
        ("two cats", "a bird and two dogs", [("cats", "two dogs", "shape")]),
        ("a car", "", []),
    ],
)
def test_what_changes_from_one_prompt_to_another(source, edit, wanted):
    assert told(source, edit) == wanted


def test_the_objects_of_a_prompt():
    assert objects(SOURCE) == ("car", "dog") and objects("a dog chasing a dog") == ("dog", "dog#2")
    assert objects("sketch style painting of a red car driving on the road") == ("car",) and objects("") == ()


def test_the_new_words_of_a_phrase_are_those_that_it_had_not():
    by_word = {one.word: one.changed for one in differences(SOURCE, EDIT)}
    assert by_word == {"car": (1,), "dog": (5, 6), "grass": (9,)}
    (one,) = differences("a car driving", "a boat sailing")
    assert one.changed == (1, 2)  # the verb goes with it


def test_objects_that_change_places_are_aligned_phrase_by_phrase():
    found = align_phrases("a car and a dog", "a dog and a car")
    assert found.source_of == (0, 1, 2, 3, 4) and found.changed == found.removed == (1, 4)
    swapped = align_phrases(SOURCE, "a yellow dog and a red car on the grass")
    assert swapped.source_of == tuple(range(9)) + (9,) and swapped.changed == (1, 2, 5, 6)


def test_changes_are_found_only_where_there_are_several():
    assert [one.task for one in found_changes(SOURCE, EDIT)] == ["attribute", "shape", "place"]
    for one in ("a blue car and a yellow dog on the grass", "a red car and a yellow dog on the snow", SOURCE):
        assert found_changes(SOURCE, one) == ()
    kept = found_changes("a car and a dog and a bus", "a boat and a dog and a truck")
    assert [one.task for one in kept] == ["shape", "keep", "shape"]


def test_changes_are_read_and_refused():
    given = [{"word": "car", "to": "blue car", "task": "attribute", "tau": 0.3}]
    (one,) = read_changes(json.dumps(given), SOURCE, EDIT)
    assert one == Change(word="car", to="blue car", task="attribute", tau=0.3)
    assert read_changes(AUTO, SOURCE, EDIT) == found_changes(SOURCE, EDIT)
    assert read_changes("[]", SOURCE, EDIT) == ()
    for wrong in (
        "car",
        "{",
        '{"word": "car"}',
        "3",
        '["car"]',
        '[{"word": "car", "task": "louder"}]',
        '[{"word": "car"}]',
    ):
        with pytest.raises(SettingError, match="changes"):
            read_changes(wrong, SOURCE, EDIT)
    for wrong in ("[" * 100_000, "[" * 900 + "]" * 900, "NaN", "null", '"car"'):
        with pytest.raises(SettingError, match="changes"):
            read_changes(wrong, SOURCE, EDIT)
    with pytest.raises(SettingError, match="did you mean 'tau'"):
        read_changes('[{"word": "car", "task": "shape", "taus": 1}]', SOURCE, EDIT)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([("car", "attribute"), ("car", "shape")], "the same word"),
        ([("car", "keep"), ("dog", "keep")], "every object is kept"),
        ([("grass", "place")], "none is of an object"),
        ([("car", "attribute"), ("grass", "place"), ("dog", "place")], "name it once"),
        ([("boat", "attribute")], "not in the prompt"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_with_the_cure(changes, why):
    made = [Change(word=word, task=task) for word, task in changes]
    with pytest.raises((SettingError, PromptError), match=why):
        check_changes(made, SOURCE, EDIT)


def test_a_change_says_which_words_it_brings():
    assert new_words(Change(word="dog", task="shape"), SOURCE, EDIT) == (5, 6)
    # of a `to` that no phrase is, all but the word itself
    assert new_words(Change(word="car", to="car and a white cat", task="shape"), SOURCE, EDIT) == (3, 4, 5, 6)
    with pytest.raises(PromptError, match="do not say what 'red' becomes"):
        new_words(Change(word="red", task="shape"), SOURCE, EDIT)
    with pytest.raises(SettingError, match="a site: name the layer"):
        check_changes([Change(word="dog", task="shape", timestep=3)], SOURCE, EDIT)


def test_settings_infer_several_changes_and_keep_what_is_asked():
    settings = infer_settings({"source": SOURCE, "edit": EDIT})
    assert [one.word for one in settings.changes] == ["car", "dog", "grass"] and settings.task == "attribute"
    for one in ({"task": "style"}, {"word": "dog"}, {"changes": "[]"}, {"method": "p2p"}):
        assert not infer_settings({"source": SOURCE, "edit": EDIT} | one).changes
    again = make_settings(**json.loads(json.dumps(settings.record("car"))))
    assert again.changes == settings.changes
    assert make_settings(source="a car", edit="a bus").record("car")["changes"] is None
    for wrong in ({"method": "p2p"}, {"site": "up 2.0"}, {"union": True}):
        with pytest.raises(SettingError, match="changes|of one change"):
            make_settings(**{"source": SOURCE, "edit": EDIT, "changes": AUTO} | wrong)


def test_a_changes_own_numbers_come_before_the_edits():
    settings = make_settings(source=SOURCE, edit=EDIT, changes=AUTO, alpha_self=0.5, tau=0.2)
    car, dog = settings.changes[:2]
    own = settings.change_preset(replace(dog, tau=0.6, site="up 2.0"))
    assert (own.name, own.tau, own.alpha_self, own.time_aware) == ("shape", 0.6, 0.5, True)
    assert settings.change_preset(car).tau == 0.2
    assert settings.change_preset(replace(car, task="keep")).name == "attribute"


# masks


def drawn(seen, seed=0):  # noqa: F811
    """Two words' presets and plans of a trace, which overlap."""
    _, trace = seen
    rng, site = np.random.default_rng(seed), next(site for site in trace.sites if site.kind == "cross")
    found = []
    for word in ("car", "grass"):
        masks = {t: rng.random((len(trace.clip.frames), *trace.grid)) > 0.4 for t in trace.timesteps}
        shown = masks[trace.timesteps[0]].repeat(4, 1).repeat(4, 2)
        found.append((word, load_preset("shape"), MaskPlan(masks, shown, Choice(site, trace.timesteps[0], "picked"))))
    return trace, found


def test_masks_are_disjoint_and_cover_what_they_covered(seen):  # noqa: F811
    trace, plans = drawn(seen)
    found = disjoint(trace, plans)
    for t in trace.timesteps:
        before = [plan.object_at[t] for _, _, plan in plans]
        after = [plan.object_at[t] for plan in found]
        assert (before[0] & before[1]).any() and not (after[0] & after[1]).any()
        assert np.array_equal(before[0] | before[1], after[0] | after[1])
    assert not (found[0].shown & found[1].shown).any()
    turned = disjoint(trace, plans[::-1])
    for one, other in zip(found, turned[::-1], strict=True):
        assert all(np.array_equal(one.object_at[t], other.object_at[t]) for t in trace.timesteps)
    assert disjoint(trace, plans[:1]) == [plans[0][2]]


def test_what_is_contested_is_the_words_whose_map_is_the_higher(seen):  # noqa: F811
    trace, plans = drawn(seen)
    every = np.ones((len(trace.clip.frames), *trace.grid), bool)
    both = [(word, task, replace(plan, object_at=dict.fromkeys(trace.timesteps, every))) for word, task, plan in plans]
    t, site = trace.timesteps[1], both[0][2].choice.site
    car, grass = (trace.word_map(t, site, [at]) for at in (2, 5))
    if site.grid(trace.grid) == trace.grid:
        wanted = car / car.max((1, 2), keepdims=True) >= grass / grass.max((1, 2), keepdims=True)
        assert np.array_equal(disjoint(trace, both)[0].object_at[t], wanted)
    assert "does not hold 'car' and 'grass' apart" in disjoint(trace, both)[0].warnings[0]


def test_a_painted_mask_comes_before_every_map(seen):  # noqa: F811
    trace, plans = drawn(seen)
    every = dict.fromkeys(trace.timesteps, np.ones((len(trace.clip.frames), *trace.grid), bool))
    both = [(word, task, replace(plan, object_at=every)) for word, task, plan in plans]
    for painted in (0, 1):
        word, task, plan = both[painted]
        own = [*both]
        own[painted] = word, task, replace(plan, choice=replace(plan.choice, origin="painted"))
        found = disjoint(trace, own)
        for t in trace.timesteps:
            assert found[painted].object_at[t].all() and not found[1 - painted].object_at[t].any()


def test_a_noun_among_several_has_the_map_of_its_phrase(seen):  # noqa: F811
    editor, trace = seen
    apart, site = by_phrase(trace), next(site for site in trace.sites if site.kind == "cross")
    for t in trace.timesteps:
        red, car, grass = (trace.word_map(t, site, [at]) for at in (1, 2, 5))
        np.testing.assert_allclose(apart.word_map(t, site, [2]), red + car, rtol=1e-5)
        assert np.array_equal(apart.word_map(t, site, [1]), red) and np.array_equal(apart.word_map(t, site, [5]), grass)
    alone = editor.plan_masks(trace, word="car", task=load_preset("shape"))
    picked = {"site": site.short, "timestep": trace.timesteps[0]}
    car, grass = (
        Part(word, (), load_preset("shape"), kept=True, **own) for word, own in (("car", {}), ("grass", picked))
    )
    _, (only,) = editor.plan_parts(trace, [car])
    assert np.array_equal(only.shown, alone.shown)
    told = editor.plan_masks(apart, word="car", task=load_preset("shape"))
    _, (first, second) = editor.plan_parts(trace, [car, grass])
    assert not (first.shown & ~told.shown).any()
    seen_there = editor.plan_masks(trace, word="grass", task=load_preset("shape"), **picked)
    assert not (second.shown & ~seen_there.shown).any()  # the map that was picked, not the phrase's


def test_the_overlap_is_of_the_smaller_mask():
    one, other = np.zeros((2, 1, 2, 4), bool)
    one[..., :2], other[..., 1] = True, True
    assert overlap(one, other) == 1.0 and overlap(one, ~one) == 0.0 and overlap(one, np.zeros_like(one)) == 0.0


# in one pass


def edited(seen, changes, edit="a blue car on the snow", **masks):  # noqa: F811
    editor, trace = seen
    parts = parts_of(
        changes, trace.prompt, edit, lambda one: load_preset("attribute" if one.task == "keep" else one.task)
    )
    parts = tuple(replace(part, mask=masks.get(part.word, part.mask)) for part in parts)
    steps = editor.edit_steps(trace, prompt=edit, task=parts[0].task, word=parts[0].word, parts=parts, watch=True)
    return finish(steps)


def test_one_change_is_the_single_edit_to_the_bit(seen):  # noqa: F811
    editor, trace = seen
    edit = "a blue car on the grass"
    for task in ("attribute", "shape"):
        single = finish(editor.edit_steps(trace, prompt=edit, task=load_preset(task), word="car", watch=True))
        several = edited(seen, [Change(word="car", task=task, to="blue car")], edit)
        assert torch.equal(single.latents, several.latents)
        assert np.array_equal(single.plan.shown, several.plan.shown)
        for cell, maps in single.maps.items():
            assert np.array_equal(maps.values, several.maps[cell].values)


def test_the_order_of_changes_does_not_matter(seen):  # noqa: F811
    changes = [
        Change(word="car", task="attribute"),
        Change(word="grass", task="shape"),
        Change(word="red", task="keep"),
    ]
    found = [edited(seen, list(some)).latents for some in permutations(changes)]
    assert all(torch.equal(found[0], other) for other in found)


def test_a_kept_object_and_what_no_change_has_stay_the_sources_latents(seen):  # noqa: F811
    _, trace = seen
    shape = trace.clip.frames.shape[:3]
    left, right = np.zeros((2, *shape), bool)
    left[..., : shape[2] // 3], right[..., -shape[2] // 3 :] = True, True
    changes = [Change(word="car", task="shape", alpha_latent=1.0), Change(word="grass", task="keep")]
    parts = parts_of(
        changes, trace.prompt, "a blue bus on the grass", lambda one: replace(load_preset("shape"), alpha_latent=1.0)
    )
    parts = tuple(replace(part, mask=mask) for part, mask in zip(parts, (left, right), strict=True))
    editor, _ = seen
    done = finish(
        editor.edit_steps(trace, prompt="a blue bus on the grass", task=parts[0].task, word="car", parts=parts)
    )
    third = trace.grid[1] // 3
    assert torch.equal(done.latents[..., third:], trace.latents[CLEAN][..., third:])
    assert not torch.equal(done.latents[..., :third], trace.latents[CLEAN][..., :third])
    assert np.array_equal(done.plan.shown, left)  # what changes


def session(seen, changes, edit, windows, **masks):  # noqa: F811
    editor, trace = seen

    def preset(one):
        return replace(load_preset("attribute" if one.task == "keep" else one.task), **windows)

    parts = parts_of(changes, trace.prompt, edit, preset)
    parts = tuple(replace(part, mask=masks[part.word]) if part.word in masks else part for part in parts)
    plan, plans = editor.plan_parts(trace, parts)
    about = {
        "prompt": edit,
        "word": "car",
        "parts": parts,
        "plans": plans,
        "alignment": align_phrases(trace.prompt, edit),
    }
    made = Several(editor.backbone, trace, plan, parts[0].task, **about)
    made.rows(trace.timesteps[-1], made.noise)
    made.hooks(made.span, ("plain", "edit"))
    return made


def test_what_all_changes_share_lasts_as_long_as_the_longest_of_them(seen):  # noqa: F811
    editor, trace = seen
    names = ("alpha_self", "alpha_cross", "alpha_temporal", "alpha_latent")
    tasks = [replace(load_preset("shape"), **dict.fromkeys(names, alpha)) for alpha in (0.5, 1.0)]
    for some in permutations(tasks):
        parts = tuple(Part(word, (), task) for word, task in zip(("car", "grass"), some, strict=True))
        plan, plans = editor.plan_parts(trace, parts)
        about = {"prompt": trace.prompt, "word": "car", "parts": parts, "plans": plans}
        made = Several(editor.backbone, trace, plan, parts[0].task, **about)
        steps = len(trace.timesteps)
        assert made.blended == steps and made.windows == dict.fromkeys(("self", "cross", "temporal"), steps)


def halves(trace):
    shape = trace.clip.frames.shape[:3]
    left = np.zeros(shape, bool)
    left[..., : shape[2] // 2] = True
    return left, ~left


def test_new_words_act_in_their_own_region_alone(seen):  # noqa: F811
    """A car left and grass right: "blue" is shut out of the right, "snow" of the left, and nothing else of anything."""
    _, trace = seen
    left, right = halves(trace)
    changes = [Change(word="car", task="attribute"), Change(word="grass", task="shape")]
    made = session(seen, changes, "a blue car on the snow", {}, car=left, grass=right)
    site = next(site for site in trace.sites if site.kind == "cross")
    out = made.shut_out(site, torch.device("cpu"))
    h, w = site.grid(trace.grid)
    first, second = (
        torch.from_numpy(to_latent(resize(plan.object_at[trace.timesteps[-1]], (h, w)), trace.stride)).reshape(-1)
        for _, plan in made.parts
    )
    blue, snow = (list(made.edit_tokens[j]) for j in (1, 5))
    flat = out.reshape(-1, out.shape[-1])
    assert first.any() and second.any()
    for columns, away in ((blue, second & ~first), (snow, first & ~second)):
        assert all(torch.equal(flat[:, k], away) for k in columns)
    rest = [k for k in range(out.shape[-1]) if k not in (*blue, *snow)]
    assert not out[..., rest].any()
    a = torch.rand(len(out), 2, *out.shape[1:])
    shut = made.shut(site, a)
    assert not shut.masked_select(out[:, None].expand_as(shut)).any()
    torch.testing.assert_close(shut.sum(-1), a.sum(-1))


def test_each_region_follows_its_own_task(seen):  # noqa: F811
    """Left recoloured, its structure held; right replaced, free; the place has what is left."""
    _, trace = seen
    left, right = (mask & (np.indices(mask.shape)[1] < mask.shape[1] // 2) for mask in halves(trace))
    changes = [
        Change(word="car", task="attribute"),
        Change(word="red", to="blue", task="shape"),
        Change(word="grass", task="place"),
    ]
    whole = {"alpha_self": 0.99, "alpha_cross": 0.99, "alpha_temporal": 0.99}
    made = session(seen, changes, "a blue car on the snow", whole, car=left, red=right)
    t = trace.timesteps[-1]
    car, red, place = made.regions(t)
    assert not (car & red).any() and np.array_equal(place, ~(car | red))
    assert not made.free(t)[car].any() and made.free(t)[red].all()
    assert np.array_equal(made.moved(t), red)
    assert made.editable(t).all()  # the objects and the place change
    kept = session(
        seen, [replace(changes[0], task="keep"), *changes[1:]], "a blue car on the snow", {}, car=left, red=right
    )
    assert np.array_equal(kept.editable(t), ~car) and not kept.free(t)[car].any()


def test_a_part_says_what_it_is():
    place = Part("grass", (5,), load_preset("place"))
    assert place.everywhere and not Part("car", (1,), load_preset("shape")).everywhere


# the page


def test_cards_follow_the_prompts(tmp_path):
    field, shown = follow_changes(SOURCE, EDIT, "", "freemask", None)
    assert field == AUTO and "3 changes in one pass" in shown and shown.count("<li") == 3
    assert "what the other masks leave" in shown and "shown once edited" in shown
    assert follow_changes(SOURCE, EDIT, AUTO, "p2p", None)[0] == ""
    assert follow_changes("a car", "a bus", AUTO, "freemask", None) == ("", "")
    field, shown = follow_changes(SOURCE, EDIT, "[]", "freemask", None)
    assert "one change under one mask" in shown and 'data-text="auto"' in shown and isinstance(field, dict)
    _, shown = follow_changes("a boat", "a bus", '[{"word": "car", "task": "shape"}]', "freemask", None)
    assert "not in the prompt" in shown
    _, shown = follow_changes(SOURCE, EDIT, '[{"word": "car", "task": "<b>"}]', "freemask", None)
    assert "<b>'" not in shown and "&lt;b&gt;" in shown
    run = SimpleNamespace(folder=tmp_path, report={"changes": []})
    assert "shown once edited" in follow_changes(SOURCE, EDIT, AUTO, "freemask", run)[1]


CHANGES = [
    {"word": "car", "to": "blue car", "task": "attribute"},
    {"word": "dog", "to": "white cat", "task": "shape", "site": "up 3.0", "tau": 0.4},
    {"word": "grass", "to": "snow", "task": "place"},
]


def run_of(folder, **settings):
    own = make_settings(source=SOURCE, edit=EDIT, changes=CHANGES, **settings).record("car")
    return SimpleNamespace(folder=folder, clip=page, report={"settings": own})


def at_words(*words):
    return SimpleNamespace(_data={"words": list(words)})


def test_a_cell_goes_to_the_change_whose_word_is_shown():
    at = change_shown(run_of(None), at_words(6))
    found = with_cell(CHANGES, at, {"site": "up 2.0", "timestep": "161", "tau": 0.35})
    assert found == [CHANGES[0], CHANGES[1] | {"site": "up 2.0", "timestep": 161, "tau": 0.35}, CHANGES[2]]
    assert change_shown(run_of(None), at_words(9)) is None  # the place has no mask of its own
    assert change_shown(run_of(None), at_words(1)) is None


def test_a_painting_is_of_the_change_whose_word_is_shown(tmp_path):
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :4] = True
    labels, changes = painted_change(run_of(tmp_path), masks, at_words(6))
    assert (labels == 2 * masks).all()
    assert json.loads(changes)[1] == {"word": "dog", "to": "white cat", "task": "shape"}  # its cell goes
    save_mask_zip(tmp_path / LABELS, labels)
    run = run_of(tmp_path, masks=tmp_path / LABELS)
    masks = np.zeros((2, 16, 16), bool)
    masks[:, :, :4] = True
    labels, _ = painted_change(run, masks, at_words(2))  # painted the one after the other, at another size
    assert (labels[:, :, :4] == 1).all() and (labels[:, :8, 4:] == 2).all() and not labels[:, 8:, 4:].any()
    again, _ = painted_change(run, masks, at_words(6))
    assert (again == 2 * masks).all()
    assert painted_change(run, masks, at_words(9))[1] == "[]"  # of no change: all is one


def test_a_change_is_made_under_the_mask_painted_for_it(tmp_path):
    """A car under the left half, dog and place as the model says; the report and the folder tell so."""
    left = np.zeros((1, 32, 32), np.uint8)
    left[..., :16] = 1
    save_mask_zip(tmp_path / "mine.zip", left)
    car = examples()[0]
    given = {"source": "a red car driving on the grass", "edit": "a blue car driving on the snow"}
    settings = make_settings(**given, changes=AUTO, masks=tmp_path / "mine.zip", steps=2, frames=2)
    report = finish(run_steps(car.clip, settings, tmp_path / "out"))
    assert [one.get("mask", {}).get("origin") for one in report["changes"]] == ["painted", None]
    assert report["changes"][0]["mask"]["area"] == 0.5
    again = make_settings(**read_settings(tmp_path / "out" / "settings.json"))
    assert (read_label_zip(again.masks, frames=2, count=2) == left).all()
    shown = read_mask_zip(tmp_path / "out" / "masks.zip", frames=2)
    assert shown[..., :64].all() and not shown[..., 64:].any()
    save_mask_zip(tmp_path / "mine.zip", left * 2)
    with pytest.raises(SettingError, match="change 2 is of the place"):
        check(car.clip, settings)
