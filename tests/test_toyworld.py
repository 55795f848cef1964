"""The rendered world, and that every training stage of the mini backbone runs, resumes and exports."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, MotionAdapter, UNet2DConditionModel

from freemask.errors import SettingError
from freemask.families.flow import Flow
from freemask.families.inflated import Inflated
from freemask.families.loading import load_backbone
from freemask.families.motion import Motion
from freemask.families.specs import autoencoder_folder, backbone_folder
from freemask.families.wan import Wan
from freemask.jobs.metrics import load_clip
from freemask.jobs.verdict import LIKE
from freemask.steps import finish
from freemask.toyworld.classify import CLASSES, Classifier, labels, load_classifier, train_classifier
from freemask.toyworld.clip import train_clip
from freemask.toyworld.decoder import train_decoder
from freemask.toyworld.evaluate import evaluate_steps, wander
from freemask.toyworld.likeness import likeness
from freemask.toyworld.models import (
    SHIFT,
    Recipe,
    encoded,
    export,
    load_tokenizer,
    load_vae,
    new_autoencoder,
    new_unet,
)
from freemask.toyworld.scenes import DEVELOP, OBJECTS, caption, motion, render, sample_scene, vocabulary
from freemask.toyworld.train import train_unet

TINY = Recipe(
    size=32,
    factor=4,
    latent_channels=8,
    channels=(16, 32),
    text_width=32,
    head_dim=8,
    decoder_width=8,
    decoder_blocks=(1, 1, 0),
    scenes=8,
    frames=2,
)
MINI_SD = backbone_folder("mini-sd")
PLAIN = replace(sample_scene(4), object="car", colour="red", place="grass", style=None)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def grown(masks: np.ndarray) -> np.ndarray:
    """Masks that also hold the sprite's soft rim, two pixels wide."""
    return np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) for mask in masks]) > 0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.mark.parametrize("style", [None, "sketch", "watercolor", "pixel"])
def test_a_seed_is_a_scene_and_a_scene_a_clip(style):
    scene = replace(sample_scene(7), style=style)
    first, again = render(scene, 48), render(replace(sample_scene(7), style=style), 48)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.frames.shape == (8, 48, 48, 3) and first.frames.dtype == np.uint8
    assert first.masks.shape == (8, 48, 48) and first.masks.dtype == bool
    assert not np.array_equal(first.frames[0], first.frames[-1])


def test_seeds_give_different_scenes():
    scenes = [sample_scene(seed) for seed in range(200)]
    assert len(set(scenes)) == 200
    for head, names in CLASSES.items():
        assert {getattr(scene, head) for scene in scenes} == set(names)


def test_another_place_changes_only_the_background_and_the_mask_is_the_object():
    grass, water = render(PLAIN, 64), render(replace(PLAIN, place="water"), 64)
    np.testing.assert_array_equal(grass.masks, water.masks)
    same = (grass.frames == water.frames).all(-1)
    assert (~same)[~grass.masks].mean() > 0.99
    assert same[grass.masks].mean() > 0.75  # all but the soft rim
    inner = np.stack([cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) for mask in grass.masks]) > 0
    assert same[inner].mean() > 0.98


def test_another_colour_changes_only_the_object():
    red, blue = render(PLAIN, 64), render(replace(PLAIN, colour="blue"), 64)
    np.testing.assert_array_equal(red.masks, blue.masks)
    changed = (red.frames != blue.frames).any(-1)
    assert not changed[~grown(red.masks)].any()
    assert changed[red.masks].mean() > 0.5


def test_another_object_keeps_motion_and_background():
    car, bus = render(PLAIN, 64), render(replace(PLAIN, object="bus"), 64)
    either = grown(car.masks | bus.masks)
    np.testing.assert_array_equal(car.frames[~either], bus.frames[~either])

    def path(masks: np.ndarray) -> np.ndarray:
        return np.array([[side.mean() for side in np.nonzero(mask)] for mask in masks])

    moved = [path(clip.masks) - path(clip.masks)[0] for clip in (car, bus)]
    assert np.abs(moved[0] - moved[1]).max() < 2


