"""An image model that learned a clip: what is trained, what is saved, and that edits take it as any backbone."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from tiny import close
from typer.testing import CliRunner

from freemask.cli import app
from freemask.clips.video import read_clip, write_clip
from freemask.errors import BackboneError, ClipError, PromptError, SettingError
from freemask.families.attention import attend
from freemask.families.inflated import Inflated
from freemask.families.loading import load_backbone
from freemask.families.specs import Inflation, backbone_spec, usual_guidance
from freemask.families.temporal import add_temporal, temporal_blocks
from freemask.jobs import memory, tuning
from freemask.jobs.run import run_steps
from freemask.jobs.tuning import Trainer, Tuning, tune_steps
from freemask.masks.mmc import codebook_path
from freemask.methods.editor import Editor
from freemask.presets import load_preset
from freemask.settings import make_settings
from freemask.steps import finish

SOURCE = "a red car"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def video(tmp_path_factory, clip):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, clip)
    return path


@pytest.fixture(scope="module")
def asked(image_pipeline):
    return Tuning(source=SOURCE, backbone=str(image_pipeline), steps=12, lr=3e-3, frames=4)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, video, asked):
    """The folder of a tuning that was interrupted in its third step, and later asked for more steps."""
    out = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "EVERY", 0)
        begun = tune_steps(video, replace(asked, steps=5), out)
        assert [next(begun).index for _ in range(3)] == [1, 2, 3]
        begun.close()
    with pytest.raises(BackboneError, match="lacks unet/"):
        load_backbone(str(out), "cpu")
    for steps, told in ((5, [3, 4, 5]), (12, [6, 7, 8, 9, 10, 11, 12])):
        assert [step.index for step in tune_steps(video, replace(asked, steps=steps), out)] == told
    return out


def latents(backbone, rows=1):
    noise = torch.Generator().manual_seed(7)
    return torch.randn(rows, 4, 5, 8, 12, generator=noise), backbone.text([SOURCE, "a blue bus"][:rows])


def error(folder, frames):
    """The mean square error of a folder's predicted noise for a clip, over fixed noise."""
    backbone = load_backbone(str(folder), "cpu")
    z, text = backbone.encode(frames), backbone.text([SOURCE])
    errors = []
    for t in range(50, 1000, 100):
        a = float(backbone.scheduler.alphas_cumprod[t])
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(t))
        with torch.inference_mode():
            errors.append((backbone.predict(a**0.5 * z + (1 - a) ** 0.5 * noise, t, text) - noise).square().mean())
    return float(np.mean(errors))


@pytest.mark.numeric
def test_an_untrained_folder_predicts_what_the_stock_model_does(image_pipeline, video, asked, tmp_path):
    finish(tune_steps(video, replace(asked, steps=0), tmp_path))
    backbone, stock = load_backbone(str(tmp_path), "cpu"), load_backbone(str(image_pipeline), "cpu")
    stock.unet.half().float()  # as the folder keeps its weights
    x, text = latents(stock, rows=2)
    assert temporal_blocks(backbone.unet) and not temporal_blocks(stock.unet)
    own = backbone.unet.state_dict()
    assert all(torch.equal(own[name], value) for name, value in stock.unet.state_dict().items())
    assert close(backbone.predict(x, 501, text), stock.predict(x, 501, text))


def test_a_tuned_model_knows_its_clip_better(image_pipeline, tuned, video):
    frames = read_clip(video, frames=4, size=(32, 32)).frames
    assert error(tuned, frames) < 0.97 * error(image_pipeline, frames)


@pytest.mark.numeric
def test_an_interrupted_tuning_ends_as_one_that_was_not(tuned, video, asked, tmp_path):
    figures = finish(tune_steps(video, asked, tmp_path))
    for part in ("unet", "temporal"):
        whole, parts = load_file(tmp_path / part / WEIGHTS), load_file(tuned / part / WEIGHTS)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    record = json.loads((tuned / "tuning.json").read_text())
    assert record["steps"] == figures["steps"] == 12 and record["last_loss"] == figures["last_loss"]
    assert not list(tune_steps(video, asked, tuned)), "it is done"


def test_the_unet_is_a_stock_one_with_new_queries(image_pipeline, tuned):
    unet, told = UNet2DConditionModel.from_pretrained(tuned / "unet", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    before = UNet2DConditionModel.from_pretrained(image_pipeline / "unet").half().float().state_dict()
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value.float(), before[name])}
    assert changed == {name for name in before if name.endswith(("attn1.to_q.weight", "attn2.to_q.weight"))}
    written = [path for path in tuned.rglob("*.json") if str(tuned.parent) in path.read_text()]
    assert not written, "a path of this machine"


