"""One layer looked at in full: heads, positions and features, in every family."""

import numpy as np
import pytest
import torch
from test_concepts import seen  # noqa: F401

from freemask.errors import PromptError, SettingError
from freemask.families.attention import attend, probabilities
from freemask.jobs.questions import Question, read_question
from freemask.methods.probe import feature_colours, head_maps, position_attention

pytestmark = pytest.mark.numeric


def cell(trace):
    cross = [site for site in trace.sites if site.kind == "cross"][-1]
    return trace.timesteps[0], cross


def test_the_mean_of_the_heads_is_the_cell(seen):  # noqa: F811
    editor, trace = seen
    t, site = cell(trace)
    heads = head_maps(editor.backbone, trace, [2], t=t, site=site.name)
    each = np.stack([heads.of([n]) for n in range(len(heads.values))])
    own = trace.maps[t, site.name].of(list(trace.tokens[2]))
    near = 0.01 if editor.backbone.path.storable else 0.2  # a flow's inversion saw a draft of these latents
    assert len(each) > 1 and np.abs(each.mean(0) - own).max() <= near * own.max()
    with pytest.raises(SettingError, match="no such layer and timestep"):
        head_maps(editor.backbone, trace, [2], t=t, site=site.name.replace("attn2", "attn1"))
    assert head_maps(editor.backbone, trace, "dog", t=t, site=site.name).values.shape == heads.values.shape


def test_a_positions_weights_are_those_of_the_layer(seen):  # noqa: F811
    """By hand from queries and keys; what goes out sums to one, and out and in agree where they are the same weight."""
    editor, trace = seen
    backbone = editor.backbone
    t, site = cell(trace)
    h, w = site.grid(trace.grid)
    at = {"frame": 1, "x": (w - 0.5) / w, "y": 0.5 / h}
    told = position_attention(backbone, trace, t=t, site=site.name, **at)
    assert told.out.shape == told.into.shape == (trace.latent_frames, h, w) and told.out.sum() == pytest.approx(1, 1e-4)
    assert told.out[1, 0, w - 1] == pytest.approx(told.into[1, 0, w - 1], rel=1e-3)
    np.testing.assert_allclose(told.track[1], (at["x"], at["y"]), rtol=1e-5)
    assert ((told.track > 0) & (told.track < 1)).all()
    own = next(one for one in trace.sites if one.name == site.name[:-1] + "1")
    kept = {}

    def look(site, q, k, v):
        kept[site] = q, k
        return attend(q, k, v)

    with torch.inference_mode():
        x, text = trace.latents[trace.seen(t)], backbone.text([trace.prompt])
        backbone.predict(x, t, text, backbone.path.levels((t,))[t], {own: look, site: look})
    q, k = kept[own]
    row = probabilities(q, k)[0, :, h * w + w - 1] if own.joint else probabilities(q, k)[1, :, w - 1]
    row = row.mean(0)
    wanted = row.reshape(-1, h, w) if own.joint else row[: h * w].reshape(h, w)
    mine = told.out if own.joint else told.out[1]
    if own.joint or len(row) == h * w:
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
    else:  # of other frames too
        assert np.all(mine >= wanted.numpy() - 1e-6)
    q, k = kept[site]
    shares = probabilities(q, k)[1, :, w - 1].mean(0)
    np.testing.assert_allclose(told.told, [float(shares[list(tokens)].sum()) for tokens in trace.tokens], atol=1e-5)
    has = any(one.kind == "temporal" and one.level == site.level for one in trace.sites)
    assert (told.temporal is None) != has and (told.temporal is None or told.temporal.sum() == pytest.approx(1, 1e-4))
    for wrong in ({"frame": 99}, {"x": 1.0}, {"y": -0.1}):
        with pytest.raises(SettingError, match="no such place"):
            position_attention(backbone, trace, t=t, site=site.name, **at | wrong)


def test_features_are_colours_of_the_whole_clip(seen):  # noqa: F811
    editor, trace = seen
    t, site = cell(trace)
    colours = feature_colours(editor.backbone, trace, t=t, site=site.name)
    assert colours.shape == (trace.latent_frames, *site.grid(trace.grid), 3) and colours.dtype == np.uint8
    assert colours.std((0, 1, 2)).min() > 10
    assert np.array_equal(colours, feature_colours(editor.backbone, trace, t=t, site=site.name))


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({}, SettingError, "kind"),
        ({"kind": "all"}, SettingError, "kind"),
        ({"kind": "concept", "text": " ,; "}, PromptError, "Write a word or a few"),
        ({"kind": "concept", "text": "x" * 101}, PromptError, "100 characters at most"),
        ({"kind": "heads"}, PromptError, "Write a word"),
        ({"kind": "heads", "words": 5}, SettingError, "words"),
        ({"kind": "heads", "words": [-1]}, SettingError, "words"),
        ({"kind": "position", "x": 1.0}, SettingError, "x is 1"),
        ({"kind": "features", "site": ["a"]}, SettingError, "site"),
    ],
)
def test_a_question_is_checked(told, error, message):
    with pytest.raises(error, match=message):
        read_question(told)


def test_a_question_is_read():
    told = {"kind": "heads", "words": [1, 2], "site": "a", "timestep": 7, "number": 3}
    assert read_question(told) == Question(kind="heads", words=(1, 2), site="a", timestep=7)
    assert read_question({"kind": "concept", "text": " big\n wheels "}).text == "big wheels"