def test_another_style_keeps_the_masks():
    plain, sketch = render(PLAIN, 64), render(replace(PLAIN, style="sketch"), 64)
    np.testing.assert_array_equal(plain.masks, sketch.masks)
    assert np.ptp(sketch.frames.astype(int), axis=-1).max() == 0  # grey


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_size_shows_the_same_layout(seed):
    scene = replace(sample_scene(seed), style=None)
    clips = {size: render(scene, size, frames=3) for size in (48, 64, 128)}

    def coarse(frames: np.ndarray) -> np.ndarray:
        return np.stack([cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in frames]).astype(float)

    for size in (48, 64):
        large = clips[128].masks.astype(np.float32)
        small = np.stack([cv2.resize(m, (size, size), interpolation=cv2.INTER_AREA) for m in large]) > 0.5
        assert iou(clips[size].masks, small) > 0.85
        assert np.abs(coarse(clips[size].frames) - coarse(clips[128].frames)).mean() < 8


def test_captions_say_what_a_scene_shows_in_known_words():
    known = set(vocabulary())
    for seed in range(300):
        scene = sample_scene(seed)
        words = caption(scene).split()
        assert set(words) <= known
        assert {scene.object, scene.place} | {w for w in (scene.colour, scene.style) if w} <= set(words)
    assert caption(replace(PLAIN, object="swan", colour=None, place="water", style="sketch", wording=0)) == (
        "sketch style painting of a swan swimming on the water"
    )


def test_every_word_is_one_token_of_its_own(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in vocabulary()]
    assert all(len(word) == 1 for word in ids)
    assert len({word[0] for word in ids}) == len(vocabulary())
    assert len(tokenizer("zebra", add_special_tokens=False).input_ids) > 1


@pytest.fixture(scope="module", autouse=True)
def sketched():
    """Sheets of few steps: here nobody looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freemask.toyworld.train.SHEET_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run of two steps of each stage, the first of them resumed."""
    folder = tmp_path_factory.mktemp("run")
    for stage, steps in (("frames", 1), ("frames", 1), ("clips", 2)):
        train_unet(folder, TINY, stage=stage, steps=steps, batch=2, lr=1e-3)
    return folder


def test_training_resumes(run):
    for stage in ("frames", "clips"):
        assert torch.load(run / f"unet-{stage}.pt", weights_only=True)["step"] == 2
    assert sorted(path.name for path in run.glob("sheet-*.png"))


def test_clips_of_few_frames_teach_words_alone(run):
    """Cross-attention, the norm before it, and the text encoder; motion and all else stay."""
    before = torch.load(run / "unet-frames.pt", weights_only=True)["average"]
    after = torch.load(run / "unet-clips.pt", weights_only=True)["model"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("text.") for name in changed) and any("attn2" in name for name in changed)
    reads = ("text.", "attn2", "transformer_blocks.0.norm2")
    assert not [name for name in changed if not any(part in name for part in reads)]
    assert any("temp_convs" in name for name in after) and any("attn1" in name for name in before)


@torch.no_grad()
def test_latents_are_linear_in_the_picture_and_local(run):
    vae = load_vae(run, TINY)
    a, b = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    middle = (vae.encode(a).latents + vae.encode(b).latents) / 2
    torch.testing.assert_close(vae.encode((a + b) / 2).latents, middle, rtol=1e-4, atol=1e-5)
    c = a.clone()
    c[..., :4, :4] = 0
    changed = (vae.encode(c).latents != vae.encode(a).latents).any(1)[0]
    assert changed[0, 0] and changed.sum() == 1


@torch.no_grad()
def test_the_decoder_learns_alone(run):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = load_vae(run, TINY)
    for minutes in (0.01, 0.015):  # the second call resumes the first
        with torch.enable_grad():
            train_decoder(run, TINY, minutes=minutes, pool=9, batch=2)
    after = load_vae(run, TINY)
    latents = before.encode(picture).latents
    assert torch.equal(after.encode(picture).latents, latents)
    assert not torch.equal(after.decode(latents).sample, before.decode(latents).sample)
    assert torch.load(run / "decoder.pt", weights_only=True)["step"] > 0


def test_a_run_keeps_its_tokenizer(run, tmp_path):
    vocabulary_file = run / "tokenizer" / "vocab.json"
    made = vocabulary_file.stat().st_mtime_ns
    load_tokenizer(run)
    export(run, TINY, tmp_path)
    assert vocabulary_file.stat().st_mtime_ns == made
    assert (tmp_path / "tokenizer" / "vocab.json").read_text() == vocabulary_file.read_text()


