"""Which files are chosen, and downloads against a stand-in for the hub: nothing here touches a network."""

import errno
import json
import logging
import re
import shutil
from types import SimpleNamespace

import httpx
import pytest
import torch
from diffusers import UNetMotionModel
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from tiny import to_bins
from typer.testing import CliRunner

from freemask.cli import app
from freemask.errors import BackboneError
from freemask.families.inflated import Inflated
from freemask.families.loading import load_backbone
from freemask.families.motion import Motion
from freemask.families.weights import choose_weights, downloaded, fetch, needed_files, plan_downloads

UNET, CLIP = "diffusion_pytorch_model", "pytorch_model"
SMALL = ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"]
SMALL += ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder"))]
OTHER = ["README.md", ".gitattributes", "model_index.json", "zs2_576w/text2video_pytorch_model.pth", "unet/old/x.bin"]
ZEROSCOPE = [*SMALL, *OTHER, f"unet/{UNET}.bin", f"vae/{UNET}.bin", f"text_encoder/{CLIP}.bin"]
MODELSCOPE = [*SMALL, *OTHER, *(f"text_encoder/{name}" for name in ("model.safetensors", "model.fp16.safetensors"))]
MODELSCOPE += [
    f"{p}/{UNET}{half}.{end}" for p in ("unet", "vae") for half in ("", ".fp16") for end in ("bin", "safetensors")
]
MODELSCOPE += [f"text_encoder/{CLIP}.bin", f"text_encoder/{CLIP}.fp16.bin"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([f"{UNET}.bin", f"{UNET}.fp16.safetensors", f"{UNET}.safetensors"], f"{UNET}.safetensors"),
        ([f"{UNET}.bin", f"{UNET}.fp16.bin", f"{UNET}.fp16.safetensors"], f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.fp16.bin", f"{UNET}.bin"], f"{UNET}.bin"),
        ([f"{UNET}.non_ema.safetensors", f"{UNET}.onnx", "model.safetensors"], None),
    ],
)
def test_safetensors_before_bins_and_singles_before_halves(names, chosen):
    weights = choose_weights("unet", names)
    assert (weights and weights.files) == (chosen and (chosen,))


