"""What cannot be used here is told with its reason before anything is loaded, and not offered."""

import json
import os
import sys
from types import SimpleNamespace

import gradio as gr
import pytest
from typer.testing import CliRunner

import app
from freemask import page
from freemask.cli import app as command
from freemask.errors import BackboneError, SettingError
from freemask.families import reach
from freemask.families.loading import load_backbone
from freemask.families.specs import backbones
from freemask.page.fields import NAMES
from freemask.settings import examples

NOWHERE = "no-such-owner/no-such-model"


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with or without a GPU, downloads and a network."""

    def make(*, gpu=False, here=None, offline=False, hub=True):
        monkeypatch.setattr(reach, "has_gpu", lambda: gpu)
        monkeypatch.setattr(reach, "downloaded", lambda name: here)
        monkeypatch.setattr(reach, "_hub_answers", lambda: hub)
        monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: offline)

    return make


def torch_with(*, cuda, mps=False):
    parts = {"cuda": cuda, "backends.mps": mps}
    able = {name: SimpleNamespace(is_available=lambda given=given: given) for name, given in parts.items()}
    return SimpleNamespace(cuda=able["cuda"], backends=SimpleNamespace(mps=able["backends.mps"]))


def test_a_gpu_is_found_without_torch(monkeypatch, tmp_path):
    for name in ("SPACES_ZERO_GPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reach, "DEVICES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    told = {}
    for build, node in (("2.9.0", None), ("2.9.0", "nvidia3"), ("2.9.0+cpu", "nvidia3"), ("2.9.0+rocm6.4", "kfd")):
        monkeypatch.setattr("importlib.metadata.version", lambda name, build=build: build)
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        for old in tmp_path.iterdir():
            old.unlink()
        if node:
            (tmp_path / node).touch()
        told[build, node] = reach.has_gpu()
    assert list(told.values()) == [False, True, False, True]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.0")
    (tmp_path / "nvidia0").touch()
    assert not reach.has_gpu()
    for torch, able in (
        (torch_with(cuda=True), True),
        (torch_with(cuda=False), False),
        (torch_with(cuda=False, mps=True), True),
    ):
        monkeypatch.setitem(sys.modules, "torch", torch)
        assert reach.has_gpu() is able
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "torch", torch_with(cuda=False))
    assert reach.has_gpu()


def test_torch_that_is_being_imported_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(reach, "DEVICES", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert not reach.has_gpu()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "there is no GPU"),
        ({"gpu": True}, None),
        ({"gpu": True, "offline": True}, "not downloaded and HF_HUB_OFFLINE is set"),
        ({"gpu": True, "hub": False}, "not downloaded and the hub does not answer"),
        ({"gpu": True, "offline": True, "here": "there"}, None),
    ],
)
def test_what_stands_in_the_way(machine, tmp_path, given, why):
    machine(**{name: tmp_path if value == "there" else value for name, value in given.items()})
    met = reach.obstacle("zeroscope")
    assert (met is None) if why is None else why in met.why
    assert reach.obstacle("mini") is None
    with pytest.raises(SettingError, match="did you mean 'zeroscope'"):
        reach.obstacle("zeroskope")


def test_a_folder_is_judged_by_its_size(machine, tmp_path):
    machine()
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    for size, wants in ((2**20, False), (2**31, True)):
        weights.touch()
        os.truncate(weights, size)  # sparse
        assert bool(reach.missing_gpu(str(tmp_path))) is wants


def test_the_page_offers_what_can_be_used(machine, monkeypatch, tmp_path):
    def built():
        with gr.Blocks() as demo:
            advanced = page.Inputs.build([], backbone="mini").advanced
        (note,) = (one for one in demo.blocks.values() if getattr(one, "elem_id", None) == "absent")
        return [name for _, name in advanced.backbone.choices], note

    machine(gpu=True)
    names, note = built()
    assert names == [spec.name for spec in backbones()] and not note.visible
    assert "choose <code>zeroscope</code>" in page.toy_world("mini")
    machine()
    names, note = built()
    assert (
        names == ["mini", "mini-motion", "mini-sd", "mini-wan"]
        and "animatediff, modelscope, sd15, wan, zeroscope: not on this server, since there is no GPU." in note.value
    )
    assert "Real clips need" in page.toy_world("mini") and "there is no GPU" in page.toy_world("mini")

    told = []
    monkeypatch.setattr(gr, "Warning", told.append)
    given = {"source": "a car", "edit": "a bus", "backbone": "cerspense/zeroscope_v2_576w"}
    (tmp_path / "settings.json").write_text(json.dumps(given))
    at = NAMES.index("backbone") - 1
    for filled in (
        page.follow_link("?source=a+car&edit=a+bus&backbone=zeroscope", names),
        page.fill_settings(str(tmp_path / "settings.json"), names),
    ):
        assert filled[at] == gr.skip() and filled[0] == "a car"
    assert len(told) == 2 and all("zeroscope cannot be used here, since there is no GPU" in one for one in told)


@pytest.mark.parametrize("name", ["zeroscope", "zeroskope", NOWHERE])
def test_the_page_begins_with_a_backbone_that_works(machine, monkeypatch, caplog, name):
    machine(hub=False)
    monkeypatch.setenv("FREEMASK_BACKBONE", name)
    assert app.first_backbone() == "mini" and name in caplog.text and "begins with mini" in caplog.text
    machine(gpu=True)
    monkeypatch.setenv("FREEMASK_BACKBONE", "cerspense/zeroscope_v2_576w")
    assert app.first_backbone() == "zeroscope"


def test_the_command_warns_of_a_cpu_and_refuses_what_is_not_to_be_had(machine, monkeypatch, tmp_path):
    def stop(*_, **__):
        raise SettingError("far enough")

    monkeypatch.setattr("freemask.jobs.run.run_steps", stop)
    options = ["--source", "a red car", "--edit", "a blue car", "--backbone", "zeroscope", "--out", str(tmp_path)]
    machine()
    slow = CliRunner().invoke(command, ["edit", str(examples()[0].clip), *options])
    assert "there is no GPU here: this may take hours" in slow.stderr and "far enough" in slow.stderr
    machine(offline=True)
    refused = CliRunner().invoke(command, ["edit", str(examples()[0].clip), *options])
    assert refused.exit_code == 1 and "far enough" not in refused.stderr
    assert "python -m freemask download zeroscope" in refused.stderr.splitlines()[-1]


COMMANDS = {
    "edit": [str(examples()[0].clip), "--source", "a red car", "--edit", "a blue car"],
    "tune": [str(examples()[0].clip), "--source", "a red car"],
    "selftest": [],
    "profile": [],
    "levers": [],
    "calibrate": ["--suite", "toyworld"],
    "benchmark": [],
}


def test_every_command_refuses_what_is_not_to_be_had_in_one_wording(machine, tmp_path):
    machine(hub=False)
    missing = (
        "zeroscope cannot be used here, since its weights are not downloaded and the hub does not answer: run "
        "`python -m freemask download zeroscope` where there is a network, or choose mini."
    )
    for name, given in COMMANDS.items():
        where = [] if name in ("profile", "levers") else ["--out", str(tmp_path / "out")]
        for backbone, told in (("zeroscope", missing), (str(tmp_path), f"{tmp_path} lacks unet/")):
            ended = CliRunner().invoke(command, [name, *given, "--backbone", backbone, *where])
            assert ended.exit_code == 1 and told in ended.stderr.splitlines()[-1], (name, ended.stderr)
    with pytest.raises(BackboneError) as refused:
        load_backbone("zeroscope")
    assert str(refused.value) == missing