def test_export_is_a_backbone(run, tmp_path):
    export(run, TINY, tmp_path)
    assert not [path for path in tmp_path.rglob("*.json") if str(run) in path.read_text()], "a path of this machine"
    backbone = load_backbone(str(tmp_path), device="cpu")
    assert backbone.native_size == (32, 32)
    clip = render(sample_scene(0), 32, frames=2)
    latents = backbone.encode(clip.frames)
    assert latents.shape == (1, 8, 2, 8, 8)
    assert backbone.decode(latents).shape == clip.frames.shape
    assert backbone.predict(latents, 101, backbone.text([clip.caption])).shape == latents.shape


def test_an_image_model_trains_exports_and_trains_on(run, tmp_path):
    recipe = replace(TINY, family="inflated")
    for name in ("run", "on"):  # latents and autoencoder are the same for both families
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("unet-*", "decoder*"))
    train_unet(tmp_path / "run", recipe, stage="frames", steps=1, batch=2, lr=1e-3)
    export(tmp_path / "run", recipe, tmp_path / "out")
    backbone = load_backbone(str(tmp_path / "out"), device="cpu")
    assert isinstance(backbone, Inflated) and backbone.native_size == (32, 32)
    index = [json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path / "out", MINI_SD)]
    assert index[0] == index[1]
    x = torch.zeros(1, 8, 2, 8, 8)
    assert backbone.predict(x, 101, backbone.text(["a car"])).shape == x.shape
    train_unet(tmp_path / "on", recipe, stage="frames", steps=0, batch=2, lr=1e-3, init=tmp_path / "out")
    begun = torch.load(tmp_path / "on" / "unet-frames.pt", weights_only=True)["average"]
    saved = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").float().state_dict()
    assert all(torch.equal(begun[f"unet.{name}"], value) for name, value in saved.items())
    with pytest.raises(SettingError, match="only stage is frames"):
        train_unet(tmp_path / "run", recipe, stage="clips", steps=1, batch=2, lr=1e-3)
    with pytest.raises(SettingError, match="family inflated, and unet3d is asked"):
        export(tmp_path / "run", TINY, tmp_path / "none")
    with pytest.raises(SettingError, match="has a UNet3DConditionModel"):
        train_unet(run, TINY, stage="frames", steps=1, batch=2, lr=1e-3, init=tmp_path / "out")


def test_motion_modules_train_beside_an_image_model_that_stays(run, tmp_path):
    still, recipe = replace(TINY, family="inflated"), replace(TINY, family="motion")
    for name in ("run", "motion"):
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("unet-*", "decoder*"))
    image = tmp_path / "image"
    train_unet(tmp_path / "run", still, stage="frames", steps=1, batch=2, lr=1e-3)
    export(tmp_path / "run", still, image)
    clips = {"stage": "clips", "batch": 2, "lr": 1e-3}
    with pytest.raises(SettingError, match="give its folder as init"):
        train_unet(tmp_path / "motion", recipe, steps=1, **clips)
    train_unet(tmp_path / "motion", recipe, steps=0, **clips, init=image)
    export(tmp_path / "motion", recipe, image / "motion_adapter")
    x, text = torch.randn(1, 8, 4, 8, 8), load_backbone(str(image), device="cpu").text(["a car"])
    models = [load_backbone(str(image), device="cpu")]
    assert isinstance(models[0], Motion)
    train_unet(tmp_path / "motion", recipe, steps=2, **clips)
    export(tmp_path / "motion", recipe, image / "motion_adapter")
    models.append(load_backbone(str(image), device="cpu"))
    before, after = (model.unet.state_dict() for model in models)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("motion_modules" in name for name in changed)
    assert not torch.equal(*(model.predict(x, 101, text) for model in models))
    shutil.copytree(tmp_path / "motion", tmp_path / "on", ignore=shutil.ignore_patterns("unet-*"))
    train_unet(tmp_path / "on", recipe, steps=0, **clips, init=image)
    begun = torch.load(tmp_path / "on" / "unet-clips.pt", weights_only=True)["average"]
    assert all(torch.equal(begun[f"unet.{name}"], value.float()) for name, value in after.items())


