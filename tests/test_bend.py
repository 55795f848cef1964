"""A word's attention bent: the form, the right values, and what it does to an edit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_concepts import seen  # noqa: F401

from freemask.bends import Bend, read_bend
from freemask.errors import SettingError
from freemask.families.attention import attend, probabilities
from freemask.methods.bend import Bending
from freemask.presets import load_preset
from freemask.settings import make_settings
from freemask.steps import finish

pytestmark = pytest.mark.numeric
EDIT = "a blue car on the grass"


def test_a_bend_is_written_and_read():
    assert read_bend("up 2.0@161: car scale 2") == Bend(site="up 2.0", timestep=161, word="car", how="scale", amount=2)
    told = read_bend(" block 3 #2 : the red car  shift -0.25 ")
    assert (told.site, told.timestep, told.head, told.word) == ("block 3", None, 2, "the red car")
    assert (told.how, told.amount) == ("shift", -0.25)
    for wrong in ("car scale 2", "up 2.0: car", "up 2.0: car grow 2", "up 2.0@x: car blur 1", ": car blur 1", ""):
        with pytest.raises(SettingError, match="bend is .*write LAYER@TIMESTEP"):
            read_bend(wrong)
    for wrong in ("up 2.0: car blur -1", "up 2.0: car shift 2", "up 2.0#0: car scale 1", "up 2.0: car scale 99"):
        with pytest.raises(SettingError, match="bend: "):
            read_bend(wrong)
    with pytest.raises(SettingError, match="bend is"):
        make_settings(source="a car", edit="a bus", bend="louder")


@pytest.mark.parametrize("how", ["scale 0", "scale 3", "blur 0", "blur 1", "shift 0.25", "shift -0.5"])
def test_maps_are_bent_as_they_say(how):
    """On an impulse at (1, 2) of 4 × 4 places."""
    told = read_bend(f"mid: car {how}")
    maps = torch.zeros(1, 1, 16, 1)
    maps[0, 0, 6] = 0.5
    bending = Bending.__new__(Bending)
    bending.bend = told
    found = bending._bent(maps, 4, 4).view(4, 4)
    if told.how == "scale" or not told.amount:
        assert torch.equal(found, maps.view(4, 4) * (told.amount if told.how == "scale" else 1))
    elif told.how == "shift":
        assert found.sum() == found[1, 2 + round(4 * told.amount)] == 0.5
    else:
        assert found.argmax() == 6 and 0 < found[1, 1] == found[0, 2] < found[1, 2] and found.sum() < 0.51


def test_a_bend_acts_in_its_cell_alone_on_the_edits_row(seen):  # noqa: F811
    editor, trace = seen
    site = [site for site in trace.sites if site.kind == "cross"][-1]
    t = trace.timesteps[-1]
    task = load_preset("attribute", "plain")

    def edit(bend=None):
        return finish(editor.edit_steps(trace, prompt=EDIT, task=task, word="car", bend=bend)).latents

    plain = edit()
    same = Bend(site=site.name, timestep=t, word="car", how="scale", amount=1.0)
    assert torch.allclose(edit(same), plain, atol=1e-4)
    assert not torch.allclose(edit(replace(same, amount=5.0)), plain, atol=1e-4)
    tokens = list(editor.backbone.word_tokens(EDIT)[2])
    bending = Bending(replace(same, amount=3.0), trace, tokens)
    assert bending.acts(t) and not bending.acts(trace.timesteps[0])
    q = torch.randn(4, 2, int(np.prod(site.grid(trace.grid))), 8)  # two rows of two frames, two heads
    k, v = torch.randn(2, 4, 2, editor.backbone.text_shape[0], 8)
    (hook,) = bending.over({}, ("plain", "edit"), t).values()
    out = hook(site, q, k, v)
    stock = attend(q, k, v)
    assert torch.equal(out[:2], stock[:2])
    a1 = probabilities(q[2:], k[2:])
    a1[..., tokens] *= 3
    torch.testing.assert_close(out[2:], a1 @ v[2:], rtol=1e-4, atol=1e-5)
    one = Bending(replace(same, amount=3.0, head=2), trace, tokens)
    (hook,) = one.over({}, ("edit",), t).values()
    alone = hook(site, q[2:], k[2:], v[2:])
    torch.testing.assert_close(alone[:, 0], stock[2:, 0])
    torch.testing.assert_close(alone[:, 1], out[2:, 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(SettingError, match="cross-attention layer"):
        edit(replace(same, site="up 9.9"))
