import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_scheduler, tiny_unet
from diffusers import AutoencoderKL

from freemask.attention import find_sites
from freemask.backbone import Backbone
from freemask.errors import BackboneError, SettingError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, editor):
    """A tiny random pipeline with an AutoencoderKL, saved in zeroscope's layout."""
    path = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.save_pretrained(path / "vae")
    tiny_unet().save_pretrained(path / "unet")
    editor.backbone.text_encoder.save_pretrained(path / "text_encoder")
    editor.backbone.tokenizer.save_pretrained(path / "tokenizer")
    tiny_scheduler().save_pretrained(path / "scheduler")
    return path


def test_a_saved_pipeline_loads(folder):
    backbone = Backbone.load(str(folder), "cpu")
    assert (backbone.vae_factor, backbone.multiple, backbone.native_size) == (4, 16, (32, 32))
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8)
    latents = backbone.encode(frames)
    assert latents.shape == (1, 4, 3, 8, 12) and latents.dtype == torch.float32
    assert torch.equal(latents, backbone.encode(frames, chunk=1))
    assert backbone.decode(latents).shape == frames.shape


def test_a_missing_part_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(BackboneError, match="lacks tokenizer/"):
        Backbone.load(str(broken), "cpu")


def test_a_damaged_part_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    next((broken / "unet").glob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(BackboneError, match="broken/unet could not be loaded"):
        Backbone.load(str(broken), "cpu")


def test_an_unknown_autoencoder_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(BackboneError, match="VQModel"):
        Backbone.load(str(broken), "cpu")


def test_neither_a_folder_nor_a_hub_id():
    with pytest.raises(SettingError, match="hub id such as"):
        Backbone.load("no-such-thing", "cpu")


def test_without_the_hub_the_error_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BackboneError, match="network, or give the path of a folder"):
        Backbone.load("owner/model", "cpu")


def test_tokens_of_words(editor):
    rows = editor.backbone.word_tokens("A red CAR, driving!")
    assert rows == ((1,), (2,), (3,), (5,))
    odd = editor.backbone.word_tokens("a zebra")
    assert odd[0] == (1,) and len(odd[1]) > 1
    with pytest.raises(BackboneError, match="longer than the 22 tokens"):
        editor.backbone.word_tokens("car " * 23)


def test_sites_are_named_by_kind_and_level(editor):
    sites = find_sites(editor.backbone.unet)
    cross = [s for s in sites if s.kind == "cross"]
    assert [s.level for s in cross] == [0, 1, 2, 1, 1, 0, 0]
    assert [s.short for s in cross[2:5]] == ["mid", "up 1.0", "up 1.1"]
    assert sum(s.kind == "input" for s in sites) == 2
    assert cross[1].grid((9, 5)) == (5, 3)


def test_velocity_is_turned_into_noise(editor):
    unet = editor.backbone.unet
    changed = Backbone("v", unet, *_rest(editor, tiny_scheduler(prediction_type="v_prediction")))
    x = torch.randn(1, 4, 2, 8, 8)
    text = changed.text(["a car"])
    v, a = editor.backbone.eps(x, 501, text), 0.3
    assert torch.allclose(changed.eps(x, 501, text, a), a**0.5 * v + (1 - a) ** 0.5 * x, atol=1e-6)


def _rest(editor, scheduler):
    b = editor.backbone
    return b.vae, b.text_encoder, b.tokenizer, scheduler, b.device