def test_shards_count_only_when_all_are_there():
    shards = [f"{UNET}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{UNET}.safetensors.index.fp16.json"
    whole = choose_weights("unet", [*shards, index, f"{UNET}.bin"])
    assert whole and (whole.files, whole.safe, whole.variant) == ((index, *shards), True, "fp16")
    part = choose_weights("unet", [shards[0], index, f"{UNET}.bin"])
    assert part and part.files == (f"{UNET}.bin",)


def test_a_bin_is_downloaded_only_where_a_part_has_no_safetensors():
    assert set(needed_files(ZEROSCOPE)) == {name for name in ZEROSCOPE if name not in OTHER}
    halves = {f"{part}/{UNET}.fp16.safetensors" for part in ("unet", "vae")} | {"text_encoder/model.fp16.safetensors"}
    assert set(needed_files(MODELSCOPE)) == {*SMALL, *halves}
    mixed = [name for name in MODELSCOPE if not (name.startswith("vae/") and name.endswith("safetensors"))]
    assert [name for name in needed_files(mixed) if name.endswith(".bin")] == [f"vae/{UNET}.fp16.bin"]


def test_a_repository_without_a_part_is_named():
    with pytest.raises(BackboneError, match="complete vae/, scheduler/"):
        needed_files(name for name in ZEROSCOPE if not name.startswith(("vae/", "scheduler/")))


class Hub:
    """A stand-in for the hub and its cache: every pipeline has the files `names` and lies in `folder`, a motion adapter
    has `modules` and lies in `beside`."""

    def __init__(self, tmp_path, monkeypatch, names):
        self.names = names
        self.modules = ["README.md", "config.json", f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"]
        self.folder, self.beside = tmp_path / "cache", tmp_path / "beside"
        self.asked, self.refusal = [], None
        self.sizes = {}  # where they are not the usual ones
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(model_info=self.model_info))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", self.cached)

    def at(self, hub_id):
        return self.beside if "adapter" in hub_id else self.folder

    def model_info(self, hub_id, *, files_metadata):
        assert files_metadata
        if self.refusal:
            raise self.refusal
        names = self.names if self.at(hub_id) == self.folder else self.modules
        files = [SimpleNamespace(rfilename=name, size=self.size(name)) for name in names]
        return SimpleNamespace(siblings=files, card_data={"license": "mit"})

    def size(self, name):
        return self.sizes.get(name, 10**9 if name.endswith(".bin") else 1000)

    def put(self, path, name):
        """A file of its size, of which nothing is written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(self.size(name))

    def hold(self, pipeline):
        """Its cache is that pipeline's folder."""
        shutil.copytree(pipeline, self.folder)
        self.sizes |= {f.relative_to(pipeline).as_posix(): f.stat().st_size for f in pipeline.rglob("*") if f.is_file()}
        self.names = list(self.sizes)

    def cached(self, hub_id, name):
        return str(self.at(hub_id) / name) if (self.at(hub_id) / name).exists() else None

    def snapshot_download(self, hub_id, *, allow_patterns=None, local_files_only=False):
        self.asked.append((hub_id, allow_patterns, local_files_only))
        folder = self.at(hub_id)
        if local_files_only and not folder.exists():
            raise FileNotFoundError("not in the cache")
        if self.refusal and not local_files_only:
            raise self.refusal
        for name in allow_patterns or ():
            if not (folder / name).exists():
                self.put(folder / name, name)
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("freemask.families.reach._hub_answers", lambda: True)
    return Hub(tmp_path, monkeypatch, ZEROSCOPE)


def test_the_licence_and_the_price_come_before_the_first_byte(hub):
    done = CliRunner().invoke(app, ["download", "zeroscope"])
    assert done.exit_code == 0, done.output
    assert re.search(
        r"CC-BY-NC-4.0, non-commercial.*\n.*To download: 10 files, 3\.0 GB\. 3 of the files are \.bin", done.stderr
    )
    assert hub.asked == [("cerspense/zeroscope_v2_576w", needed_files(ZEROSCOPE), False)]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["bytes"] == 3 * 10**9 + 7 * 1000 and told["folder"] == str(hub.folder)
    again = CliRunner().invoke(app, ["download", "cerspense/zeroscope_v2_576w"])
    assert "is here already" in again.stderr and "CC-BY-NC-4.0" in again.stderr


def test_an_interrupted_download_names_only_what_is_left(hub):
    files = needed_files(ZEROSCOPE)
    for name in files[2:]:
        hub.put(hub.folder / name, name)
    assert plan_downloads("zeroscope")[0].missing == tuple(files[:2])


def test_a_file_that_is_cut_short_is_told_of_and_fetched_anew(hub, pipeline):
    hub.hold(pipeline)
    for part, name in (("unet", f"{UNET}.safetensors"), ("text_encoder", "model.safetensors")):
        path = hub.folder / part / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        hub.refusal = OfflineModeIsEnabled("offline")
        told = f"{path} is cut short or damaged: fetch it anew with `python -m freemask download owner/model`."
        with pytest.raises(BackboneError, match=re.escape(told)):
            load_backbone("owner/model", "cpu")
        hub.refusal = None
        (plan,) = plan_downloads("owner/model")
        assert plan.missing == (f"{part}/{name}",) and plan.bytes == len(whole)
        plan.run()
        assert path.stat().st_size == len(whole) and not plan_downloads("owner/model")[0].missing
        path.write_bytes(whole)
    load_backbone("owner/model", "cpu")


def test_a_bin_or_a_folders_file_that_is_cut_short_is_named(pipeline, tmp_path):
    bins = to_bins(pipeline, tmp_path / "bins")
    cut = bins / "vae" / f"{UNET}.bin"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(BackboneError, match=re.escape(f"{cut} is cut short or damaged: take it anew from where")):
        load_backbone(str(bins), "cpu")


def test_the_first_use_downloads_and_logs_the_licence_once(hub, caplog):
    with caplog.at_level(logging.WARNING, "freemask"):
        assert fetch("owner/unlisted") == hub.folder
        assert "licence" in caplog.text.lower() and "mit" in caplog.text and "3.0 GB" in caplog.text
        caplog.clear()
        assert fetch("owner/unlisted") == hub.folder
        assert not caplog.text


def test_without_a_network_an_earlier_download_serves_if_it_is_whole(hub):
    fetch("zeroscope")
    hub.refusal = OfflineModeIsEnabled("offline")
    assert fetch("zeroscope") == hub.folder
    (hub.folder / f"unet/{UNET}.bin").unlink()
    with pytest.raises(BackboneError, match="network"):
        fetch("zeroscope")


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "http://hub.test"))


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (lambda: OSError("no route"), "check the network and try again, or give the path of a folder"),
        (lambda: OfflineModeIsEnabled("offline"), "check the network"),
        (
            lambda: RepositoryNotFoundError("404", response=response(404)),
            "not on the hub.*short names: mini, mini-motion, mini-sd, mini-wan, animatediff",
        ),
        (lambda: GatedRepoError("403", response=response(403)), "gated: accept its terms"),
        (lambda: OSError(errno.ENOSPC, "full"), "does not fit on the disk"),
    ],
)
def test_a_refusal_says_what_to_do(hub, refusal, message):
    hub.refusal = refusal()
    with pytest.raises(BackboneError, match=message):
        load_backbone("owner/model", "cpu")
    failed = CliRunner().invoke(app, ["download", "owner/model"])
    assert failed.exit_code == 1 and len(failed.stderr.strip().splitlines()) == 1