def test_temporal_sites_attend_over_frames_at_each_position(tuned):
    backbone = load_backbone(str(tuned), "cpu")
    x, text = latents(backbone, rows=2)
    met = []

    def look(site, q, k, v):
        met.append(site)
        if site.kind == "temporal":
            h, w = site.grid((8, 12))
            assert q.shape[:1] + q.shape[2:3] == k.shape[:1] + k.shape[2:3] == (2 * h * w, 5)
        return attend(q, k, v)

    plain = backbone.predict(x, 501, text)
    hooked = backbone.predict(x, 501, text, hooks=dict.fromkeys(backbone.sites, look))
    assert (plain - hooked).norm() <= 1e-4 * plain.norm() and tuple(met) == backbone.sites
    names = [site.name.rpartition(".")[2] for site in met]
    assert names == ["attn1", "attn2", "attn_temp"] * (len(met) // 3)
    alone = backbone.predict(x[:1], 501, text[:1])
    assert (alone - plain[:1]).norm() <= 1e-4 * plain.norm(), "batch rows do not see each other"


def test_temporal_fusion_acts_on_an_edit(tuned, clip):
    editor = Editor(load_backbone(str(tuned), "cpu"))
    for block in temporal_blocks(editor.backbone.unet):  # a long tuning's
        torch.nn.init.normal_(block.attn_temp.to_out[0].weight, std=0.3)
    task = load_preset("style")
    trace = editor.invert(clip, prompt=SOURCE, steps=3, store=task)
    kept = trace.features._kept
    assert {site.name for site in trace.sites if site.kind == "temporal"} <= {name for _, name, _ in kept}
    told = memory.need(editor.backbone, task, steps=3, shape=tuple(trace.latents[-1].shape))
    assert told.features == sum(one.nbytes for pair in kept.values() for one in pair)
    edits = [
        editor.edit(trace, prompt="sketch of a red car", task=replace(task, alpha_temporal=share), word="car")
        for share in (0.0, 1.0)
    ]
    assert not np.array_equal(*(edit.clip.frames for edit in edits))


def test_a_job_edits_with_a_tuned_folder(tuned, video, tmp_path):
    settings = make_settings(
        source=SOURCE, edit="sketch of a red car", task="style", backbone=str(tuned), steps=2, frames=4, features="auto"
    )
    report = finish(run_steps(video, settings, tmp_path))
    assert (tmp_path / "edited.mp4").exists()
    assert not [note for note in report["words"]["warnings"] if "temporal" in note]


@pytest.mark.numeric
def test_what_the_first_model_had_serves_on(tuned, video, asked, tmp_path):
    """The second tuning begins with the first one's layers, and both with the inflation that they were made with."""
    config = tuned / "temporal" / "config.json"
    told = config.read_text()
    config.write_text(json.dumps({"inflation": {"attends": ["previous", "first"]}, "base": "mini-sd"}))
    try:
        finish(tune_steps(video, replace(asked, backbone=str(tuned), steps=0), tmp_path))
    finally:
        config.write_text(told)
    again = load_backbone(str(tmp_path), "cpu")
    assert again.inflation == backbone_spec(str(tmp_path)).inflation == Inflation(attends=("previous", "first"))
    assert usual_guidance(str(tmp_path)) == 4 and codebook_path(str(tmp_path)).name == "mini-sd.json"
    layers = [load_file(folder / "temporal" / WEIGHTS) for folder in (tuned, tmp_path)]
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])


