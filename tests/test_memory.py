"""What an edit needs is told before it begins, and what does not fit is done otherwise."""

import gc
import math
import mmap
from dataclasses import replace

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel

from freemask.bench import full_backbone
from freemask.families.loading import load_backbone
from freemask.jobs import memory
from freemask.jobs.memory import Need, Peak, choose_features, need
from freemask.methods.editor import Editor
from freemask.presets import load_preset

GIB = 2**30
SHAPE = (1, 4, 4, 8, 8)
TASK = load_preset("attribute")


def test_the_dry_run_counts_a_convolution_by_hand():
    """The last block of zeroscope's decoder at 512² dominates: three maps of 256 channels at once."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    one = memory._dry_run("AutoencoderKL", memory._config(vae), torch.float16, (1, 4, 64, 64), ())
    assert one == pytest.approx(3 * 256 * 512 * 512 * 2, rel=0.01)
    four = memory._dry_run("AutoencoderKL", memory._config(vae), torch.float16, (4, 4, 64, 64), ())
    assert four == pytest.approx(4 * one, rel=0.01)


@pytest.mark.parametrize("name", ["zeroscope", "mini", "mini-motion", "mini-wan"])
def test_a_specs_working_set_is_what_a_dry_run_counts(name):
    if name == "zeroscope":
        backbone, shape = full_backbone("meta", torch.float16), (1, 4, 8, 64, 64)
    else:
        backbone, shape = load_backbone(name, "cpu"), (1, 16, 8, 16, 16)
    told = need(backbone, TASK, steps=2, shape=shape)
    counted = need(replace(backbone, name="another"), TASK, steps=2, shape=shape)
    assert told.row == pytest.approx(counted.row, rel=0.01)
    assert told.autoencoder == pytest.approx(counted.autoencoder, rel=0.01)


def test_the_dry_run_grows_with_rows_frames_and_area_and_halves_with_precision(editor):
    config = memory._config(editor.backbone.unet)

    def peak(frames, h, w, dtype=torch.float32):
        return memory._dry_run("UNet3DConditionModel", config, dtype, (1, 4, frames, h, w), (1, 24, 24))

    assert peak(8, 16, 16) == pytest.approx(2 * peak(4, 16, 16), rel=0.1)
    assert peak(4, 32, 16) == pytest.approx(2 * peak(4, 16, 16), rel=0.1)
    assert peak(4, 16, 16, torch.float16) == pytest.approx(peak(4, 16, 16) / 2, rel=0.15)


def test_what_the_dry_run_tells_is_what_a_forward_takes(editor, monkeypatch):
    """The same count on real tensors, of this backbone's own UNet."""
    unet: UNet3DConditionModel = editor.backbone.unet
    counter = memory._Counter()
    x, text = torch.zeros(1, 4, 8, 16, 16), torch.zeros(1, 24, 24)
    with torch.inference_mode(), memory._NoMaps(), counter:
        unet(x, 1, text)
    told = memory._dry_run("UNet3DConditionModel", memory._config(unet), torch.float32, x.shape, text.shape)
    assert told == pytest.approx(counter.peak, rel=0.05)


@pytest.mark.parametrize(("name", "native"), [("attribute", 24), ("attribute", 3), ("shape", 24)])
def test_stored_features_are_counted_to_the_byte(editor, clip, name, native):
    """Of one span and of several, and of the sites alone that the task fuses."""
    own = Editor(replace(editor.backbone, native_frames=native))
    task = load_preset(name, "released") if name == "shape" else load_preset(name)
    task = replace(task, max_positions=16 if name == "shape" else None)
    trace = own.invert(clip, prompt="a red car", steps=3, store=task)
    pairs = [[x.numel() * x.element_size() for x in pair] for pair in trace.features._kept.values()]
    told = need(own.backbone, task, steps=3, shape=tuple(trace.latents[-1].shape))
    assert told.features == sum(map(sum, pairs)) and told.pair == max(map(sum, pairs))
    steps: dict[tuple[int, int], int] = {}  # by timestep and span
    for (t, _, start), pair in zip(trace.features._kept, pairs, strict=True):
        steps[t, start] = steps.get((t, start), 0) + sum(pair)
    assert told.step == max(steps.values())
    assert told.pinned == sum(2 ** math.ceil(math.log2(size)) for pair in pairs for size in pair)


def test_what_is_stored_saves_a_row():
    asked = Need(weights=100, row=10, autoencoder=1, pivots=2, features=50, pinned=64, step=6, pair=3)
    told = [asked.peak(way) - 32 * 2**20 for way in ("replay", "store", "host")]  # what the libraries work in
    assert told == [132, 172, 128]
    assert asked.peak("replay", one_row=True) - 32 * 2**20 == 118


def test_a_process_holds_what_is_kept_anywhere_and_more_than_lives(monkeypatch):
    """In MiB: 1000 are held before, 100 of weights among them."""
    monkeypatch.setattr(memory, "HEAP", 2)
    mib = 2**20
    sizes = {"weights": 100, "row": 10, "autoencoder": 1, "pivots": 2, "features": 50, "pinned": 64, "step": 6}
    asked = Need(**{name: size * mib for name, size in sizes.items()}, pair=3 * mib)
    peak = Peak(torch.device("cpu"))
    peak.before = 1000
    told = [peak.expected(asked, way, False) for way in ("replay", "store", "host")]
    assert told == [1062 + 32, 1092 + 32, 1092 + 32]
    assert peak.expected(asked, "replay", True) == 1028 + 32


def test_a_long_clip_needs_no_more_forward_memory(editor):
    own = replace(editor.backbone, native_frames=8)
    short, long = (need(own, TASK, steps=4, shape=(1, 4, f, 8, 8)) for f in (8, 64))
    assert short.row == long.row and short.autoencoder == long.autoencoder
    assert long.features > 8 * short.features


@pytest.mark.parametrize(
    ("device", "features", "free", "expected"),
    [
        ("cpu", GIB // 2, 8 * GIB, "store"),
        ("cpu", 3 * GIB, 64 * GIB, "replay"),
        ("cpu", GIB, 2 * GIB, "replay"),
        ("cuda", 30 * GIB, 80 * GIB, "store"),
        ("cuda", 65 * GIB, 60 * GIB, "replay"),
        ("cuda", GIB, 2 * GIB, "host"),
        ("cuda", 3 * GIB // 2, 2 * GIB, "replay"),
    ],
)
def test_features_are_kept_where_they_fit(device, features, free, expected):
    own = {"weights": 4 * GIB, "row": 2 * GIB // 3, "autoencoder": GIB, "pivots": GIB // 100}
    asked = Need(**own, features=features, pinned=3 * features // 2, step=GIB, pair=GIB // 10)
    host = free if device == "cpu" else 16 * GIB
    assert choose_features(asked, torch.device(device), (free, host)) == expected


def test_a_peak_is_that_of_what_was_held_since():
    gc.collect()  # what is freed meanwhile would hide what is held
    before = Peak(torch.device("cpu"))
    with mmap.mmap(-1, 64 * 2**20) as held:  # the heap may have as much to hand out that counts already
        held.write(b"1" * len(held))
        high = before.mib()
    assert high >= before.before + 60
    if psutil.LINUX:
        assert Peak(torch.device("cpu")).mib() < high


def test_free_memory_is_no_more_than_there_is():
    here, host = memory.free_bytes(torch.device("cpu"))
    assert 0 < here == host <= psutil.virtual_memory().total
