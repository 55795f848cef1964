"""Maps of words that the source prompt lacks, in every family."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_wan

from freemask import Editor
from freemask.clips.video import Clip
from freemask.errors import PromptError
from freemask.families.attention import probabilities
from freemask.families.specs import ROOT
from freemask.jobs.answers import answer_steps
from freemask.jobs.questions import Question
from freemask.jobs.run import run_steps
from freemask.methods.concepts import concept_steps
from freemask.methods.editor import Usage
from freemask.pictures.word_maps import concept_file, read_index, word_file
from freemask.settings import make_settings
from freemask.steps import finish

pytestmark = pytest.mark.numeric
SOURCE = "a red car on the grass"


@pytest.fixture(scope="module", params=["unet3d", "inflated", "motion", "wan"])
def seen(request, tmp_path_factory):
    """An editor of each family and a trace of five frames."""
    if request.param == "wan":
        folder, side = tiny_wan(tmp_path_factory.mktemp("wan")), 32
    else:
        name = {"unet3d": "pipeline", "inflated": "image_pipeline", "motion": "motion_pipeline"}[request.param]
        folder, side = request.getfixturevalue(name), 32
    editor = Editor.load(str(folder), device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (5, side, 48, 3), np.uint8)
    return editor, editor.invert(Clip(frames, 8.0), prompt=SOURCE, steps=2)


def test_a_word_of_the_prompt_is_its_own_map(seen):
    editor, trace = seen
    found = finish(concept_steps(editor.backbone, trace, ["car", "dog"]))
    assert set(found) == set(trace.maps)
    for (t, name), soft in found.items():
        site = next(site for site in trace.sites if site.name == name)
        own = trace.word_map(t, site, [2])
        each = soft.of([0]) if trace.stride == 1 else soft.of([0])[[0, 1, 1, 1, 1]]
        assert np.abs(each - own).max() <= 0.01 * own.max()


def test_a_concept_stands_beside_the_prompt(seen):
    """By hand at one site: the softmax is over the prompt's keys and the concept's."""
    editor, trace = seen
    backbone, t = editor.backbone, trace.timesteps[0]
    site = [site for site in trace.sites if site.kind == "cross"][-1]
    text, kept = backbone.text(["dog"]), []

    def look(site, q, k, v):
        kept.append((q, k))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    with torch.inference_mode():
        backbone.predict(trace.latents[trace.seen(t)], t, backbone.text([SOURCE]), None, {site: look})
        ((q, k),) = kept
        columns = [column for word in backbone.word_tokens("dog") for column in word]
        key = backbone.cross_keys(site, text)[:, :, columns].expand(len(k), -1, -1, -1)
        wanted = probabilities(q, torch.cat([k, key], 2)).mean(1)[..., -len(columns) :].sum(-1)
    found = editor.maps(trace, "dog")[t, site.name]
    h, w = site.grid(trace.grid)
    wanted = wanted.reshape(-1, h, w).numpy()
    first = found if trace.stride == 1 else found[[0, 1]]
    assert np.abs(first - wanted).max() < 0.01 * wanted.max()
    assert editor.maps(trace, "dog").keys() == editor.maps(trace, "car").keys()


def test_concepts_alone_share_one_softmax(seen):
    editor, trace = seen
    usage = Usage()
    found = finish(concept_steps(editor.backbone, trace, ["dog", "bus"], beside=False, usage=usage))
    assert usage.rows == len(trace.timesteps)  # one row a timestep
    for soft in found.values():
        assert np.abs(soft.of([0, 1]) - 1).max() < 0.01


def test_what_is_no_concept_is_refused(seen):
    editor, trace = seen
    with pytest.raises(PromptError, match="is empty"):
        editor.maps(trace, " ")
    with pytest.raises(PromptError, match="nothing to stand against"):
        finish(concept_steps(editor.backbone, trace, ["dog"], beside=False))


def test_a_long_clip_is_seen_in_spans(seen):
    editor, trace = seen
    few = replace(editor.backbone, native_frames=2 if trace.stride == 1 else 1)
    found = finish(concept_steps(few, trace, ["dog"]))
    assert all(soft.values.shape[1] == trace.latent_frames and soft.values.any() for soft in found.values())


def test_the_explorers_file_of_a_word_is_the_words_own(tmp_path):
    """An edit's folder gets it from the inversion that is kept: one row a timestep is all that it costs."""
    clip = ROOT / "static" / "clips" / "car-grass.mp4"
    settings = make_settings(source=SOURCE, edit="a blue car on the grass", task="attribute", steps=2, frames=2)
    kept, out = tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    finish(run_steps(clip, settings, out, kept=kept))
    told = finish(answer_steps(clip, settings, out, Question(kind="concept", text="car"), kept=kept))
    assert {stage: used["rows"] for stage, used in told["unet"].items()} == {"edit": 2}
    mine, own = (
        np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        for path in (concept_file(out, " Car"), word_file(out, 2))
    )
    count = 4 * len(read_index(out)["sites"]) * 2 * 2  # of scales
    assert np.abs(mine[:-count].astype(int) - own[:-count]).max() <= 1
    np.testing.assert_allclose(mine[-count:].view("<f4"), own[-count:].view("<f4"), rtol=1e-6)
    finish(
        answer_steps(clip, settings, out, Question(kind="concept", text="wheels"), kept=tmp_path)
    )  # where it is not kept, it is made
    assert concept_file(out, "wheels").stat().st_size == concept_file(out, "car").stat().st_size