def test_memory_is_told_with_the_temporal_layers(image_pipeline, tuned):
    backbone = load_backbone(str(tuned), "cpu")
    alone = replace(backbone, inflation=Inflation(attends=("self",)))
    shape = (1, 4, 16, 16, 16)
    told = memory.need(alone, load_preset("attribute"), steps=2, shape=shape)
    counter = memory._Counter()
    with torch.inference_mode(), alone.over(16), memory._NoMaps(), counter:
        alone.output(torch.zeros(shape), 1, torch.zeros(1, *alone.text_shape))
    assert told.row == pytest.approx(counter.peak, rel=0.05)
    stock = memory.need(load_backbone(str(image_pipeline), "cpu"), load_preset("attribute"), steps=2, shape=shape)
    added = sum(value.numel() for value in load_file(tuned / "temporal" / WEIGHTS).values())
    assert told.weights - stock.weights == 4 * added


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"source": " "}, PromptError, "empty"),
        ({"source": "a red car " * 12}, PromptError, "longer than the 22 tokens"),
        ({"frames": 9, "fps": 8.0}, ClipError, "and 9 are asked"),
        ({"backbone": "no-such-thing"}, SettingError, "There is no backbone"),
    ],
)
def test_what_cannot_be_tuned_is_refused(video, asked, tmp_path, change, kind, match):
    with pytest.raises(kind, match=match):
        finish(tune_steps(video, replace(asked, **change), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_video_model_and_a_clip_that_is_none_are_refused(pipeline, video, asked, tmp_path, monkeypatch):
    """A video model before it is loaded, or downloaded, where that can be known."""
    with monkeypatch.context() as patch:
        patch.setattr("freemask.jobs.tuning.load_backbone", lambda *args, **kwargs: pytest.fail("it was loaded"))
        for name in ("mini", "zeroscope", str(pipeline)):
            with pytest.raises(BackboneError, match="is a video model"):
                finish(tune_steps(video, replace(asked, backbone=name), tmp_path))
    monkeypatch.setattr("freemask.jobs.tuning.backbone_folder", lambda name: None)  # as an unlisted hub id
    with pytest.raises(BackboneError, match="is a video model"):
        finish(tune_steps(video, replace(asked, backbone=str(pipeline)), tmp_path))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ClipError):
        finish(tune_steps(tmp_path / "text.mp4", asked, tmp_path / "out"))


def test_a_folder_with_something_else_stays_as_it_is(tuned, video, asked, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingError, match="something else"):
        finish(tune_steps(video, asked, tmp_path))
    with pytest.raises(SettingError, match="another source, lr"):
        finish(tune_steps(video, replace(asked, source="a blue bus", lr=1e-3), tuned))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_layers_of_another_model_are_refused(tuned, image_pipeline, tmp_path):
    shutil.copytree(tuned, tmp_path / "broken")
    (tmp_path / "broken" / "temporal" / WEIGHTS).write_bytes((image_pipeline / "unet" / WEIGHTS).read_bytes())
    with pytest.raises(BackboneError, match="broken/temporal could not be loaded"):
        load_backbone(str(tmp_path / "broken"), "cpu")


def test_gradients_are_the_same_with_checkpoints(image_pipeline):
    """As on a GPU, where blocks run again in the backward pass."""
    found = []
    for checkpoints in (False, True):
        backbone = load_backbone(str(image_pipeline), "cpu")
        torch.manual_seed(0)
        add_temporal(backbone.unet)
        (backbone.unet.enable_gradient_checkpointing if checkpoints else lambda: None)()
        x, text = (one.clone() for one in latents(backbone))
        weights = [p.requires_grad_() for n, p in backbone.unet.named_parameters() if "to_q" in n or "_temp" in n]
        with backbone.over(5):
            backbone.output(x, 501, text).square().mean().backward()
        found.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
    torch.testing.assert_close(*found)


def test_a_v_prediction_model_is_asked_for_its_own_target(image_pipeline, clip):
    """The loss is zero for the output that the family reads as the noise which was added."""
    stock = load_backbone(str(image_pipeline), "cpu")
    stock.scheduler.register_to_config(prediction_type="v_prediction")
    t, noise = 500, torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    a = float(stock.scheduler.alphas_cumprod[t])

    class Perfect(Inflated):
        def output(self, x, t, text):
            return (noise - (1 - a) ** 0.5 * x) / a**0.5

    perfect = Perfect(**{field.name: getattr(stock, field.name) for field in fields(stock)})
    x = torch.randn(noise.shape)
    torch.testing.assert_close(perfect.predict(x, t, noise), noise, rtol=1e-4, atol=1e-4)
    trainer = Trainer(perfect, clip, Tuning(source=SOURCE, backbone=str(image_pipeline)))
    assert trainer.loss(t, noise) < 1e-8


def test_the_command_tunes_and_tells(video, asked, tmp_path):
    args = ["tune", str(video), "--out", str(tmp_path / "out"), "--backbone", asked.backbone, "--frames", "4"]
    result = CliRunner().invoke(app, [*args, "--source", SOURCE, "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 1
    assert CliRunner().invoke(app, [*args, "--source", "", "--steps", "1"]).exit_code == 2
