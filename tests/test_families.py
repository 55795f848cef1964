"""What every family of models keeps to, and what is each family's own."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from tiny import close

from freemask.errors import BackboneError
from freemask.families.attention import attend
from freemask.families.inflated import Inflated, attended_frames
from freemask.families.loading import FAMILIES, load_backbone
from freemask.families.motion import Motion
from freemask.families.specs import Inflation, backbone_spec
from freemask.families.unet3d import UNet3D
from freemask.families.wan import Wan

KINDS = {
    UNet3D: {"self", "cross", "temporal", "input"},
    Inflated: {"self", "cross"},
    Motion: {"self", "cross", "temporal"},
}
FOLDERS = {UNet3D: "pipeline", Inflated: "image_pipeline", Motion: "motion_pipeline"}
FRAMES = 5


@pytest.fixture(scope="module", params=KINDS, ids=lambda family: family.__name__)
def backbone(request):
    return load_backbone(str(request.getfixturevalue(FOLDERS[request.param])), "cpu")


@pytest.fixture(scope="module")
def image_model(image_pipeline):
    return load_backbone(str(image_pipeline), "cpu")


def latents(backbone, rows=1, frames=FRAMES):
    """Not square, and an odd number of frames."""
    noise = torch.Generator().manual_seed(7)
    return torch.randn(rows, 4, frames, 8, 12, generator=noise), backbone.text(["a car", "a red bus"][:rows])


def test_every_family_is_tried_here():
    assert set(FAMILIES.values()) == {*KINDS, Wan}  # which `test_wan` tries


def test_the_network_decides_the_family(backbone, request):
    assert type(backbone).__name__ in request.node.name
    assert {site.kind for site in backbone.sites} == KINDS[type(backbone)]


def test_frames_go_in_and_come_out(backbone):
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8)
    z = backbone.encode(frames)
    assert z.shape == (1, 4, 3, 8, 12) and backbone.decode(z).shape == frames.shape


@pytest.mark.numeric
def test_hooks_are_met_in_order_and_change_nothing_of_themselves(backbone):
    x, text = latents(backbone, rows=2)
    met = []

    def look(site, q, k, v):
        met.append(site)
        if site.kind in ("self", "cross"):
            h, w = site.grid((8, 12))
            assert q.shape[0] == len(x) * FRAMES and q.shape[2] == h * w
            assert k.shape[2] == v.shape[2] == backbone.keys(site, (8, 12))
        return attend(q, k, v)

    plain = backbone.predict(x, 501, text)
    assert plain.shape == x.shape and plain.dtype == torch.float32
    assert torch.equal(backbone.predict(x, 501, text, hooks={}), plain)
    assert close(backbone.predict(x, 501, text, hooks=dict.fromkeys(backbone.sites, look)), plain)
    assert tuple(met) == backbone.sites


@pytest.mark.numeric
def test_batch_rows_do_not_see_each_other(backbone):
    x, text = latents(backbone, rows=2)
    both = backbone.predict(x, 501, text)
    for i in range(2):
        assert close(both[i : i + 1], backbone.predict(x[i : i + 1], 501, text[i : i + 1]))


def test_stock_processors_come_back_after_an_error(backbone):
    x, text = latents(backbone)
    before = dict(backbone.unet.attn_processors)

    def fail(site, q, k, v):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        backbone.predict(x, 1, text, hooks={backbone.sites[-1]: fail})
    after = backbone.unet.attn_processors
    assert after.keys() == before.keys() and all(after[k] is before[k] for k in before)


def test_the_frames_that_each_frame_meets():
    assert attended_frames(("self", "middle"), 8).tolist() == [[i, 3] for i in range(8)]  # Round[8/2] = 4, from 1
    assert attended_frames(("middle",), 5).tolist() == [[2]] * 5
    assert attended_frames(("previous", "first", "last"), 3).tolist() == [[0, 0, 2], [0, 0, 2], [1, 0, 2]]
    assert attended_frames(("self", "middle"), 1).tolist() == [[0, 0]]


@pytest.mark.numeric
def test_attending_to_itself_alone_is_the_stock_model(image_model):
    x, text = latents(image_model)
    for inflation in (Inflation(attends=("self",)), Inflation(least_channels=33)):
        alone = replace(image_model, inflation=inflation)
        with torch.inference_mode():
            stock = [image_model.unet(x[:, :, i], 501, encoder_hidden_states=text).sample for i in range(FRAMES)]
        assert close(alone.predict(x, 501, text), torch.stack(stock, 2))


@pytest.mark.parametrize("attends", [("self", "middle"), ("middle",), ("previous", "first"), ("self", "last")])
def test_a_frame_depends_on_no_frame_outside_its_list(image_model, attends):
    """Through one layer; through more, on the lists of its list."""
    inflated = replace(image_model, inflation=Inflation(attends=attends))
    site = next(site for site in inflated.sites if site.kind == "self")
    x, text = latents(inflated)
    seen = []

    def look(at, q, k, v):
        seen.append(attend(q, k, v))
        return seen[-1]

    listed = attended_frames(attends, FRAMES)
    inflated.predict(x, 501, text, hooks={site: look})
    for changed in range(FRAMES):
        y = x.clone()
        y[:, :, changed] += 1
        inflated.predict(y, 501, text, hooks={site: look})
        differs = (seen[-1] - seen[0]).abs().amax((1, 2, 3)) > 1e-3
        assert differs.tolist() == [changed == i or changed in listed[i].tolist() for i in range(FRAMES)]


def test_sites_with_few_channels_stay_per_frame(image_model):
    some = replace(image_model, inflation=Inflation(least_channels=32))
    own = [site for site in some.sites if site.kind == "self"]
    per_frame = {site.level for site in own if some.keys(site, (8, 12)) == np.prod(site.grid((8, 12)))}
    assert per_frame == {0}  # 16 channels at the finest grid, 32 below


@pytest.fixture(scope="module")
def motion_model(motion_pipeline):
    return load_backbone(str(motion_pipeline), "cpu")


@pytest.mark.numeric
def test_an_image_model_beside_a_motion_adapter_is_one_with_motion(
    motion_model, motion_pipeline, image_pipeline, tmp_path
):
    """Its own weights and the adapter's: the two parts of AnimateDiff's UNet put together are that UNet again."""
    shutil.copytree(image_pipeline, tmp_path, dirs_exist_ok=True)
    unet = UNet2DConditionModel.from_pretrained(image_pipeline / "unet")
    whole = UNetMotionModel.from_pretrained(motion_pipeline / "unet")
    kept = {name: value for name, value in whole.state_dict().items() if "motion_modules" not in name}
    unet.load_state_dict(kept)
    unet.save_pretrained(tmp_path / "unet")
    whole.save_motion_modules(tmp_path / "motion_adapter")
    joined = load_backbone(str(tmp_path), "cpu")
    assert type(joined) is Motion and joined.native_frames == backbone_spec(str(motion_pipeline)).frames == 16
    x, text = latents(joined)
    ours, theirs = joined.unet.state_dict(), motion_model.unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # weights of another file lie elsewhere in memory, where kernels may sum in another order
    assert close(joined.predict(x, 501, text), motion_model.predict(x, 501, text))
    (tmp_path / "motion_adapter" / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    with pytest.raises(BackboneError, match="motion_adapter could not be loaded"):
        load_backbone(str(tmp_path), "cpu")


def test_every_frame_of_a_motion_model_reads_its_rows_text_and_meets_all_frames(motion_model):
    x, text = latents(motion_model, rows=2)
    cross = next(site for site in motion_model.sites if site.kind == "cross")
    over = next(site for site in motion_model.sites if site.kind == "temporal")
    seen = {}

    def look(site, q, k, v):
        seen[site] = k
        return attend(q, k, v)

    motion_model.predict(x, 501, text, hooks={cross: look, over: look})
    keys = motion_model.unet.get_submodule(cross.name).to_k(text)
    by_frame = seen[cross].transpose(1, 2).flatten(2).unflatten(0, (2, FRAMES))
    torch.testing.assert_close(by_frame, keys[:, None].expand_as(by_frame))
    assert seen[over].shape[::2] == (2 * 8 * 12, FRAMES)  # every position alone, over frames
    for changed in range(FRAMES):
        y = x.clone()
        y[:, :, changed] += 1
        moved = (motion_model.predict(y, 501, text) - motion_model.predict(x, 501, text)).abs().amax((0, 1, 3, 4))
        assert (moved > 1e-4).all()


def test_the_toy_model_with_motion_is_mini_sd_and_its_adapter():
    backbone = load_backbone("mini-motion", "cpu")
    image = load_backbone("mini-sd", "cpu").unet.state_dict()
    own = backbone.unet.state_dict()
    assert type(backbone) is Motion and backbone.native_frames == 8
    assert all(torch.equal(own[name], value) for name, value in image.items())
    assert {"motion_modules"} == {
        part for name in own.keys() - image.keys() for part in name.split(".") if "motion" in part
    }
