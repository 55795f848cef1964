"""What FateZero, Prompt-to-Prompt and the plain way do, on random models of both families; `test_edit` has FreeMask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import close

from freemask.clips.spans import spans
from freemask.clips.video import Clip
from freemask.errors import SettingError
from freemask.families.loading import load_backbone
from freemask.methods.base import over_spans
from freemask.methods.editor import Editor
from freemask.methods.fusing import Fusing
from freemask.methods.p2p import PromptToPrompt
from freemask.methods.sessions import SESSIONS
from freemask.presets import METHODS, load_method, load_preset, methods, task_names
from freemask.settings import make_settings
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE, EDIT = "a red car driving on the grass", "a red bus driving on the grass"
STEPS = 3
CLOSED = {"alpha_self": 0.0, "alpha_cross": 0.0, "alpha_latent": 0.0}


@pytest.fixture(scope="module", params=["pipeline", "image_pipeline", "motion_pipeline"])
def editor(request):
    backbone = load_backbone(str(request.getfixturevalue(request.param)), "cpu")
    return Editor(replace(backbone, native_frames=backbone.native_frames // 4))


@pytest.fixture(scope="module")
def trace(editor):
    """6 frames, which the motion model sees in two spans; not square."""
    frames = np.random.default_rng(3).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
    return editor.invert(Clip(frames, 8.0), prompt=SOURCE, steps=STEPS)


def run(editor, trace, preset, *, prompt=EDIT, guidance=7.5, **options):
    steps = editor.edit_steps(trace, prompt=prompt, task=preset, word="car", guidance=guidance, **options)
    return finish(steps).latents


def everywhere(trace, value):
    return np.full(trace.clip.frames.shape[:3], value)


@pytest.mark.parametrize("method", ["fatezero", "p2p"])
def test_the_same_prompt_without_guidance_is_the_reconstruction(editor, trace, method, monkeypatch):
    """With the features of that denoising; those of the inversion are of other latents."""
    monkeypatch.setattr("freemask.methods.fusing.load_method", lambda _: load_method("p2p"))
    preset = replace(load_preset("style", method), alpha_changed=None)
    again = run(editor, trace, preset, prompt=SOURCE, guidance=1.0)
    assert close(again, finish(editor.reconstruct_steps(trace)))


@pytest.mark.parametrize("method", ["fatezero", "p2p"])
def test_closed_windows_are_the_plain_way_to_the_bit(editor, trace, method):
    closed = replace(load_preset("shape", method), **CLOSED)
    mask = everywhere(trace, False)
    assert torch.equal(run(editor, trace, closed, mask=mask), run(editor, trace, load_preset("shape", "plain")))


def test_the_blending_mask_goes_from_the_edits_own_attention_to_the_sources(editor, trace):
    """FateZero, Eq. 7: M = 1 everywhere leaves self-attention to the edit, M = 0 takes the source's."""
    shape = replace(load_preset("shape", "fatezero"), alpha_cross=0.0)
    plain = run(editor, trace, load_preset("shape", "plain"))
    assert close(run(editor, trace, shape, mask=everywhere(trace, True)), plain)
    kept = run(editor, trace, replace(shape, mask="none", free_self=False))
    assert close(run(editor, trace, shape, mask=everywhere(trace, False)), kept)
    assert not close(kept, plain, 1e-2)
    half = everywhere(trace, False)
    half[:, :, 24:] = True
    between = run(editor, trace, shape, mask=half)
    assert not close(between, kept, 1e-2) and not close(between, plain, 1e-2)


def test_fatezero_replays_what_it_could_store(editor, trace):
    preset = replace(load_preset("shape", "fatezero"), tau=0.8)
    stored = editor.invert(trace.clip, prompt=SOURCE, steps=STEPS, store=preset)
    wanted = run(editor, trace, preset)
    assert len(stored.features) and close(run(editor, stored, preset), wanted)
    assert close(run(editor, trace, preset, one_row=True), wanted)


def test_prompt_to_prompt_takes_no_features_of_the_inversion(editor, trace):
    preset = load_preset("shape", "p2p")
    stored = editor.invert(trace.clip, prompt=SOURCE, steps=STEPS, store=preset)
    wanted = run(editor, trace, preset)
    assert close(run(editor, stored, preset), wanted)
    assert close(run(editor, trace, preset, one_row=True), wanted)
    assert not close(run(editor, trace, replace(preset, method="fatezero", free_self=False)), wanted, 1e-3)


