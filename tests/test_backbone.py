import json
import logging
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet3DConditionModel
from tiny import tiny_scheduler, to_bins
from transformers import CLIPModel, CLIPTextModel

from freemask.bench import full_backbone
from freemask.errors import BackboneError, PromptError, SettingError
from freemask.families import loading
from freemask.families.backbone import Backbone
from freemask.families.devices import named_dtype
from freemask.families.loading import load_backbone
from freemask.families.specs import backbone_spec
from freemask.jobs import metrics

pytestmark = pytest.mark.numeric


class Bomb:
    """Creates a file where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_saved_pipeline_loads(pipeline):
    backbone = load_backbone(str(pipeline), "cpu")
    assert (backbone.vae_factor, backbone.multiple, backbone.native_size) == (4, 8, (32, 32))
    assert backbone.native_frames == 24 and load_backbone("mini", "cpu").native_frames == 8
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8)
    latents = backbone.encode(frames)
    assert latents.shape == (1, 4, 3, 8, 12) and latents.dtype == torch.float32
    alone = replace(backbone, low_vram=True).encode(frames)  # a frame at a time: other shapes, other kernels
    assert (alone - latents).norm() <= 1e-4 * latents.norm()
    assert backbone.decode(latents).shape == frames.shape


@pytest.mark.parametrize(("width", "stays"), [(2, False), (9, True)])
def test_a_text_encoder_that_outweighs_the_network_computes_where_it_is(monkeypatch, width, stays):
    moved = []

    def offload(model, device):
        moved.append(model)
        return model, SimpleNamespace(hook=SimpleNamespace())

    monkeypatch.setattr(loading, "cpu_offload_with_hook", offload)
    vae, unet = SimpleNamespace(enable_tiling=lambda: None), torch.nn.Linear(5, 5)
    text = torch.nn.Linear(width, width)
    loading._take_turns(torch.device("cuda"), vae, text, unet)
    assert moved == ([vae, unet] if stays else [vae, text, unet])


def test_a_missing_part_is_named(pipeline, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(BackboneError, match="lacks tokenizer/"):
        load_backbone(str(broken), "cpu")


def test_a_damaged_part_is_named(pipeline, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    next((broken / "unet").glob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(BackboneError, match="broken/unet/diffusion_pytorch_model.safetensors is cut short or damaged"):
        load_backbone(str(broken), "cpu")


def test_an_unknown_autoencoder_is_named(pipeline, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    (broken / "vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(BackboneError, match="VQModel"):
        load_backbone(str(broken), "cpu")


def test_neither_a_pipeline_nor_a_hub_id():
    with pytest.raises(SettingError, match="hub id such as"):
        load_backbone("no-such-thing", "cpu")


def weights(backbone):
    parts = backbone.unet, backbone.vae, backbone.text_encoder
    return [tensor for part in parts for tensor in part.state_dict().values()]


@pytest.mark.parametrize("sharded", [False, True])
def test_bins_load_where_there_is_nothing_else(pipeline, tmp_path, sharded):
    copy = to_bins(pipeline, tmp_path / "bins", sharded=sharded)
    assert not list(copy.rglob("*.safetensors"))
    pairs = zip(weights(load_backbone(str(copy), "cpu")), weights(load_backbone(str(pipeline), "cpu")), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_safetensors_come_first(pipeline, tmp_path):
    """A pickle beside them is not even opened."""
    both = tmp_path / "both"
    shutil.copytree(pipeline, both)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        (both / part / f"{name}.bin").write_bytes(b"nothing that could be loaded")
    load_backbone(str(both), "cpu")


def test_halves_serve_where_there_is_nothing_else(pipeline, tmp_path):
    halves = tmp_path / "halves"
    shutil.copytree(pipeline, halves)
    for file in halves.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    load_backbone(str(halves), "cpu")
    for file in halves.glob("unet/*.safetensors"):
        file.unlink()
    with pytest.raises(BackboneError, match="unet holds no complete weights"):
        load_backbone(str(halves), "cpu")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_bin_that_holds_more_than_tensors_is_refused_unrun(pipeline, tmp_path, monkeypatch, part, sharded):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # nor may a setting of the machine let it through
    trace = tmp_path / "was-run"
    copy = to_bins(pipeline, tmp_path / "bins", sharded=sharded)
    file = sorted((copy / part).glob("*.bin"))[0]
    state = torch.load(file, weights_only=True)
    torch.save(state | {"extra": Bomb(trace)}, file)
    with pytest.raises(BackboneError, match=rf"{part} was refused, and nothing in it was run.*safetensors") as caught:
        load_backbone(str(copy), "cpu")
    assert not trace.exists()
    assert "weights_only" not in str(caught.value), "the libraries' advice to load it all the same"
    file.write_bytes(pickle.dumps(state | {"extra": Bomb(trace)}))
    with pytest.raises(BackboneError, match=f"{part} was refused"):
        load_backbone(str(copy), "cpu")
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists(), "the bomb is real"


def test_precisions_have_names():
    assert named_dtype("") is None and named_dtype("bf16", "cuda") is torch.bfloat16
    assert named_dtype("fp32", "cpu") is torch.float32
    with pytest.raises(SettingError, match="choose fp16"):
        named_dtype("fp32", "cuda:0")
    with pytest.raises(SettingError, match="Known: fp16, bf16, fp32"):
        named_dtype("fp8")


def test_a_half_precision_is_that_of_every_part(pipeline):
    backbone = load_backbone(str(pipeline), "cpu", torch.bfloat16)
    assert {tensor.dtype for tensor in weights(backbone) if tensor.is_floating_point()} == {torch.bfloat16}
    latents = backbone.encode(np.zeros((2, 32, 32, 3), np.uint8))
    eps = backbone.predict(latents, 501, backbone.text(["a car"]))
    assert eps.dtype == torch.float32 and eps.isfinite().all()


def test_a_known_backbone_has_its_own_size_whatever_its_config_says(editor):
    """zeroscope's config names ModelScope's."""
    assert replace(editor.backbone, name="zeroscope").native_size == (576, 320)


def test_tokens_of_words(editor):
    rows = editor.backbone.word_tokens("A red CAR, driving!")
    assert rows == ((1,), (2,), (3,), (5,))
    odd = editor.backbone.word_tokens("a zebra")
    assert odd[0] == (1,) and len(odd[1]) > 1
    with pytest.raises(PromptError, match="longer than the 22 tokens"):
        editor.backbone.word_tokens("car " * 23)


def test_a_prompt_over_the_length_is_refused_in_our_words_alone(editor, caplog, capfd):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # the library's messages do not reach the root
    try:
        editor.backbone.tokenizer.deprecation_warnings.clear()  # it warns once
        with pytest.raises(PromptError, match="longer than the 22 tokens"):
            editor.backbone.word_tokens("car " * 400)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_sites_are_named_by_kind_and_level(deep_editor):
    sites = deep_editor.backbone.sites
    cross = [s for s in sites if s.kind == "cross"]
    assert [s.level for s in cross] == [0, 1, 2, 1, 1, 0, 0]
    assert [s.short for s in cross[2:5]] == ["mid", "up 1.0", "up 1.1"]
    assert sum(s.kind == "input" for s in sites) == 2
    assert cross[1].grid((9, 5)) == (5, 3)


def test_velocity_is_turned_into_noise(editor):
    changed = replace(editor.backbone, scheduler=tiny_scheduler(prediction_type="v_prediction"))
    x = torch.randn(1, 4, 2, 8, 8)
    text = changed.text(["a car"])
    v, a = editor.backbone.predict(x, 501, text), 0.3
    assert torch.allclose(changed.predict(x, 501, text, a), a**0.5 * v + (1 - a) ** 0.5 * x, atol=1e-6)


def test_the_parameters_of_the_specs_are_counted():
    """zeroscope and ModelScope share their shapes; models on the meta device have no weights."""
    large, mini = full_backbone("meta"), load_backbone("mini", "cpu")
    for name, backbone in (
        ("zeroscope", large),
        ("modelscope", large),
        ("mini", mini),
        ("mini-sd", load_backbone("mini-sd", "cpu")),
    ):
        models = backbone.unet, backbone.vae, backbone.text_encoder
        counted = [sum(weight.numel() for weight in model.parameters()) for model in models]
        spec = backbone_spec(name)
        assert spec.parameters == dict(zip(("unet", "vae", "text_encoder"), counted, strict=True))


def test_models_are_loaded_one_after_another(pipeline, monkeypatch):
    """While one is loaded the libraries change torch for all threads."""
    at_once, most = [], []

    def counted(load):
        def run(*given, **options):
            at_once.append(1)
            most.append(len(at_once))
            try:
                return load(*given, **options)
            finally:
                at_once.pop()

        return run

    metrics._clip.cache_clear()
    for kind in (UNet3DConditionModel, AutoencoderKL, AutoencoderTiny, CLIPTextModel, CLIPModel):
        monkeypatch.setattr(kind, "from_pretrained", counted(kind.from_pretrained))
    work = [partial(load_backbone, str(pipeline), "cpu"), partial(load_backbone, "mini", "cpu")]
    with ThreadPoolExecutor(6) as pool:
        found = [job.result() for job in [pool.submit(one) for one in (*work, partial(metrics.load_clip, "mini")) * 2]]
    assert len(most) == 2 * 3 * 2 + 1 and max(most) == 1  # three parts of a backbone; the judge is loaded once
    models = [model for one in found if isinstance(one, Backbone) for model in (one.unet, one.vae, one.text_encoder)]
    models += [one.model for one in found if isinstance(one, metrics.ClipScore)]
    assert len(models) == 14 and all(not p.is_meta for model in models for p in model.parameters())