def test_a_repository_of_another_kind_is_refused_before_it_is_downloaded(hub):
    hub.names = ["config.json", "model.safetensors"]
    with pytest.raises(BackboneError, match="owner/model is no backbone"):
        plan_downloads("owner/model")
    assert not hub.asked


def test_what_lies_here_is_no_download(hub):
    shipped = CliRunner().invoke(app, ["download", "mini"])
    assert shipped.exit_code == 2 and "mini is no download" in shipped.stderr and not hub.asked
    assert "did you mean 'zeroscope'" in CliRunner().invoke(app, ["download", "zeroscop"]).stderr


def test_what_was_downloaded_loads_under_its_short_name(hub, pipeline):
    hub.hold(pipeline)
    backbone = load_backbone("cerspense/zeroscope_v2_576w", "cpu")
    assert (backbone.name, backbone.native_size) == ("zeroscope", (576, 320))


def test_a_motion_adapter_is_a_download_beside_its_models(hub):
    done = CliRunner().invoke(app, ["download", "animatediff"])
    assert done.exit_code == 0, done.output
    assert re.search(
        r"OpenRAIL-M.*\n.*10 files, 3\.0 GB[^$]*Licence.*motion-adapter-v1-5-2: mit.*\n.*2 files", done.stderr
    )
    files = ["config.json", f"{UNET}.fp16.safetensors"]
    assert hub.asked[-1] == ("guoyww/animatediff-motion-adapter-v1-5-2", files, False)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["folder"] == str(hub.folder) and told["motion_adapter"]["folder"] == str(hub.beside)
    assert downloaded("animatediff") == hub.folder
    shutil.rmtree(hub.beside)
    assert downloaded("animatediff") is None and downloaded("sd15") == hub.folder
    hub.modules = ["config.json", "weights.ckpt"]
    with pytest.raises(BackboneError, match="no complete motion adapter"):
        plan_downloads("animatediff")


def test_a_motion_adapter_makes_the_image_model_another_backbone(hub, image_pipeline, motion_pipeline):
    """Under its short name alone, and with the noise schedule that its modules were trained on."""
    hub.hold(image_pipeline)
    UNetMotionModel.from_pretrained(motion_pipeline / "unet").save_motion_modules(hub.beside)
    hub.sizes |= {path.name: path.stat().st_size for path in hub.beside.iterdir()}
    hub.modules = [path.name for path in hub.beside.iterdir()]
    moving, still = (
        load_backbone(name, "cpu") for name in ("animatediff", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    )
    assert (type(moving), moving.name, moving.native_frames) == (Motion, "animatediff", 16)
    assert (type(still), still.name, still.native_frames) == (Inflated, "sd15", 81)
    assert [model.scheduler.config["beta_schedule"] for model in (moving, still)] == ["linear", "scaled_linear"]
    linear = torch.linspace(0.00085, 0.012, 1000).neg().add(1).cumprod(0)
    torch.testing.assert_close(moving.scheduler.alphas_cumprod, linear)


def test_of_a_folder_with_motion_modules_only_one_kind_of_weights_is_needed():
    beside = [f"motion_adapter/{name}" for name in ("config.json", f"{UNET}.safetensors", f"{UNET}.bin")]
    assert set(needed_files([*MODELSCOPE, *beside])) - set(needed_files(MODELSCOPE)) == set(beside[:2])