@pytest.mark.parametrize(
    "prompt",
    [
        EDIT,
        "a car red driving on the grass",  # two words swapped
        "a red car driving on the green grass",  # one added
        "a car driving on the grass",  # one dropped
    ],
)
def test_words_that_stay_keep_the_sources_columns_and_others_their_own(editor, trace, monkeypatch, prompt):
    """FateZero, Sec. 3.2, under any mask."""
    met, weighed, fuse = [], Fusing.weighed, PromptToPrompt.fuse_cross

    def fuse_cross(self, a0, a1, m):
        met.append([a0, a1, self.tokens])
        return fuse(self, a0, a1, m)

    def look(self, site, a, a1):
        met[-1].append(weighed(self, site, a, a1))
        return met[-1][-1]

    monkeypatch.setattr(PromptToPrompt, "fuse_cross", fuse_cross)
    monkeypatch.setattr(Fusing, "weighed", look)
    run(editor, trace, load_preset("shape", "fatezero"), prompt=prompt, mask=everywhere(trace, True))
    assert met
    for a0, a1, tokens, out in met:
        kept = (tokens.source_of >= 0) & ~tokens.changed
        assert torch.equal(out[..., kept], a0[..., tokens.source_of[kept]])
        assert torch.equal(out[..., ~kept], a1[..., ~kept])


def test_freemasks_masks_take_the_place_of_a_methods_own(tmp_path):
    """FateZero + MMC, the row of FreeMask's Table 2."""
    about = {"source": SOURCE, "edit": EDIT, "method": "fatezero"}
    own = make_settings(task="attribute", **about).preset()
    assert (own.mask, own.free_self, own.alpha_self, own.alpha_cross) == ("none", False, 0.8, 0.8)
    shape = make_settings(task="shape", **about).preset()
    assert (shape.mask, shape.time_aware, shape.alpha_self) == ("level", True, 0.5)
    for asked in ({"selection": "consensus"}, {"site": "mid"}, {"masks": tmp_path / "masks.zip"}):
        assert make_settings(task="attribute", **about, **asked).preset().mask == "mmc"
        assert make_settings(task="attribute", **about, **asked).preset().free_self


def test_every_method_does_every_task():
    assert METHODS == ("freemask", *sorted(SESSIONS.keys() - {"freemask"}))
    for method in methods():
        for task in task_names():
            preset = load_preset(task, method.name)
            assert preset.name == task and preset.title == load_preset(task).title


def test_the_editor_takes_a_task_and_a_method_by_name(editor, trace):
    by_name = editor.edit(trace, prompt=EDIT, task="attribute", method="p2p").clip.frames
    own = editor.edit(trace, prompt=EDIT, task=load_preset("attribute", "p2p")).clip.frames
    assert np.array_equal(by_name, own)
    with pytest.raises(SettingError, match="did you mean 'fatezero'"):
        editor.edit(trace, prompt=EDIT, task="shape", method="fatezeros")


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [("plain", {"alpha_self": 0.5}, "nothing self"), ("plain", {"alpha_latent": 0.5}, "nothing latent")]
    + [("fatezero", {"alpha_temporal": 0.5}, "nothing temporal")],
)
def test_a_share_of_what_a_method_does_not_fuse_is_refused(method, given, told):
    about = {"source": SOURCE, "edit": EDIT, "task": "shape", "method": method}
    with pytest.raises(SettingError, match=f"{told}: leave alpha_"):
        make_settings(**about, **given)
    assert make_settings(**about, **dict.fromkeys(given, 0.0))


def test_a_preset_of_ones_own_wants_only_what_its_method_fuses(editor, trace):
    with pytest.raises(SettingError, match="fuses nothing temporal"):
        run(editor, trace, replace(load_preset("shape", "fatezero"), alpha_temporal=0.5))


def test_a_preset_is_of_one_method(editor, trace):
    with pytest.raises(SettingError, match="one of 'p2p', not of 'fatezero'"):
        editor.edit(trace, prompt=EDIT, task=load_preset("shape", "p2p"), method="fatezero")


@pytest.mark.parametrize("together", [1, 2])
def test_a_frame_of_several_spans_is_what_they_predict_by_their_shares(together):
    def predict(*group):
        return torch.cat([torch.full((1, 1, len(span.share), 1, 1), 1.0 + span.start) for span in group])

    wanted = np.zeros(12)
    for span in spans(12, 8):
        wanted[span.frames] += span.share * (1 + span.start)
    found = over_spans(12, 8, predict, together)
    assert found.shape == (1, 1, 12, 1, 1) and np.allclose(found.flatten(), wanted)
    assert len(set(wanted)) > 2  # neither the first's alone nor the last's
