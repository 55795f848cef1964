import math
import sys

import numpy as np
import pytest
import torch

from freemask.errors import MetricError
from freemask.families.specs import TOY_CLIP
from freemask.jobs import metrics
from freemask.jobs.metrics import clip_metrics, clip_pixels, load_clip, lpips, pick_score, psnr, score, ssim
from freemask.toyworld.cases import sample_case
from freemask.toyworld.scenes import DEVELOP, render

pytestmark = pytest.mark.numeric


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


def test_equal_clips_have_a_structural_similarity_of_one():
    clip = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    assert ssim(clip, clip) == pytest.approx(1)
    assert ssim(clip, clip[::-1]) < 0.5


def test_the_toy_clip_tells_the_edit_from_the_source():
    clip = load_clip("mini")
    right = []
    for task in ("style", "attribute", "shape", "place"):
        for seed in range(DEVELOP, DEVELOP + 5):
            case = sample_case(task, seed)
            source, edit = case.prompts
            before, after = (render(scene, 64, frames=2).frames for scene in (case.scene, case.true))
            right.append(clip_metrics(clip, after, source=source, edit=edit)["frame_accuracy"] > 0.5)
            right.append(clip_metrics(clip, before, source=source, edit=edit)["frame_accuracy"] < 0.5)
    assert np.mean(right) > 0.9
    still = clip_metrics(clip, np.repeat(after[:1], 3, 0), source=source, edit=edit)
    assert still["clip_temporal"] == pytest.approx(1)
    assert -1 <= still["clip"] <= 1


def test_clip_reads_the_centre_of_any_shape():
    pixels = torch.zeros(1, 3, 40, 90)
    pixels[..., 25:65] = 1  # the centre square
    assert clip_pixels(pixels, 32).shape == (1, 3, 32, 32)
    assert clip_pixels(pixels, 32)[0, 0, 4:-4, 4:-4].min() > 1.8  # (1 - mean) / spread: white
    same = torch.rand(1, 3, 32, 32) * 2 - 1
    assert clip_pixels(same, 32).shape == same.shape


def test_what_is_not_to_be_had_says_why(monkeypatch):
    def nothing(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(metrics.CLIPModel, "from_pretrained", nothing)
    with pytest.raises(MetricError, match="no network"):
        load_clip("someone/real-model")
    monkeypatch.setitem(sys.modules, "lpips", None)
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(MetricError, match="pip install lpips"):
        lpips(frames, frames)
    told = score(frames, frames, source="a car", edit="a bus", backbone="someone/real-model")
    assert told["ssim"] == pytest.approx(1) and told["lpips"] is None and told["clip"] is None
    assert set(told["absent"]) == {"clip", "clip_temporal", "frame_accuracy", "pick", "lpips", "masked_lpips"}
    assert "no network" in told["absent"]["clip"] and "no network" in told["absent"]["pick"]


def test_the_pick_score_is_the_scaled_cosine(monkeypatch):
    """With the toy world's CLIP in the place of the model that cannot be had here."""
    monkeypatch.setattr(metrics, "PICK", (str(TOY_CLIP),) * 2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    clip = load_clip("mini")
    wanted = clip.model.logit_scale.exp() * (clip.images(frames) @ clip.texts(["a car"]).T).mean()
    assert pick_score(frames, "a car") == pytest.approx(float(wanted))


def test_masked_figures_are_of_what_was_to_be_kept(monkeypatch):
    before = np.zeros((2, 32, 32, 3), np.uint8)
    after, keep = before.copy(), np.ones((2, 32, 32), bool)
    after[:, :8], keep[:, :8] = 200, False
    after[:, 20] = 51
    monkeypatch.setattr(metrics, "lpips", lambda a, b: float(np.abs(a.astype(float) - b).max()))
    told = score(before, after, source="a car", edit="a bus", backbone="mini", keep=keep)
    assert told["masked_psnr"] == pytest.approx(10 * np.log10(25 * 24))  # a fifth of the range in one row of 24
    assert (told["lpips"], told["masked_lpips"]) == (200, 51) and "toy world" in told["absent"]["pick"]
    nothing = score(before, after, source="a car", edit="a bus", backbone="mini", keep=np.zeros_like(keep))
    assert nothing["masked_psnr"] is None and nothing["masked_lpips"] is None