def test_a_transformer_learns_frames_then_clips(run, tmp_path):
    recipe = replace(TINY, family="wan", blocks=2, heads=2, head_width=12, feed_forward=16)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("unet-*", "decoder*"))
    folder, out = tmp_path / "run", tmp_path / "out"
    for stage in ("frames", "clips"):
        train_unet(folder, recipe, stage=stage, steps=2, batch=2, lr=1e-3)
        assert (folder / f"sheet-{stage}-000002.png").exists()
    averages = [torch.load(folder / f"unet-{stage}.pt", weights_only=True)["average"] for stage in ("frames", "clips")]
    assert averages[0].keys() == averages[1].keys()  # the same network at every stage
    export(folder, recipe, out)
    backbone = load_backbone(str(out), device="cpu")
    assert isinstance(backbone, Wan) and backbone.native_size == (32, 32) and backbone.native_frames == 2
    assert backbone.path == Flow(SHIFT) and backbone.time_stride == 1
    assert [site.short for site in backbone.sites] == ["block 0", "block 0", "block 1", "block 1"]
    clip = render(sample_scene(0), 32, frames=2)
    latents = backbone.encode(clip.frames)
    assert backbone.predict(latents, 500, backbone.text([clip.caption])).shape == latents.shape
    shutil.copytree(folder, tmp_path / "on", ignore=shutil.ignore_patterns("unet-*"))
    train_unet(tmp_path / "on", recipe, stage="frames", steps=0, batch=2, lr=1e-3, init=out)
    begun = torch.load(tmp_path / "on" / "unet-frames.pt", weights_only=True)["average"]
    own = {f"unet.{name}": value.float() for name, value in backbone.unet.state_dict().items()}
    assert all(torch.equal(begun[name], value) for name, value in own.items() if name in begun)


def test_words_and_autoencoder_of_another_family_begin_a_transformer(run, tmp_path):
    recipe = replace(TINY, family="wan", blocks=1, heads=1, head_width=12, feed_forward=16, scenes=2)
    export(run, TINY, tmp_path / "mini")
    train_unet(tmp_path / "wan", recipe, stage="frames", steps=0, batch=2, lr=1e-3, init=tmp_path / "mini")
    average = torch.load(tmp_path / "wan" / "unet-frames.pt", weights_only=True)["average"]
    text = load_backbone(str(tmp_path / "mini"), device="cpu").text_encoder.state_dict()
    assert all(torch.equal(average[f"text.{name}"], value) for name, value in text.items())


def test_latents_by_one_matrix_are_the_autoencoders(run):
    vae, frames = load_vae(run, TINY), render(sample_scene(3), 32, frames=2).frames
    with torch.inference_mode():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        by_layers = vae.encode(x).latents * vae.config.scaling_factor
        assert float((encoded(vae, frames) - by_layers).abs().max()) < 1e-4 * float(by_layers.abs().max())


def test_frames_of_128_pixels_have_the_recipe_of_mini_sd():
    recipe = Recipe.of(128, "inflated")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(MINI_SD / "unet"))
    assert shapes(new_unet(recipe)) == shapes(unet)
    vae = AutoencoderTiny.from_pretrained(autoencoder_folder(MINI_SD) / "vae")
    for family in ("unet3d", "inflated"):
        assert shapes(new_autoencoder(Recipe.of(128, family))) == shapes(vae)
    assert Recipe.of(128) == Recipe() and Recipe.of(64).factor == 4
    shipped = MotionAdapter.from_pretrained(MINI_SD.parent / "mini_motion").state_dict()
    whole = new_unet(Recipe.of(128, "motion")).state_dict()
    assert {name: whole[name].shape for name in shipped} == {name: value.shape for name, value in shipped.items()}
    assert len([name for name in whole if "motion_modules" in name]) == len(shipped)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_perceptual_distance_is_of_the_features_directions(monkeypatch):
    """Each level adds the mean square distance of the unit features, 2 where they are at right angles."""
    a, b = (torch.tensor([x, y]).view(1, 2, 1, 1) for x, y in ((3.0, 0.0), (0.0, 0.5)))
    half = torch.cat([a, b], -1), torch.cat([a, a], -1)  # alike in one of two places
    judge, frames = load_classifier(), np.zeros((1, 8, 8, 3), np.uint8)
    for first, second, distance in ((a, 7 * a, 0), (a, b, 6), (*half, 3)):
        levels = iter([(first,) * 3, (second,) * 3])
        monkeypatch.setattr(Classifier, "_levels", lambda *_, levels=levels: next(levels))
        assert judge.distance(frames, frames) == pytest.approx(distance)


