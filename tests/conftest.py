"""Tiny random models and moving clips, made once. The process that hands the tests out imports none of their
libraries."""

from __future__ import annotations

import gc
import os
import ssl
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from freemask.clips.video import Clip
    from freemask.methods.editor import Editor

THREADS = os.environ.get("FREEMASK_TEST_THREADS", "1")
# each worker of the suite has a core: threads that wait for one another's in every process they start cost far more
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
gc.disable()  # what is imported while tests are collected stays, and need not be looked through again and again


LONG = "e2e", "hostile", "test_run.py", "test_graphs.py", "test_batch.py", "test_videodirector.py", "test_bench.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker of the suite is left with one at the end."""
    items.sort(key=lambda item: next((k for k, name in enumerate(LONG) if name in item.path.parts), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def lean():
    import torch

    gc.enable()
    # a client of the page's API reads all of the world's certificates for each file that it fetches, also without TLS
    ssl.create_default_context = lru_cache(ssl.create_default_context)
    torch.set_num_threads(int(THREADS))  # the models are too small for more to pay


@pytest.fixture(scope="module", autouse=True)
def frozen(lean):
    """What libraries and the tests before hold is not looked through again each time that memory is freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from freemask.toyworld.models import load_tokenizer

    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_editor(tokenizer) -> Editor:
    """`editor`, under a name that no module takes for its own: what is made of it is then made once."""
    import torch
    from diffusers import AutoencoderTiny
    from tiny import tiny_scheduler, tiny_unet
    from transformers import CLIPTextConfig, CLIPTextModel

    from freemask.families.unet3d import UNet3D
    from freemask.methods.editor import Editor

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    parts = [m.eval().requires_grad_(False) for m in (tiny_unet(), vae, text)]
    return Editor(UNet3D("tiny", *parts, tokenizer, tiny_scheduler(), torch.device("cpu"), 24))


@pytest.fixture(scope="session")
def editor(tiny_editor) -> Editor:
    """An editor on a random UNet3D with grids /1 and /2, and an autoencoder of factor 4."""
    return tiny_editor


@pytest.fixture(scope="session")
def deep_editor(tiny_editor) -> Editor:
    """The same with grids /1, /2 and /4."""
    from tiny import tiny_unet

    from freemask.methods.editor import Editor

    return Editor(replace(tiny_editor.backbone, unet=tiny_unet(levels=3).eval().requires_grad_(False)))


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Four frames of 32 × 32 with a bright square that moves."""
    import numpy as np

    from freemask.clips.video import Clip

    frames = np.full((4, 32, 32, 3), 60, np.uint8)
    for i in range(4):
        frames[i, 8:24, 4 + 3 * i : 16 + 3 * i] = (220, 80, 40)
    return Clip(frames, 8.0)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory, tiny_editor):
    """A tiny random pipeline with an AutoencoderKL, saved in zeroscope's layout."""
    from tiny import save_pipeline, tiny_unet

    return save_pipeline(tmp_path_factory.mktemp("backbone"), tiny_editor.backbone, tiny_unet())


@pytest.fixture(scope="session")
def image_pipeline(tmp_path_factory, tiny_editor):
    """The same of an image model, in Stable Diffusion's layout."""
    from tiny import save_pipeline, tiny_image_unet

    return save_pipeline(tmp_path_factory.mktemp("image"), tiny_editor.backbone, tiny_image_unet())


@pytest.fixture(scope="session")
def motion_pipeline(tmp_path_factory, tiny_editor):
    """The same of an image model with motion modules, in AnimateDiff's layout."""
    from tiny import save_pipeline, tiny_motion_unet

    return save_pipeline(tmp_path_factory.mktemp("motion"), tiny_editor.backbone, tiny_motion_unet())