def test_another_object_is_further_away_than_noise():
    judge = load_classifier()
    frames, other = (render(one, 128, frames=2).frames for one in (PLAIN, replace(PLAIN, object="dog")))
    assert judge.distance(frames, frames) == 0
    noise = np.random.default_rng(0).normal(0, 3, frames.shape)
    near = judge.distance(frames, (frames + noise).clip(0, 255).astype(np.uint8))
    assert 0 < 3 * near < judge.distance(frames, other) == judge.distance(other, frames)


def test_a_classifier_trains_saves_and_judges(tmp_path, capsys):
    path = tmp_path / "classifier.safetensors"
    train_classifier(path, size=32, steps=3, scenes=16, batch=8)
    assert path.stat().st_size < 2.5e6
    frames = render(sample_scene(0), 48, frames=2).frames
    seen = load_classifier(path).judge(frames)
    assert load_classifier(path).locate(frames).shape == (2, 2)
    assert seen.keys() == CLASSES.keys()
    assert all(0 <= seen[head] < len(names) for head, names in CLASSES.items())
    with pytest.raises(ValueError, match="1,000,000"):
        train_classifier(path, first=999_999, scenes=2)


def test_the_shipped_classifier_knows_real_renders():
    judge = load_classifier()
    hits = []
    for seed in range(DEVELOP, DEVELOP + 60):
        scene = replace(sample_scene(seed), style=None)
        seen, truth = judge.judge(render(scene, judge.size, frames=2).frames), labels(scene)
        hits.append([seen[head] == truth[head] for head in CLASSES])
    assert (np.mean(hits, axis=0) >= 0.93).all()


def test_evaluation_figures(editor):
    steps = evaluate_steps(editor, clips=3, steps=2, frames=5, batch=2, judge=Classifier(32).eval())
    figures = finish(steps)
    json.dumps(figures)
    wanted = "object colour place style classifier reconstruction_psnr vae_psnr best_iou consensus_iou full_iou"
    assert figures.keys() >= set(wanted.split())
    assert figures["classifier"].keys() == {*CLASSES, "smooth"}
    assert 0 <= figures["smooth"] <= 1
    assert 0 <= figures["best_iou"] <= 1
    assert 0.05 < figures["full_iou"] < 0.6
    assert len(OBJECTS) == len(CLASSES["object"])


def test_a_path_is_smooth_or_it_is_not():
    scene = sample_scene(5)
    centres, _ = motion(scene, 64)
    assert wander(centres) < 0.01
    centres[3] += 4
    assert wander(centres) > 2


def test_the_shipped_classifier_finds_the_object():
    judge = load_classifier()
    away = []
    for seed in range(DEVELOP, DEVELOP + 30):
        clip = render(sample_scene(seed), judge.size)
        where = [np.argwhere(mask).mean(0)[::-1] + 0.5 for mask in clip.masks]
        away.append(np.linalg.norm(judge.locate(clip.frames) - where, axis=1).mean())
        assert wander(judge.locate(clip.frames)) < 3
    assert np.mean(away) < 1.5


def test_a_rendered_clip_is_like_the_toy_world_and_noise_is_not():
    rendered = render(PLAIN, 64).frames
    wide = np.pad(rendered, ((0, 0), (0, 0), (20, 30), (0, 0)))  # of which the middle is looked at
    wide[:, :, 25 : 25 + 64] = rendered
    assert likeness(rendered) > LIKE and likeness(wide) == likeness(rendered)
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8), 3).reshape(1, 1, 64, 3).repeat(64, 1).repeat(8, 0)
    assert max(likeness(noise), likeness(ramp)) < LIKE - 0.2


def test_a_clip_of_the_toy_world_trains_and_saves(tmp_path, monkeypatch, capsys):
    from freemask.jobs import metrics

    train_clip(tmp_path / "clip", size=32, steps=2, scenes=8, batch=4)
    monkeypatch.setattr(metrics, "TOY_CLIP", tmp_path / "clip")
    metrics._clip.cache_clear()
    try:
        assert load_clip("mini").texts(["a red car", "a swan on the water"]).shape == (2, 64)
    finally:
        metrics._clip.cache_clear()
